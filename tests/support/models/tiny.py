"""A tiny pipeline of the real classes with random weights, built in under a second; its edits are noise."""

import copy
import re
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from transformers import (
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from retouch.demo.processor import build_processor
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.block import BlockCall, run_block
from retouch.engine.engine import QwenEngine
from retouch.engine.memory.plan import RESIDENT
from retouch.engine.memory.weights import Weights
from retouch.engine.preset import PresetFile
from retouch.engine.team import Team
from retouch.engine.text_encoder import describe_template

AREA_PX = 128 * 128
WIDTH = 32
LATENT_CHANNELS = 4
CONTROL_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_ATOMS = frozenset({bool, int, float, str, tuple, set, type(None)})
PRESET = PresetFile(
    name="tiny-random (no trained weights)",
    steps=4,
    area_px=AREA_PX,
    condition_area_px=AREA_PX,
    notes=("random weights: the result is noise, good for trying the service only",),
)


def build_tiny(*, plus: bool = False, seed: int = 0, **changes: Any) -> QwenEngine:
    """Build the engine over `build_tiny_pipeline`; `changes` go to `build_engine`."""
    pipe = build_tiny_pipeline(plus=plus, seed=seed)
    return build_engine(pipe, revision=f"seed-{seed}", **changes)


def build_engine(
    pipe: Any,
    weights: Weights | None = None,
    *,
    preset: PresetFile = PRESET,
    revision: str = "",
    run_block: BlockCall = run_block,
    adapters: LoadedAdapters | None = None,
    prompt_cache_bytes: int = 0,
    team: Team | None = None,
) -> QwenEngine:
    """Build an engine over the parts of a stock pipeline, which stay where they are by default."""
    return QwenEngine(
        weights
        or keep_resident(
            transformer=pipe.transformer, vae=pipe.vae, text_encoder=pipe.text_encoder
        ),
        processor=pipe.processor,
        scheduler=pipe.scheduler.config,
        template=describe_template(type(pipe).__name__),
        preset=preset,
        model="tiny",
        revision=revision,
        run_block=run_block,
        adapters=adapters,
        prompt_cache_bytes=prompt_cache_bytes,
        team=team,
    )


def keep_resident(*, transformer: Any, vae: Any, text_encoder: Any) -> Weights:
    """Take modules whose weights stay where they are."""
    return Weights(
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        plan=RESIDENT,
        device=transformer.device,
    )


def build_tiny_pipeline(*, plus: bool = False, seed: int = 0) -> Any:
    """Build the Edit pipeline, or Edit-Plus, with 350,000 random weights in float32."""
    tokenizer = copy.deepcopy(_build_tokenizer())
    return (QwenImageEditPlusPipeline if plus else QwenImageEditPipeline)(
        **{name: _copy(part, {}) for name, part in _build_parts(seed).items()},
        scheduler=_build_scheduler(),
        tokenizer=tokenizer,
        processor=build_processor(tokenizer),
    )


@cache
def _build_parts(seed: int) -> dict[str, torch.nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "transformer": _build_transformer().eval(),
            "vae": _build_vae().eval(),
            "text_encoder": _build_text_encoder(_build_tokenizer()).eval(),
        }


def _copy(module: torch.nn.Module, copies: dict[int, Any]) -> torch.nn.Module:
    """Copy a module, the modules and tensors in it and its configuration, ten times as fast as a deep copy.

    `copies` are those made so far, by the identity of the original.
    """

    def copy_part(part: Any) -> Any:
        if isinstance(part, torch.nn.Module):
            return _copy(part, copies)
        if isinstance(part, torch.nn.Parameter):
            if id(part) not in copies:
                data = part.detach().clone()
                copies[id(part)] = torch.nn.Parameter(data, requires_grad=part.requires_grad)
            return copies[id(part)]
        if isinstance(part, torch.Tensor | PreTrainedConfig):
            return copies.setdefault(id(part), copy.deepcopy(part, copies))
        return part

    twin: torch.nn.Module = module.__new__(type(module))
    for name, value in vars(module).items():
        kind = type(value)
        if kind is dict or kind is OrderedDict:
            parts = (
                kind() if not value else kind((key, copy_part(part)) for key, part in value.items())
            )
            twin.__dict__[name] = parts
        elif kind is list:
            twin.__dict__[name] = value.copy()
        else:
            twin.__dict__[name] = value if kind in _ATOMS else copy_part(value)
    return twin


@cache
def _build_tokenizer() -> Any:
    """Train a byte-level BPE on the pipelines' templates.

    Every word of a template becomes one token, so its prefix counts the 64 tokens the pipelines cut
    off, as with the real vocabulary.
    """
    pipelines: list[Any] = [QwenImageEditPipeline, QwenImageEditPlusPipeline]
    templates = [pipeline(*[None] * 6).prompt_template_encode for pipeline in pipelines]
    words = [part for text in templates for part in re.split(r"<\|\w+\|>", text)]
    untrained = Qwen2Tokenizer(
        eos_token="<|im_end|>",  # noqa: S106 - a text token
        pad_token="<|endoftext|>",  # noqa: S106 - a text token
        extra_special_tokens=list(CONTROL_TOKENS),
    )
    return untrained.train_new_from_iterator(  # type: ignore[no-untyped-call]
        [[*words, "Picture 1: "]] * 2, vocab_size=4000, min_frequency=1, show_progress=False
    )


def _build_transformer() -> Any:
    return QwenImageTransformer2DModel(  # type: ignore[no-untyped-call]
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )


def _build_vae() -> Any:
    """Build an autoencoder with the real one's factor of 8."""
    return AutoencoderKLQwenImage(  # type: ignore[no-untyped-call]
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def _build_text_encoder(tokenizer: Any) -> Any:
    number = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "bos_token_id": number("<|endoftext|>"),
            "eos_token_id": number("<|im_end|>"),
            "rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [1],
        },
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _build_scheduler() -> Any:
    """Build the scheduler with the settings the Qwen-Image-Edit checkpoints come with."""
    return FlowMatchEulerDiscreteScheduler(  # type: ignore[no-untyped-call]
        base_shift=0.5,
        max_shift=0.9,
        max_image_seq_len=8192,
        shift_terminal=0.02,
        use_dynamic_shifting=True,
    )
