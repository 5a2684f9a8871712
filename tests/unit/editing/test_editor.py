import asyncio
import base64
import hashlib
import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import pytest
from PIL import Image
from support.fakes import PNG, REQUEST, URL, Clock, FakeEngine, House, Pause, settle, until
from support.worlds import IN_QUEUE, refused, require_idle, run

from retouch import logs
from retouch.editing.params import derive_seed
from retouch.editing.ports import AdapterInfo, EditParams, GenerationDefaults
from retouch.editing.steps import EditorSettings
from retouch.errors import (
    InvalidRequest,
    Overloaded,
)
from retouch.schema import Progress

SOURCE_ID = hashlib.sha256(URL.encode()).hexdigest()


async def test_an_edit_is_stored_and_answered_with_its_link() -> None:
    house = House()
    answer = await run(house)
    result = answer.result
    key = f"p/results/{SOURCE_ID}/job-1-0.png"
    assert house.store.results == [key]
    kept = house.store.objects[key]
    image = Image.open(BytesIO(kept.body))
    assert (image.format, image.size) == ("PNG", (result.meta.width, result.meta.height))
    assert kept.content_type == result.content_type == "image/png"
    assert kept.metadata["sha256"] == hashlib.sha256(kept.body).hexdigest()
    assert answer.status == "success"
    assert (result.bucket, result.object_key, result.expires_in) == ("bucket", key, 86400)
    assert result.presigned_url == f"https://store.example/{key}?for=86400"


async def test_the_answer_says_when_the_link_ends() -> None:
    house = House(settings=EditorSettings(prefix="p/", link_expires_in_s=60))
    before = datetime.now(UTC)
    result = (await run(house)).result
    ends = datetime.strptime(result.expires_at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert timedelta(seconds=58) < ends - before < timedelta(seconds=65)
    assert result.expires_in == 60


async def test_meta_has_the_effective_value_of_everything() -> None:
    house = House()
    meta = (await run(house)).result.meta
    source = {
        "width": 64,
        "height": 48,
        "format": "png",
        "bytes": len(PNG),
        "cached": False,
        "stale": False,
    }
    assert meta.model_dump(exclude={"timings_ms"}) == {
        "request_id": "r-1",
        "job_id": "job-1",
        "seed": derive_seed("job-1"),
        "num_inference_steps": 4,
        "guidance_scale": 4.0,
        "scheduler": "Euler",
        "width": 64,
        "height": 64,
        "strength": 1.0,
        "geometry": {"source": (64, 48), "box": (0, 0, 64, 48), "working": (64, 64)},
        "model": "fake",
        "revision": "0",
        "dtype": "float32",
        "memory_plan": "resident",
        "quantization": "none",
        "attention": "native",
        "compiled": False,
        "profile": "full",
        "loras": [],
        "source": source,
        "sources": [source],
        "reused": False,
        "notes": ["done"],
    }


async def test_the_engine_gets_the_adapters_that_were_chosen_and_meta_names_them() -> None:
    house = House()
    house.engine.info = replace(
        house.engine.info, adapters=(AdapterInfo("warm", "ab" * 32, layers=60, rank=16),)
    )
    meta = (await run(house, loras=[{"name": "warm", "scale": 0.5}])).result.meta
    assert meta.model_dump()["loras"] == [
        {"name": "warm", "scale": 0.5, "sha256": "ab" * 32, "layers": 60, "merged": False}
    ]
    assert [(one.name, one.scale) for one in house.engine.edits[0].loras] == [("warm", 0.5)]


async def test_an_unknown_adapter_is_refused_before_anything_is_downloaded() -> None:
    house = House()
    error = await refused(house, InvalidRequest, loras=[{"name": "warm"}])
    assert error.details["fields"] == {"loras": "warm is not loaded; LORAS loads: none"}
    assert not house.origin.asked


async def test_the_engine_gets_what_meta_says() -> None:
    house = House()
    meta = (
        await run(
            house,
            seed=7,
            negative_prompt="grain",
            num_inference_steps=2,
            guidance_scale=2.5,
            scheduler="UniPC",
            width=128,
            height=64,
        )
    ).result.meta
    assert house.engine.edits == [
        EditParams("make colors warmer", "grain", 7, 2, 2.5, "UniPC", width_px=128, height_px=64)
    ]
    assert (meta.seed, meta.num_inference_steps, meta.guidance_scale) == (7, 2, 2.5)
    assert (meta.scheduler, meta.width, meta.height) == ("UniPC", 128, 64)
    assert house.engine.steps_taken == 2


@pytest.mark.parametrize(
    ("output_format", "pillow", "content_type", "extension"),
    [
        ("png", "PNG", "image/png", "png"),
        ("jpeg", "JPEG", "image/jpeg", "jpg"),
        ("jpg", "JPEG", "image/jpeg", "jpg"),
        ("webp", "WEBP", "image/webp", "webp"),
        ("avif", "AVIF", "image/avif", "avif"),
    ],
)
async def test_the_result_has_the_format_asked_for(
    output_format: str, pillow: str, content_type: str, extension: str
) -> None:
    house = House()
    result = (await run(house, output_format=output_format)).result
    kept = house.store.objects[result.object_key]
    assert Image.open(BytesIO(kept.body)).format == pillow
    assert kept.content_type == result.content_type == content_type
    assert result.object_key.endswith(f"/job-1-0.{extension}")


async def test_quality_is_passed_on_to_the_encoder() -> None:
    house = House()
    sizes = []
    for quality in (5, 100):
        result = (await run(house, output_format="jpeg", output_quality=quality)).result
        sizes.append(len(house.store.objects[result.object_key].body))
    assert sizes[0] < sizes[1]


async def test_a_retried_job_makes_the_same_bytes_under_the_same_key() -> None:
    results = []
    for _ in range(2):
        house = House()
        key = (await run(house)).result.object_key
        results.append((key, house.store.objects[key].body))
    assert results[0] == results[1]


async def test_the_result_of_a_data_url_is_kept_under_the_hash_of_its_bytes() -> None:
    house = House()
    answer = await run(house, image_url=f"data:;base64,{base64.b64encode(PNG).decode()}")
    assert answer.result.object_key == f"p/results/{hashlib.sha256(PNG).hexdigest()}/job-1-0.png"
    assert house.store.sources == []


async def test_the_second_edit_of_a_url_fetches_nothing() -> None:
    house = House()
    await run(house)
    again = await run(house, job_id="job-2")
    assert again.result.meta.source.cached
    assert again.result.meta.timings_ms.fetch >= 0
    assert len(house.origin.asked) == 1


async def test_notes_tell_every_difference_in_order() -> None:
    demo = GenerationDefaults(steps=8, guidance_scale=1.0, area_px=64 * 64, guided=False)
    house = House(engine=FakeEngine(demo, notes=("the model ran in bfloat16",)))
    answer = await run(house, num_inference_steps=99, guidance_scale=7.5, output_quality=90)
    assert answer.result.meta.notes == [
        "num_inference_steps 99 is cut to 50",
        "this checkpoint has no guidance: guidance_scale is 1.0",
        "png is lossless: output_quality is ignored",
        "done",
        "the model ran in bfloat16",
    ]
    assert house.engine.steps_taken == 50


async def test_timings_hold_every_phase() -> None:
    clock = Clock()
    house = House(clock=clock)

    def pass_time(_: int) -> None:
        clock.now_s += 1.5

    house.engine.at_step = pass_time
    timings = (await run(house)).result.meta.timings_ms
    assert (timings.condition, timings.denoise, timings.vae_decode) == (1.0, 2.0, 3.0)
    assert timings.total == 7500
    assert (timings.queue, timings.encode, timings.store) == (0.0, 0.0, 0.0)
    assert timings.fetch > 0
    assert timings.source_decode > 0


async def test_waiting_for_the_model_is_the_queue_s_time() -> None:
    clock = Clock()
    house = House(clock=clock)
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold()
    first = asyncio.create_task(run(house))
    await pause.reached()
    told: list[Progress] = []
    second = asyncio.create_task(
        house.editor.run(REQUEST, job_id="job-2", request_id="r", progress=told.append)
    )
    await until(lambda: IN_QUEUE in told)
    await settle()
    clock.now_s += 2
    pause.release()
    answers = await asyncio.gather(first, second)
    assert [answer.result.meta.timings_ms.queue for answer in answers] == [0, 2000]


async def test_progress_goes_through_every_stage_in_order() -> None:
    house = House()
    told: list[Progress] = []
    await house.editor.run(REQUEST, job_id="j", request_id="r", progress=told.append)
    assert told == [
        Progress(stage="source"),
        Progress(stage="queue"),
        Progress(stage="condition", steps=4),
        *(Progress(stage="denoise", step=step, steps=4) for step in range(4)),
        Progress(stage="vae_decode", step=4, steps=4),
        Progress(stage="store"),
    ]


async def test_every_thread_of_an_edit_logs_under_its_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caplog.handler, "formatter", logs.JsonFormatter(()))
    house = House()
    house.engine.at_step = lambda _: logging.getLogger("retouch.model").warning("in the model")
    put = house.store.put

    def logged_put(*args: Any, **kwargs: Any) -> None:
        logging.getLogger("retouch.store").warning("in the store")
        put(*args, **kwargs)

    house.store.put = logged_put  # type: ignore[method-assign]
    with logs.bind("r-1"):
        await run(house)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    assert {line["message"] for line in lines} == {"in the model", "in the store"}
    assert {line["requestId"] for line in lines} == {"r-1"}


async def test_one_edit_is_on_the_model_at_a_time() -> None:
    house = House()
    answers = await asyncio.gather(*(run(house, job_id=f"job-{n}") for n in range(8)))
    assert house.engine.most_running == 1
    assert len({answer.result.object_key for answer in answers}) == 8
    assert len(house.origin.asked) == 1


async def test_sources_are_fetched_while_another_edit_is_on_the_model() -> None:
    house = House()
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold()
    first = asyncio.create_task(run(house))
    await pause.reached()
    told: list[Progress] = []
    second = asyncio.create_task(
        house.editor.run(REQUEST, job_id="job-2", request_id="r", progress=told.append)
    )
    await until(lambda: IN_QUEUE in told)
    assert not first.done()
    pause.release()
    await asyncio.gather(first, second)


async def test_the_house_is_bounded_and_says_when_to_come_again() -> None:
    house = House(max_queue=1)
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold()
    inside = [asyncio.create_task(run(house, job_id=f"job-{n}")) for n in range(2)]
    await pause.reached()
    error = await refused(house, Overloaded)
    assert isinstance(error, Overloaded)
    assert error.retry_after_s >= 1
    pause.release()
    await asyncio.gather(*inside)
    await require_idle(house)


async def test_too_many_tokens_are_refused_by_field_before_anything_is_fetched() -> None:
    house = House()
    house.engine.count_tokens = lambda text: len(text)  # type: ignore[method-assign]  # noqa: PLW0108 - named `text`
    await run(house, prompt="a" * 512, negative_prompt="b" * 512)
    house = House()
    house.engine.count_tokens = lambda text: len(text)  # type: ignore[method-assign]  # noqa: PLW0108 - named `text`
    error = await refused(house, InvalidRequest, prompt="a" * 513, negative_prompt="b" * 513)
    assert error.details["fields"] == {
        "prompt": "must be at most 512 tokens",
        "negative_prompt": "must be at most 512 tokens",
    }
    assert (house.origin.asked, house.store.gets) == ([], [])
    await require_idle(house)


async def test_a_result_over_the_loaded_maximum_is_refused_before_anything_is_fetched() -> None:
    house = House()
    house.engine.info = replace(house.engine.info, max_areas_px=(1024 * 1024,))
    error = await refused(house, InvalidRequest, width=2048, height=1024)
    assert "at most 1048576" in error.details["fields"]["width"]
    assert (house.origin.asked, house.store.gets) == ([], [])
    assert (await run(house, width=1024, height=1024)).status == "success"


@pytest.mark.parametrize(("field", "value"), [("strength", 0.5), ("scheduler", "UniPC")])
async def test_what_an_engine_has_no_field_for_is_refused_before_anything_is_fetched(
    field: str, value: object
) -> None:
    house = House()
    house.engine.info = replace(house.engine.info, fixed_schedule=True)
    error = await refused(house, InvalidRequest, **{field: value})
    assert list(error.details["fields"]) == [field]
    assert house.origin.asked == []
    assert (await run(house, strength=1, scheduler="Euler")).status == "success"
