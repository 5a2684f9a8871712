"""One small edit, by the engine and by diffusers alone, to compare results value for value."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image

from retouch.editing.ports import EditParams, run_edit
from retouch.engine.engine import QwenEngine
from retouch.engine.precision import recast, residual_scale, scale_norms
from retouch.engine.schedulers import build_scheduler
from support.models.tiny import PRESET, build_engine, build_tiny_pipeline

torch.set_num_threads(
    1
)  # a tiny edit gains nothing from more threads; on shared cores it is ten times slower with them

MODULES = (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus)
WORK = EditParams(
    prompt="make the sky purple",
    negative_prompt=" ",
    seed=7,
    steps=3,
    guidance_scale=4.0,
    scheduler="Euler",
    width_px=144,
    height_px=96,
)


def make_image(width_px: int = 150, height_px: int = 100) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


IMAGE = make_image()


def ignore(step: int, steps: int) -> None:
    pass


def edit(engine: QwenEngine, work: EditParams = WORK, image: Image.Image = IMAGE) -> bytes:
    return run_edit(engine, [image], work)[0].tobytes()


def engine_over(pipe: Any, **changes: Any) -> QwenEngine:
    """Build an engine over the parts of a stock pipeline, with these changes to the tiny preset."""
    return build_engine(pipe, preset=PRESET.model_copy(update=changes))


def build_stock(*, plus: bool = False, zero_cond_t: bool = False) -> Any:
    """Build a stock pipeline that places image tokens right; with `zero_cond_t` it is 2511's."""
    pipe = build_tiny_pipeline(plus=plus)
    pipe.set_progress_bar_config(disable=True)
    correct_positions(pipe.text_encoder)
    pipe.transformer.register_to_config(zero_cond_t=zero_cond_t)
    for module in (pipe.transformer, *pipe.transformer.transformer_blocks):
        module.zero_cond_t = zero_cond_t
    return pipe


def correct_positions(text_encoder: torch.nn.Module) -> Any:
    """Pass the stock pipelines `mm_token_type_ids`, which they omit (diffusers#14194)."""

    def amend(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        is_image = kwargs["input_ids"] == module.config.image_token_id
        return args, kwargs | {"mm_token_type_ids": is_image.int(), "logits_to_keep": 1}

    return text_encoder.register_forward_pre_hook(amend, with_kwargs=True)


def fold(transformer: Any) -> None:
    """Scale a transformer for float16, as the loader does."""
    for name, weights in transformer.named_parameters():
        weights.data = recast(
            weights.data, torch.float16, factor=residual_scale(f"transformer.{name}", torch.float16)
        )
    scale_norms(transformer)


def decode_of(vae: torch.nn.Module, run: Callable[[], object]) -> torch.Tensor:
    """Return the pixels that the autoencoder decodes while `run` makes one edit."""
    seen: list[torch.Tensor] = []
    hook = vae.decoder.register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))  # type: ignore[union-attr, operator]
    run()
    hook.remove()
    (pixels,) = seen
    return pixels


def run_stock(pipe: Any, work: EditParams = WORK, image: Any = IMAGE) -> bytes:
    """Edit an image, or for Edit-Plus a list, with diffusers alone, as its documentation says."""
    guided = {"negative_prompt": work.negative_prompt} if work.guidance_scale > 1 else {}
    generator = torch.Generator().manual_seed(work.seed)
    pipe.scheduler = build_scheduler(
        work.scheduler, pipe.scheduler.config, steps=work.steps, generator=generator
    )
    result = pipe(
        image=image,
        prompt=work.prompt,
        true_cfg_scale=work.guidance_scale,
        height=work.height_px,
        width=work.width_px,
        num_inference_steps=work.steps,
        generator=generator,
        **guided,
    )
    pixels: bytes = result.images[0].tobytes()
    return pixels


def bound_stock_area(monkeypatch: pytest.MonkeyPatch, area_px: int) -> None:
    """Bound the stock conditioning area: at its 1 MP a run takes seconds."""
    for module in MODULES:
        sized = module.calculate_dimensions
        monkeypatch.setattr(
            module,
            "calculate_dimensions",
            lambda area, ratio, sized=sized: sized(min(area, area_px), ratio),
        )
