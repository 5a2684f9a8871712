"""Several results of one conditioning, and masks, with what else an edit may have, over a tiny model."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.fakes import House
from support.models.adapters import draw, load, merge_exactly, name_adapter
from support.models.reference_edits import IMAGE, WORK, ignore, make_image
from support.models.streamed import stream_everything
from support.models.tiny import build_engine, build_tiny, build_tiny_pipeline

from retouch.editing.adapters import resolve_adapters
from retouch.editing.ports import EditParams, EngineOutput
from retouch.engine.engine import QwenEngine
from retouch.schema import EditRequest, Lora

pytestmark = pytest.mark.e2e

SIZE = (160, 96)
AREA = (32, 16, 96, 64)
EDIT = replace(WORK, width_px=SIZE[0], height_px=SIZE[1])
MASK = Image.new("L", SIZE)
MASK.paste(255, AREA)


def run(
    engine: QwenEngine, work: EditParams = EDIT, mask: Image.Image | None = MASK, **more: Any
) -> EngineOutput:
    prepared = replace(engine.prepare([IMAGE], work, mask=mask), **more)
    return engine.edit(prepared, on_step=ignore)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("streams", [False, True])
def test_a_further_seed_reads_nothing_again_and_gives_the_bits_of_an_edit_of_its_own(
    mask: Image.Image | None, count: int, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build_tiny_pipeline(plus=count > 1)
    engine = build_engine(pipe, stream_everything(pipe) if streams else None)
    images, work = [IMAGE, make_image(60, 120)][:count], replace(EDIT, scheduler="EulerAncestral")
    other = replace(work, seed=work.seed + 1)
    alone = engine.edit(engine.prepare(images, other, mask=mask), on_step=ignore)
    prepared = engine.prepare(images, work, mask=mask)
    first = engine.edit(prepared, on_step=ignore)
    for name in ("encode_prompts", "encode_images", "encode_source"):
        monkeypatch.setattr(engine, name, lambda _, name=name: pytest.fail(f"{name} ran again"))
    further = replace(prepared, params=other, conditioning=first.conditioning)
    second = engine.edit(further, on_step=ignore)
    assert torch.equal(second.pixels, alone.pixels)
    assert not torch.equal(second.pixels, first.pixels)


# --- masks -------------------------------------------------------------------------------------


def test_a_masked_edit_gives_the_same_bits_where_weights_stream() -> None:
    pipe = build_tiny_pipeline()
    work = replace(EDIT, strength=0.6, steps=5)
    resident = run(build_tiny(), work).pixels
    assert torch.equal(run(build_engine(pipe, stream_everything(pipe)), work).pixels, resident)


@pytest.mark.parametrize("streams", [False, True])
def test_a_masked_edit_with_an_adapter_is_that_of_the_merged_weights(
    tmp_path: Path, streams: bool
) -> None:
    pairs = draw()
    pipe, merged = build_tiny_pipeline(), build_tiny_pipeline()
    merge_exactly(merged.transformer, pairs, 0.7)
    weights = stream_everything(pipe) if streams else None
    engine = build_engine(pipe, weights, adapters=load(name_adapter(tmp_path, "a", pairs)))
    chosen = resolve_adapters([Lora(name="a", scale=0.7)], engine.info.adapters)
    ours = run(engine, replace(EDIT, loras=chosen)).pixels.int()
    assert (ours - run(build_engine(merged)).pixels.int()).abs().max() <= 1
    assert (ours - run(build_tiny()).pixels.int()).abs().max() > 8


@pytest.mark.parametrize("streams", [False, True])
def test_a_masked_edit_that_is_cancelled_leaves_no_trace(streams: bool) -> None:
    pipe = build_tiny_pipeline()
    engine = build_engine(pipe, stream_everything(pipe) if streams else None)
    before = run(engine).pixels
    seen: list[int] = []

    def stop(done: int, _: int) -> None:
        seen.append(done)
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.edit(engine.prepare([IMAGE], EDIT, mask=MASK), on_step=stop)
    assert seen == [0, 1]
    assert torch.equal(run(engine).pixels, before)


def to_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def test_several_pictures_with_a_mask_make_several_results_that_keep_the_first_outside_it() -> (
    None
):
    engine: Any = build_tiny(plus=True)
    house = House(engine=engine)
    source = make_image(*SIZE)
    request = EditRequest(
        image_urls=[to_url(source), to_url(make_image(60, 120))],
        mask_url=to_url(MASK),
        mask_feather=0,
        prompt="make the sky purple",
        num_inference_steps=2,
        num_images=2,
        seed=5,
        width=SIZE[0],
        height=SIZE[1],
    )
    answer = await house.editor.run(request, job_id="job", request_id="r")
    first, second = (
        np.asarray(Image.open(io.BytesIO(house.store.objects[one.object_key].body)))
        for one in answer.all
    )
    outside, inside = np.asarray(MASK) == 0, np.asarray(MASK) > 0
    for pixels in (first, second):
        assert (pixels[outside] == np.asarray(source)[outside]).all()
        assert (pixels[inside] != np.asarray(source)[inside]).any()
    assert (first[inside] != second[inside]).any()
    assert [len(one.meta.sources) for one in answer.all] == [2, 2]
