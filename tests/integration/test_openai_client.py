"""OpenAI's images API as openai-python speaks it, over an editor of fakes."""

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any

import httpx2
import openai
import pytest
from openai.types import (
    ImageEditCompletedEvent,
    ImageEditPartialImageEvent,
    ImageEditStreamEvent,
    ImagesResponse,
)
from PIL import Image
from support.fakes import PNG, URL, House, Pause, picture, settle
from support.web import build_app, open_host, settings

from retouch.editing.ports import ProfileInfo
from retouch.errors import EditError, ModelError, SourceUnreachable, StoreUnavailable

DATA_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
KEY = "k" * 16

pytestmark = pytest.mark.integration


@asynccontextmanager
async def openai_client(
    house: House | None = None, *, key: str = KEY, hooks: Sequence[Any] = (), **changes: Any
) -> AsyncIterator[openai.AsyncOpenAI]:
    app = build_app(open_host(settings(max_image_bytes=4096, **changes), house))
    http = httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), event_hooks={"response": list(hooks)}
    )
    async with openai.AsyncOpenAI(
        base_url="http://retouch.example/v1", api_key=key, http_client=http, max_retries=0
    ) as speaking:
        yield speaking


async def edit(house: House, **fields: Any) -> ImagesResponse:
    async with openai_client(house) as speaking:
        fields = {"image": PNG, "prompt": "make it warmer"} | fields
        answer = await speaking.images.edit(**fields)
    assert isinstance(answer, ImagesResponse)
    return answer


async def refused(house: House, kind: type[openai.APIStatusError], **fields: Any) -> Any:
    with pytest.raises(kind) as caught:
        await edit(house, **fields)
    return caught.value


def stored(house: House) -> bytes:
    return house.store.objects[house.store.results[-1]].body


async def test_a_file_is_edited_and_answered_as_base64() -> None:
    house = House()
    answer = await edit(house, model="gpt-image-1", quality="auto", user="u", input_fidelity="high")
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "") == stored(house)
    assert (answer.output_format, answer.background) == ("png", "opaque")
    work = house.engine.edits[0]
    assert answer.size == f"{work.width_px}x{work.height_px}"
    assert answer.usage is not None
    assert answer.usage.output_tokens == work.width_px * work.height_px // 256
    assert answer.usage.input_tokens_details.text_tokens == 1
    assert house.store.sources == []


async def test_a_link_is_answered_if_asked_for() -> None:
    answer = await edit(House(), response_format="url")
    assert answer.data is not None
    assert (answer.data[0].url or "").startswith("http")
    assert answer.data[0].b64_json is None


@pytest.mark.parametrize("source", [URL, DATA_URL])
@pytest.mark.parametrize("name", ["images", "image"])
async def test_json_names_an_image_by_url(source: str, name: str) -> None:
    house = House()
    image: object = [{"image_url": source}] if name == "images" else source
    async with openai_client(house) as speaking:
        answer = await speaking.post(
            "/images/edits",
            body={name: image, "prompt": "warmer", "seed": 7, "n": 1, "moderation": None},
            cast_to=ImagesResponse,
        )
    assert base64.b64decode((answer.data or [])[0].b64_json or "") == stored(house)
    assert house.engine.edits[0].seed == 7


async def test_size_and_compression_become_ours() -> None:
    house = House()
    await edit(house, size="128x96", output_format="webp", output_compression=0)
    work = house.engine.edits[0]
    assert (work.width_px, work.height_px) == (128, 96)
    assert house.store.results[0].endswith(".webp")


async def test_our_fields_come_as_extra_body() -> None:
    house = House()
    extra = {
        "seed": 5,
        "num_inference_steps": 3,
        "guidance_scale": 2,
        "negative_prompt": "blur",
        "scheduler": "UniPC",
    }
    await edit(house, extra_body=extra)
    work = house.engine.edits[0]
    assert (work.seed, work.steps, work.guidance_scale) == (5, 3, 2.0)
    assert (work.negative_prompt, work.scheduler) == ("blur", "UniPC")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"size": "100x100"}, "size"),
        ({"size": "huge"}, "size"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"extra_body": {"seed": "x"}}, "seed"),
        ({"extra_body": {"markup": "x"}}, "markup"),
        ({"image": b""}, "image"),
        ({"n": 99}, "n"),
    ],
)
async def test_wrong_fields_are_named_as_openai_names_them(
    fields: dict[str, Any], param: str
) -> None:
    error = await refused(House(), openai.BadRequestError, **fields)
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert error.code == "invalid_request"
    assert error.request_id
    assert error.response.headers["x-should-retry"] == "false"


async def test_a_stream_ends_with_the_image_and_its_usage() -> None:
    house = House()
    async with openai_client(house) as speaking:
        stream = await speaking.images.edit(
            image=PNG, prompt="warmer", stream=True, size="64x64", quality="low"
        )
        events: list[ImageEditStreamEvent] = [event async for event in stream]
    (last,) = events
    assert isinstance(last, ImageEditCompletedEvent)
    assert base64.b64decode(last.b64_json) == stored(house)
    assert (last.size, last.output_format, last.background) == ("64x64", "png", "opaque")
    assert last.usage.total_tokens == last.usage.input_tokens + 16


async def test_a_stream_shows_as_many_intermediate_images_as_are_asked_for() -> None:
    async with openai_client(House()) as speaking:
        stream = await speaking.images.edit(
            image=PNG, prompt="x", stream=True, partial_images=2, output_format="jpeg"
        )
        events = [event async for event in stream]
    *partial, last = events
    assert isinstance(last, ImageEditCompletedEvent)
    for nth, event in enumerate(partial):
        assert isinstance(event, ImageEditPartialImageEvent)
        assert event.partial_image_index == nth
        assert Image.open(BytesIO(base64.b64decode(event.b64_json))).format == "JPEG"
    assert len(partial) == 2


async def test_n_images_come_as_a_list_and_count_as_output() -> None:
    house = House()
    answer = await edit(house, n=2, size="64x64", extra_body={"seed": 5})
    bodies = [base64.b64decode(one.b64_json or "") for one in answer.data or []]
    assert {*bodies} == {house.store.objects[key].body for key in house.store.results}
    assert len(bodies) == 2
    assert [one.seed for one in house.engine.edits] == [5, 6]
    assert answer.usage is not None
    assert answer.usage.output_tokens == 2 * 16


async def test_a_stream_of_n_images_numbers_the_intermediate_ones_and_ends_with_n() -> None:
    async with openai_client(House()) as speaking:
        stream = await speaking.images.edit(
            image=PNG, prompt="x", n=2, stream=True, partial_images=1, extra_body={"seed": 255}
        )
        events = [event async for event in stream]
    *partial, first, second = events
    assert isinstance(first, ImageEditCompletedEvent)
    assert isinstance(second, ImageEditCompletedEvent)
    assert first.b64_json != second.b64_json
    assert [getattr(event, "partial_image_index", None) for event in partial] == [0, 1]


async def test_a_client_tries_again_what_may_succeed_and_nothing_else() -> None:
    house = House()
    house.store.put_fault = StoreUnavailable("away")
    async with openai_client(house) as speaking:
        retrying = speaking.with_options(max_retries=1)
        with pytest.raises(openai.InternalServerError):
            await retrying.images.edit(image=PNG, prompt="x")
        assert len(house.engine.edits) == 2
        house.engine.fault = ModelError("broken")
        with pytest.raises(openai.InternalServerError):
            await retrying.images.edit(image=PNG, prompt="x")
    assert len(house.engine.edits) == 3


async def test_a_stream_of_a_wrong_request_is_refused_by_its_status() -> None:
    await refused(House(), openai.BadRequestError, prompt="", stream=True)


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"image": [PNG, picture("red")]}, "image", "image: fake takes 1 image, not 2"),
        ({"mask": b"no picture"}, "mask", "mask: the source is not an image"),
        ({"extra_body": {"mask": [DATA_URL] * 2}}, "mask", "mask: must be one image"),
    ],
)
async def test_a_fault_of_an_image_is_told_with_openais_names(
    fields: dict[str, Any], param: str, told: str
) -> None:
    error = await refused(House(), openai.BadRequestError, **fields)
    assert error.param == param
    assert told in error.message


@pytest.mark.parametrize(
    ("fault", "status", "kind", "retry"),
    [
        (ModelError("broken"), 500, "server_error", "false"),
        (StoreUnavailable("away"), 503, "server_error", "true"),
        (SourceUnreachable(), 502, "server_error", "false"),
    ],
)
async def test_a_failure_says_whether_to_try_again(
    fault: EditError, status: int, kind: str, retry: str
) -> None:
    house = House()
    house.engine.fault = fault
    error = await refused(house, openai.InternalServerError)
    assert (error.status_code, error.type, error.code) == (status, kind, fault.code)
    assert error.response.headers["x-should-retry"] == retry


async def test_a_full_queue_is_a_rate_limit_with_the_seconds_to_wait() -> None:
    house, pause = House(max_queue=0), Pause()
    house.engine.at_step = lambda _: pause.hold()
    running = asyncio.create_task(edit(house))
    await pause.reached()
    error = await refused(house, openai.RateLimitError)
    pause.release()
    await running
    assert (error.type, error.code) == ("rate_limit_error", "queue_full")
    assert int(error.response.headers["retry-after"]) > 0
    assert error.response.headers["x-should-retry"] == "true"


async def test_a_client_waits_as_long_as_a_full_queue_says_and_tries_again() -> None:
    house, pause = House(max_queue=0), Pause()
    house.engine.at_step = lambda _: pause.hold()
    running = asyncio.create_task(edit(house))
    await pause.reached()
    statuses: list[int] = []
    told_s: list[int] = []

    async def end_the_other_edit(response: httpx2.Response) -> None:
        statuses.append(response.status_code)
        told_s.append(int(response.headers.get("retry-after", "0")))
        pause.release()
        await running

    async with openai_client(house, hooks=[end_the_other_edit]) as speaking:
        began_s = asyncio.get_running_loop().time()
        answer = await speaking.with_options(max_retries=1).images.edit(image=PNG, prompt="x")
        waited_s = asyncio.get_running_loop().time() - began_s
    assert answer.data
    assert statuses == [429, 200]
    assert waited_s >= told_s[0] > 0


async def test_a_wrong_key_is_an_authentication_error() -> None:
    async with openai_client(House(), key="wrong", api_keys=KEY) as speaking:
        with pytest.raises(openai.AuthenticationError) as caught:
            await speaking.models.list()
    assert caught.value.type == "authentication_error"


async def test_the_models_are_what_is_loaded() -> None:
    async with openai_client(House()) as speaking:
        found = await speaking.models.list()
    assert [(one.id, one.object) for one in found.data] == [("fake", "model")]
    async with openai_client(None) as speaking:
        with pytest.raises(openai.InternalServerError) as caught:
            await speaking.models.list()
    assert caught.value.response.headers["retry-after"] == "5"


async def test_a_caller_that_leaves_cancels_the_edit() -> None:
    house, pause = House(), Pause()
    house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    running = asyncio.create_task(edit(house))
    await pause.reached()
    running.cancel()
    await settle()
    pause.release()
    await settle()
    assert house.store.results == []


async def test_the_quality_chooses_among_the_loaded_profiles() -> None:
    house = House()
    fast, full = ProfileInfo("fast", 2, 1.0), ProfileInfo("full", 6, 1.0)
    house.engine.info = replace(house.engine.info, profiles=(full, fast))
    for quality in ("low", "high", "auto"):
        await edit(house, quality=quality)
    await edit(house, quality="high", extra_body={"profile": "fast"})
    assert [work.steps for work in house.engine.edits] == [2, 6, 6, 2]
