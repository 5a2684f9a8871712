"""Edits in float16: as good as bfloat16 where activations are huge, and never black or clipped."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.models.reference_edits import (
    IMAGE,
    WORK,
    build_stock,
    decode_of,
    edit,
    engine_over,
    fold,
    ignore,
)
from support.models.tiny import build_engine

from retouch.editing.ports import run_edit
from retouch.engine.block import run_block
from retouch.engine.engine import QwenEngine
from retouch.errors import NonFiniteResult

pytestmark = pytest.mark.e2e

RESIDUAL = 3e6
FLOAT16_MAX = 65504


def round_weights(pipe: Any) -> None:
    """Round to bfloat16, as the checkpoints of this family are stored."""
    for weights in pipe.transformer.parameters():
        weights.data = weights.data.bfloat16().float()


def plant_residuals(pipe: Any) -> None:
    """Make the first block add some 3e6 to each channel of both streams."""
    block = pipe.transformer.transformer_blocks[0]
    signs = torch.linspace(-1, 1, 32).sign()
    for mod, mlp in ((block.img_mod, block.img_mlp), (block.txt_mod, block.txt_mlp)):
        mod[1].bias.data[-32:] = 2.0  # the gate after the feed-forward
        mlp.net[2].bias.data += signs * RESIDUAL / 2
    # What follows reads a stream where the image is 1e-7 of it: let it stay visible.
    block.img_mlp.net[2].weight.data *= RESIDUAL * 4
    round_weights(pipe)


def plant_feed_forward(pipe: Any) -> None:
    """Make a feed-forward's inner values pass the end of float16."""
    inner = pipe.transformer.transformer_blocks[1].img_mlp.net[0].proj
    inner.weight.data[:4] *= 2 * FLOAT16_MAX  # itself still within it
    round_weights(pipe)


def build(plant: Any, dtype: torch.dtype) -> tuple[Any, QwenEngine]:
    pipe = build_stock()
    plant(pipe)
    if dtype == torch.float16:
        fold(pipe.transformer)
    else:
        pipe.transformer.to(dtype)
    return pipe, engine_over(pipe)


def run(plant: Any, dtype: torch.dtype) -> torch.Tensor:
    pipe, engine = build(plant, dtype)
    return decode_of(pipe.vae, lambda: edit(engine))


def largest_residual(pipe: Any) -> float:
    largest = [0.0]

    def record(*args: Any, exchange: None) -> tuple[torch.Tensor, torch.Tensor]:
        streams = run_block(*args, exchange=exchange)
        largest.extend(float(stream.abs().max()) for stream in streams)
        return streams

    edit(build_engine(pipe, run_block=record))
    return max(largest)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_folded_float16_is_closer_than_bfloat16_where_residuals_are_huge() -> None:
    assert largest_residual(build(plant_residuals, torch.float32)[0]) > RESIDUAL
    exact = run(plant_residuals, torch.float32)
    pipe, engine = build(plant_residuals, torch.float16)
    half = decode_of(pipe.vae, lambda: edit(engine))
    assert engine.info.dtype == "float16"  # it did not come to the fall-back
    assert error(half, exact) < error(run(plant_residuals, torch.bfloat16), exact)


def test_a_fold_changes_no_bit_in_float32() -> None:
    """Powers of two move the exponent alone, so that what is left of an error is float16's."""
    from retouch.engine.precision import residual_scale, scale_norms

    pipe = build_stock()
    before = decode_of(pipe.vae, lambda: edit(engine_over(pipe)))
    for name, weights in pipe.transformer.named_parameters():
        weights.data *= residual_scale(f"transformer.{name}", torch.float16)
    scale_norms(pipe.transformer)
    assert torch.equal(decode_of(pipe.vae, lambda: edit(engine_over(pipe))), before)


def test_an_overflow_is_made_good_in_bfloat16_and_told(caplog: pytest.LogCaptureFixture) -> None:
    pipe, engine = build(plant_feed_forward, torch.float16)
    places = [weights.data_ptr() for weights in pipe.transformer.parameters()]
    reported: list[int] = []
    with caplog.at_level(logging.WARNING, logger="retouch.engine.engine"):
        pixels = decode_of(
            pipe.vae,
            lambda: run_edit(engine, [IMAGE], WORK, on_step=lambda step, _: reported.append(step)),
        )
        _, edited = run_edit(engine, [IMAGE], WORK)
    (record,) = caplog.records  # the second edit is no news
    assert (record.message, record.fields) == ("precision.widened", {"dtype": "bfloat16"})
    assert reported == [0, 0, 1, 2, 3]  # seen in the first step, and begun again
    assert engine.info.dtype == "bfloat16"
    assert edited.notes == ()
    assert [weights.data_ptr() for weights in pipe.transformer.parameters()] == places
    other, engine = build(plant_feed_forward, torch.float16)
    other.transformer.to(torch.bfloat16)
    assert torch.equal(pixels, decode_of(other.vae, lambda: edit(engine)))
    # How far bfloat16 itself is off hangs on the processor: a planted value is near a tie.
    assert error(pixels, run(plant_feed_forward, torch.float32)) < 0.1


def test_the_edit_that_fell_back_says_so() -> None:
    _, engine = build(plant_feed_forward, torch.float16)
    image, edited = run_edit(engine, [IMAGE], WORK)
    assert edited.notes == ("float16 overflowed: the edit was made in bfloat16",)
    assert image.size == (WORK.width_px, WORK.height_px)


def test_a_further_seed_that_overflows_conditions_anew_in_bfloat16() -> None:
    _, engine = build(plant_feed_forward, torch.float16)
    engine.weights.transformer.transformer_blocks[1].img_mlp.net[0].proj.weight.data[:4] *= 0
    prepared = engine.prepare([IMAGE], WORK)
    first = engine.edit(prepared, on_step=ignore)
    assert first.notes == ()
    inner = engine.weights.transformer.transformer_blocks[1].img_mlp.net[0].proj
    inner.weight.data[:4] = FLOAT16_MAX
    reads = []
    encode = engine.encode_prompts

    def count(inputs: Any) -> Any:
        reads.append(inputs)
        return encode(inputs)

    engine.encode_prompts = count  # type: ignore[method-assign]
    second = engine.edit(replace(prepared, conditioning=first.conditioning), on_step=ignore)
    assert second.notes == ("float16 overflowed: the edit was made in bfloat16",)
    assert len(reads) == 1
    assert torch.equal(second.pixels, engine.edit(prepared, on_step=ignore).pixels)


def test_unfolded_float16_falls_back_too() -> None:
    pipe = build_stock()
    plant_residuals(pipe)
    for weights in pipe.transformer.parameters():
        weights.data = weights.data.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()
    engine = engine_over(pipe)
    edit(engine)
    assert engine.info.dtype == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_non_finite_values_in_the_widest_type_fail_the_edit(dtype: torch.dtype) -> None:
    pipe, engine = build(round_weights, dtype)
    pipe.transformer.proj_out.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteResult):
        edit(engine)
    assert engine.info.dtype == ("float32" if dtype == torch.float32 else "bfloat16")


def test_the_initial_noise_is_the_same_in_every_precision() -> None:
    """So a seed shows the same picture, with one step and no guidance the error is rounding's."""
    work = replace(WORK, steps=1, guidance_scale=1.0)
    pictures = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        pipe, engine = build(round_weights, dtype)
        pictures.append(decode_of(pipe.vae, lambda e=engine: edit(e, work)))  # type: ignore[misc]
    assert max(error(picture, pictures[0]) for picture in pictures) < 0.02
