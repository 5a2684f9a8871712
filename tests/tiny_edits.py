"""One small edit, by the engine and by diffusers alone, to compare results byte for byte."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image

from retouch.engine.pipeline import QwenEngine
from retouch.ports import Work

torch.set_num_threads(1)  # a tiny edit gains nothing from more; on shared cores it loses tenfold

MODULES = (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus)
WORK = Work(
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


def edit(engine: QwenEngine, work: Work = WORK, image: Image.Image = IMAGE) -> bytes:
    return engine.edit(image, work, before_step=ignore).image.tobytes()


def run_stock(pipe: Any, work: Work = WORK, image: Any = IMAGE) -> bytes:
    """Edit with diffusers alone, as its documentation says."""
    guided = {"negative_prompt": work.negative_prompt} if work.guidance_scale > 1 else {}
    result = pipe(
        image=image,
        prompt=work.prompt,
        true_cfg_scale=work.guidance_scale,
        height=work.height_px,
        width=work.width_px,
        num_inference_steps=work.steps,
        generator=torch.Generator().manual_seed(work.seed),
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
