"""Relative error of the velocity against float32, for each way to store and multiply the weights.

    PYTHONPATH=src:tests python tests/bench/velocity.py [--blocks 6] [--tiny]

A transformer of the full model's width with `--blocks` blocks of random weights, the same bfloat16
values for all, at 1024x1024 with one condition image. The reference computes in float32; `bfloat16`
shows what the arithmetic alone costs. All 60 blocks do not fit in float32. Two minutes on a GPU;
`--tiny` runs it on a CPU with a toy model.
"""

import argparse
import json
import sys

import torch
from diffusers import QwenImageTransformer2DModel
from support.models import full_model
from support.models.tiny import build_tiny_pipeline

from retouch.engine.block import run_block
from retouch.engine.fp8 import can_multiply_fp8
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.plan import RESIDENT
from retouch.engine.memory.quantization import Quantization
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationCache
from retouch.engine.transformer import Transformer

ROWS = (
    ("bfloat16", "none", False),
    ("int8", "int8", False),
    ("fp8, expanded", "fp8", False),
    ("fp8, fp8 products", "fp8", True),
    ("nf4", "nf4", False),
)
"""Name, `QUANTIZATION`, whether products are in fp8."""
TIMESTEP = 500.0
TEXT_TOKENS = 350


def build_weights(
    options: argparse.Namespace,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str,
    *,
    products: bool,
) -> Weights:
    """Return the weights of a pipeline whose transformer has the same values each time."""
    pipe = build_tiny_pipeline()
    config = dict(pipe.transformer.config) if options.tiny else full_model.TRANSFORMER
    torch.manual_seed(0)
    with torch.device(device):
        transformer = QwenImageTransformer2DModel(**{**config, "num_layers": options.blocks})
    for parameter in transformer.parameters():
        if parameter.ndim > 1 or not (parameter == 1).all():  # all but the norms
            parameter.data.normal_(std=0.02)
        parameter.data = parameter.data.bfloat16().to(dtype)
    weights = Weights(
        transformer=transformer.eval(),
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        plan=RESIDENT,
        device=device,
        encode=encode_as(Quantization(quantization, "none"), fp8_products=products),
    )
    weights.allocate()
    return weights


def compute_velocity(
    options: argparse.Namespace,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str = "none",
    *,
    products: bool = False,
) -> torch.Tensor:
    """Return the velocity (1, token, channel) in float32 of the same random inputs."""
    weights = build_weights(options, dtype, device, quantization, products=products)
    transformer, side = Transformer(weights, run_block), 4 if options.tiny else 64
    config = weights.transformer.config
    generator = torch.Generator().manual_seed(1)
    latents, condition = (
        torch.randn(1, side * side, config.in_channels, generator=generator) for _ in range(2)
    )
    text = torch.randn(1, TEXT_TOKENS, config.joint_attention_dim, generator=generator)
    conditioning = transformer.prepare_conditioning(
        conditions=[condition], texts=[text], grids=[(side, side)] * 2
    )
    modulation = ModulationCache(weights).get(torch.tensor([TIMESTEP]))
    return transformer.forward(latents.to(device), conditioning, modulation.of_step(0))[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda")
    exact = compute_velocity(options, torch.float32, device)
    for name, quantization, products in ROWS:
        if products and not (options.tiny or can_multiply_fp8(device, torch.bfloat16)):
            continue
        found = compute_velocity(options, torch.bfloat16, device, quantization, products=products)
        error = float((found - exact).norm() / exact.norm())
        sys.stdout.write(json.dumps({"row": name, "blocks": options.blocks, "error": error}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    with torch.no_grad():
        main()
