"""Masked edits and lower strengths over a tiny random pipeline: the sums of the stock pipelines."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageEditInpaintPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_inpaint as stock_inpaint
from PIL import Image
from support.models.reference_edits import (
    IMAGE,
    WORK,
    bound_stock_area,
    build_stock,
    decode_of,
    engine_over,
    make_image,
)
from support.models.tiny import AREA_PX, build_tiny

from retouch import schema
from retouch.editing.ports import EditParams
from retouch.engine.engine import QwenEngine
from retouch.engine.schedulers import build_scheduler, start_schedule
from retouch.engine.vae import draw_noise

pytestmark = pytest.mark.e2e

SIZE = (160, 96)  # what the stock pipeline makes of the image, at the area of these tests
MASK = Image.new("L", SIZE)
MASK.paste(255, (32, 16, 96, 64))  # whole latents, which stock's nearest pixels and ours agree on
EDIT = replace(WORK, width_px=SIZE[0], height_px=SIZE[1])


@pytest.fixture(autouse=True)
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    bound_stock_area(monkeypatch, AREA_PX)
    sized = stock_inpaint.calculate_dimensions
    monkeypatch.setattr(
        stock_inpaint,
        "calculate_dimensions",
        lambda area, ratio: sized(min(area, AREA_PX), ratio),
    )
    monkeypatch.setattr(
        stock_inpaint, "retrieve_latents", lambda output, **_: output.latent_dist.mode()
    )


def run(
    engine: QwenEngine, work: EditParams, mask: Image.Image | None, *images: Image.Image
) -> Any:
    prepared = engine.prepare(images or [IMAGE], work, mask=mask)
    return engine.edit(prepared, on_step=lambda _done, _steps: None)


def run_stock_inpaint(pipe: Any, work: EditParams, mask: Image.Image) -> None:
    names = ("vae", "text_encoder", "tokenizer", "processor", "transformer")
    generator = torch.Generator().manual_seed(work.seed)
    scheduler = build_scheduler(
        work.scheduler, pipe.scheduler.config, steps=work.steps, generator=generator
    )
    inpaint: Any = QwenImageEditInpaintPipeline(
        scheduler=scheduler, **{name: getattr(pipe, name) for name in names}
    )
    inpaint.set_progress_bar_config(disable=True)
    inpaint(
        image=IMAGE,
        mask_image=mask,
        prompt=work.prompt,
        negative_prompt=work.negative_prompt,
        true_cfg_scale=work.guidance_scale,
        num_inference_steps=work.steps,
        strength=work.strength,
        generator=generator,
    )


@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
@pytest.mark.parametrize("steps", [4, 9])
def test_a_masked_edit_equals_the_stock_inpainting_pipeline(strength: float, steps: int) -> None:
    pipe = build_stock()
    engine, work = engine_over(pipe), replace(EDIT, strength=strength, steps=steps)
    ours = decode_of(pipe.vae, lambda: run(engine, work, MASK))
    stock = decode_of(pipe.vae, lambda: run_stock_inpaint(pipe, work, MASK))
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [0.35, 0.6, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheduler", ["Euler", "EulerAncestral"])
def test_edit_plus_keeps_to_its_source_as_a_callback_of_the_stock_pipeline_would(
    strength: float, masked: bool, scheduler: str
) -> None:
    """Stock Edit-Plus from given latents, with the blend after each step in a callback."""
    pipe = build_stock(plus=True)
    work = replace(EDIT, strength=strength, steps=5, scheduler=scheduler)
    images = [IMAGE, make_image(60, 120)]
    engine, mask = engine_over(pipe), MASK if masked else None
    prepared = engine.prepare(images, work, mask=mask)
    with torch.no_grad():
        source = engine.encode_source(prepared.inputs)
    if source is None:  # strength 1 without a mask: an edit like any other
        assert (strength, masked) == (1.0, False)
        return
    ours = decode_of(pipe.vae, lambda: run(engine, work, mask, *images))
    rows, columns = prepared.inputs.grids[0]
    generator = torch.Generator().manual_seed(work.seed)
    noise = draw_noise(4, rows=rows, columns=columns, generator=generator)
    steps, skipped = work.steps, work.skipped_steps
    scheduler_ = build_scheduler(scheduler, pipe.scheduler.config, steps=steps, generator=generator)
    start_schedule(scheduler_, steps=steps, image_tokens=rows * columns)
    sigmas = scheduler_.sigmas[skipped:].clone()
    kept = prepared.inputs.mask if masked else torch.ones_like(noise)

    def blend(_pipe: Any, step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        outside = sigmas[step + 1] * noise + (1 - sigmas[step + 1]) * source
        values["latents"] = (1 - kept) * outside + kept * values["latents"]
        return values

    pipe.scheduler = scheduler_
    stock = decode_of(
        pipe.vae,
        lambda: pipe(
            image=images,
            prompt=work.prompt,
            negative_prompt=work.negative_prompt,
            true_cfg_scale=work.guidance_scale,
            width=work.width_px,
            height=work.height_px,
            num_inference_steps=steps - skipped,
            sigmas=np.linspace(1, 1 / steps, steps)[skipped:],
            latents=sigmas[0] * noise + (1 - sigmas[0]) * source,
            callback_on_step_end=blend,
            callback_on_step_end_tensor_inputs=["latents"],
        ),
    )
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scheduler", schema.SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 6])
def test_every_scheduler_starts_late_and_repeats_itself(scheduler: str, steps: int) -> None:
    engine = build_tiny()
    work = replace(EDIT, strength=0.4, steps=steps, scheduler=scheduler)
    done: list[tuple[int, int]] = []
    prepared = engine.prepare([IMAGE], work, mask=MASK)
    first = engine.edit(prepared, on_step=lambda *step: done.append(step)).pixels
    assert torch.equal(first, run(engine, work, MASK).pixels)
    assert not torch.equal(first, run(engine, work, None).pixels)
    ran = work.run_steps
    assert done == [(step, ran) for step in range(ran + 1)]
    assert ran == (1 if steps == 1 else 3)


@pytest.mark.parametrize(
    ("steps", "strength", "skipped"),
    [(30, 1.0, 0), (30, 0.6, 12), (20, 0.35, 13), (4, 0.01, 3), (1, 0.35, 0), (30, 1e-20, 29)],
)
def test_at_least_one_step_runs(steps: int, strength: float, skipped: int) -> None:
    work = replace(EDIT, steps=steps, strength=strength)
    assert work.skipped_steps == skipped
    assert work.run_steps == steps - skipped
