import asyncio
import gc
import logging
from typing import Any

import pytest
from starlette.responses import StreamingResponse
from support.fakes import REQUEST, House, Pause, settle
from support.web import Caller, Endpoint, parse_events, read, streaming

from retouch.errors import (
    EditError,
    InternalError,
    InvalidRequest,
    ModelError,
    Overloaded,
    SourceUnreachable,
)
from retouch.schema import EditResult, ErrorBody, Progress
from retouch.web import sse


async def test_a_stream_has_progress_and_ends_with_one_result() -> None:
    endpoint = Endpoint()
    response = await endpoint.answer(streaming())
    assert response.media_type == "text/event-stream"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    events = parse_events(await read(response))
    assert [name for name, _ in events] == ["progress"] * 9 + ["result"]
    stages = [Progress.model_validate(data).stage for _, data in events[:-1]]
    assert stages == ["source", "queue", "condition", *["denoise"] * 4, "vae_decode", "store"]
    result = EditResult.model_validate(events[-1][1])
    assert result.result.object_key in endpoint.house.store.objects
    await endpoint.require_idle()


async def test_progress_is_sent_while_the_edit_runs() -> None:
    endpoint, pause = Endpoint(), Pause()
    endpoint.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    response = await endpoint.answer(streaming())
    assert isinstance(response, StreamingResponse)
    events = aiter(response.body_iterator)
    news = [parse_events(str(await anext(events)))[0][1] for _ in range(5)]
    assert (news[-1]["stage"], news[-1]["step"], news[-1]["steps"]) == ("denoise", 1, 4)
    assert endpoint.house.engine.running == 1
    pause.release()
    rest = "".join([str(piece) async for piece in events])
    assert parse_events(rest)[-1][0] == "result"


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (ModelError("broken"), ModelError),
        (SourceUnreachable(host="h", reason="refused"), SourceUnreachable),
        (ValueError("the s3cr3t thing"), InternalError),
    ],
)
async def test_an_error_in_the_middle_is_the_last_event(
    fault: Exception, kind: type[EditError]
) -> None:
    endpoint = Endpoint()
    endpoint.house.engine.fault = fault
    text = await read(await endpoint.answer(streaming()))
    events = parse_events(text)
    names = [name for name, _ in events]
    assert names[-1] == "error"
    assert set(names[:-1]) == {"progress"}
    error = ErrorBody.model_validate(events[-1][1]).error
    assert (error.details.code, error.details.request_id) == (kind.code, "r-1")
    assert "s3cr3t" not in text
    await endpoint.require_idle()


async def test_a_stream_in_a_long_step_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.005)
    house, pause = Endpoint(), Pause()
    house.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    response = await house.answer(streaming())
    assert isinstance(response, StreamingResponse)
    pieces: list[str] = []
    async for piece in response.body_iterator:
        pieces.append(str(piece))
        if pieces.count(": still working\n\n") >= 2:
            pause.release()
    assert ": still working\n\n" in pieces
    names = [name for name, _ in parse_events("".join(pieces))]
    assert names == ["progress"] * 9 + ["result"]


async def test_a_stream_whose_reader_disconnects_cancels_the_edit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    endpoint, pause = Endpoint(), Pause()
    endpoint.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    response = await endpoint.answer(streaming())
    assert isinstance(response, StreamingResponse)
    events: Any = aiter(response.body_iterator)
    await anext(events)
    await pause.reached()
    await events.aclose()
    await settle()
    pause.release()
    await endpoint.require_idle()
    assert endpoint.house.engine.steps_taken == 2
    assert endpoint.house.store.results == []
    assert (
        'retouch_edits_total{code="cancelled",entry="edit",profile="full"} 1.0' in endpoint.counts
    )


async def test_a_stream_whose_connection_closes_ends_the_edit() -> None:
    endpoint, pause, caller = Endpoint(), Pause(), streaming()
    endpoint.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    reading = asyncio.create_task(read(await endpoint.answer(caller)))
    await pause.reached()
    caller.left.set()
    events = parse_events(await reading)
    assert (events[-1][0], events[-1][1]["error"]["type"]) == ("error", "Cancelled")
    pause.release()
    await endpoint.require_idle()


async def test_a_stream_that_nobody_reads_ends_its_edit() -> None:
    endpoint, pause = Endpoint(), Pause()
    endpoint.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    response = await endpoint.answer(streaming())
    await pause.reached()
    del response
    gc.collect()
    await settle()
    pause.release()
    await endpoint.require_idle()
    assert endpoint.house.store.results == []


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_an_error_before_the_first_event_has_its_http_status(accept: str) -> None:
    endpoint, pause = Endpoint(House(max_queue=0)), Pause()
    endpoint.house.engine.at_step = lambda _step: pause.hold()
    running = asyncio.create_task(endpoint.answer())
    await pause.reached()
    with pytest.raises(Overloaded) as caught:
        await endpoint.answer(Caller(accept=accept))
    assert caught.value.retry_after_s
    pause.release()
    await running
    long = REQUEST.model_copy(update={"prompt": "word," * 600})
    with pytest.raises(InvalidRequest):
        await endpoint.answer(Caller(accept=accept), long)
    await endpoint.require_idle()
