"""The linear layers of the transformer, which adapters change."""

from collections.abc import Mapping
from typing import Any

from retouch.engine.adapters.read import Shape

FULL_CONFIG: Mapping[str, int] = {
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "in_channels": 64,
    "out_channels": 16,
}
"""Sizes in `transformer/config.json` of Qwen/Qwen-Image-Edit; 2509 and 2511 have the same."""
BLOCK = "transformer_blocks."
_TIME_DIM = 256
_ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)


def layer_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the weight's shape (out, in) of each linear layer by its name in the transformer.

    >>> len(layer_shapes(FULL_CONFIG)), layer_shapes(FULL_CONFIG)["proj_out"]
    (846, (64, 3072))
    """
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config.get("patch_size", 2) ** 2
    block = {
        **dict.fromkeys(("img_mod.1", "txt_mod.1"), (6 * dim, dim)),
        **{f"attn.{name}": (dim, dim) for name in _ATTENTION},
        **dict.fromkeys(("img_mlp.net.0.proj", "txt_mlp.net.0.proj"), (4 * dim, dim)),
        **dict.fromkeys(("img_mlp.net.2", "txt_mlp.net.2"), (dim, 4 * dim)),
    }
    return {
        "img_in": (dim, config["in_channels"]),
        "txt_in": (dim, config["joint_attention_dim"]),
        "time_text_embed.timestep_embedder.linear_1": (dim, _TIME_DIM),
        "time_text_embed.timestep_embedder.linear_2": (dim, dim),
        "norm_out.linear": (2 * dim, dim),
        "proj_out": (patch * config["out_channels"], dim),
        **{
            f"{BLOCK}{index}.{name}": shape
            for index in range(config["num_layers"])
            for name, shape in block.items()
        },
    }
