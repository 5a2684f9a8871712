import asyncio
import base64
import gc
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.fakes import PNG, REQUEST, URL, House, Pause, settle
from support.settings import build_settings
from support.web import (
    BODY,
    Caller,
    Endpoint,
    answer_edit,
    client,
    open_host,
    require_error,
    settings,
)

from retouch import logs
from retouch.errors import (
    Cancelled,
    EditError,
    InternalError,
    InvalidRequest,
    ModelError,
    NotReady,
    SourceTooLarge,
    SourceUnreachable,
)
from retouch.schema import EditResult
from retouch.web.edit import EditEndpoint
from retouch.web.metrics import Metrics

INSANE_HOSTS = ["", "a b", "a/b", "u@h", "h:x", "h:123456", "<script>", "h\\x", "[::1"]
DATA_REQUEST = REQUEST.model_copy(
    update={"image_url": f"data:;base64,{base64.b64encode(PNG).decode()}"}
)


async def test_an_edit_is_answered_as_json() -> None:
    endpoint = Endpoint()
    response = await endpoint.answer()
    answer = EditResult.model_validate_json(bytes(response.body))
    assert response.status_code == 200
    assert response.media_type == "application/json"
    assert answer.result.meta.request_id == "r-1"
    assert answer.result.object_key in endpoint.house.store.objects
    assert 'retouch_edits_total{code="success",entry="edit",profile="full"} 1.0' in endpoint.counts
    await endpoint.require_idle()


async def test_an_answer_ends_with_a_log_line_with_its_phases(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await Endpoint().answer()
    (record,) = [record for record in caplog.records if record.message == "edit.finished"]
    fields = vars(record)["fields"]
    phases = ("queue", "fetch", "source_decode", "condition", "denoise", "vae_decode", "total")
    assert all(f"{phase}_ms" in fields for phase in (*phases, "encode", "store"))
    assert (fields["steps"], fields["source_cached"]) == (4, False)
    assert REQUEST.prompt not in str(fields)


@pytest.mark.parametrize(
    ("host", "link", "public"),
    [
        ("retouch.example", "/files/a.png?b=c", "http://retouch.example/files/a.png?b=c"),
        ("10.0.0.1:3001", "/files/a.png", "http://10.0.0.1:3001/files/a.png"),
        ("[::1]:3000", "/files/a.png", "http://[::1]:3000/files/a.png"),
        ("retouch.example", "https://s3.example/a.png", "https://s3.example/a.png"),
        *((host, "/files/a.png", "http://127.0.0.1:3000/files/a.png") for host in INSANE_HOSTS),
    ],
)
async def test_a_local_link_has_the_host_that_the_caller_used_or_the_servers_address(
    host: str, link: str, public: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = Endpoint()
    monkeypatch.setattr(endpoint.house.store, "link", lambda *_, **__: link)
    response = await endpoint.answer(Caller(host=host))
    answer = EditResult.model_validate_json(bytes(response.body))
    assert answer.result.presigned_url == public


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_while_the_model_loads_a_stream_is_refused_by_its_status_too(accept: str) -> None:
    host = open_host(build_settings(), None)
    loading = EditEndpoint(host, Metrics(host))
    with pytest.raises(NotReady):
        await answer_edit(loading, Caller(accept=accept).ask(json.dumps(BODY).encode()))


@pytest.mark.parametrize(
    ("fault", "level", "traced"),
    [
        (ModelError("broken"), logging.ERROR, True),
        (SourceUnreachable(host="h", reason="refused"), logging.WARNING, False),
        (InvalidRequest.for_fields({"prompt": "odd"}), logging.INFO, False),
    ],
)
async def test_a_failure_is_raised_logged_and_counted(
    fault: EditError, level: int, *, traced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    endpoint = Endpoint()
    endpoint.house.engine.fault = fault
    with pytest.raises(type(fault)):
        await endpoint.answer()
    (record,) = [record for record in caplog.records if record.message == "edit.failed"]
    assert record.levelno == level
    assert bool(record.exc_info) is traced
    fields = vars(record)["fields"]
    assert (fields["type"], fields["code"]) == (fault.type, fault.code)
    assert fields["reason"] == fault.context.get("reason", fault.message)
    assert (
        f'retouch_edits_total{{code="{fault.code}",entry="edit",profile="full"}} 1.0'
        in endpoint.counts
    )
    await endpoint.require_idle()


@pytest.mark.parametrize("name", ["reason", "code", "type", "job_id"])
async def test_no_context_of_an_error_can_hide_it(name: str) -> None:
    context: dict[str, Any] = {name: "of the context"}
    endpoint = Endpoint()
    endpoint.house.engine.fault = ModelError("broken", **context)
    with pytest.raises(ModelError):
        await endpoint.answer()


async def test_a_bug_is_an_internal_error_with_its_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint = Endpoint()
    endpoint.house.engine.fault = ValueError("the s3cr3t thing")
    with pytest.raises(InternalError) as caught:
        await endpoint.answer()
    assert "s3cr3t" not in caught.value.message
    (record,) = [record for record in caplog.records if record.message == "edit.failed"]
    assert record.exc_info
    assert record.exc_info[0] is ValueError
    assert (
        'retouch_edits_total{code="internal_error",entry="edit",profile="full"} 1.0'
        in endpoint.counts
    )
    await endpoint.require_idle()


async def test_a_fault_that_quotes_the_prompt_is_logged_without_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caplog.handler, "formatter", logs.JsonFormatter(()))
    request = REQUEST.model_copy(update={"prompt": " the prompt\n", "negative_prompt": "the other"})
    endpoint = Endpoint()
    endpoint.house.engine.fault = ModelError("cannot do 'the prompt' without 'the other'")
    with pytest.raises(ModelError):
        await endpoint.answer(request=request)
    assert "cannot do '[redacted]' without '[redacted]'" in caplog.text
    assert "the prompt" not in caplog.text
    assert '"requestId": "r-1"' in caplog.text


async def test_a_caller_that_disconnects_cancels_the_edit() -> None:
    endpoint, caller, pause = Endpoint(), Caller(), Pause()
    endpoint.house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    answer = asyncio.create_task(endpoint.answer(caller))
    await pause.reached()
    caller.left.set()
    with pytest.raises(Cancelled):
        await answer
    await settle()
    pause.release()
    await endpoint.require_idle()
    assert endpoint.house.engine.steps_taken == 1
    assert endpoint.house.store.results == []
    assert (
        'retouch_edits_total{code="cancelled",entry="edit",profile="full"} 1.0' in endpoint.counts
    )


async def test_an_answer_that_is_cancelled_ends_the_edit() -> None:
    endpoint, pause = Endpoint(), Pause()
    endpoint.house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    answer = asyncio.create_task(endpoint.answer())
    await pause.reached()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    await settle()
    pause.release()
    await endpoint.require_idle()
    assert endpoint.house.store.results == []


async def test_edits_in_progress_are_counted() -> None:
    endpoint, pause = Endpoint(), Pause()
    endpoint.house.engine.at_step = lambda _: pause.hold()
    answer = asyncio.create_task(endpoint.answer())
    await pause.reached()
    assert "retouch_edits_inside 1.0" in endpoint.counts
    pause.release()
    await answer
    await endpoint.require_idle()


async def test_a_data_url_works_as_any_other() -> None:
    endpoint = Endpoint()
    response = await endpoint.answer(request=DATA_REQUEST)
    answer = EditResult.model_validate_json(bytes(response.body))
    assert endpoint.house.origin.asked == []
    assert answer.result.meta.source.bytes == len(PNG)
    assert URL not in bytes(response.body).decode()


async def test_a_body_is_let_go_of_once_its_image_is_decoded() -> None:
    endpoint, pause = Endpoint(), Pause()
    endpoint.house.engine.at_step = lambda _: pause.hold()
    answer = asyncio.create_task(endpoint.answer(request=DATA_REQUEST))
    await pause.reached()
    gc.collect()
    assert endpoint.edits.bodies.held_bytes == 0
    pause.release()
    await answer


async def test_a_file_in_a_form_is_edited_under_the_hash_of_its_bytes() -> None:
    house = House()
    async with client(host=open_host(settings(max_image_bytes=len(PNG) + 1024), house)) as http:
        response = await http.post(
            "/edit", files={"image": ("cup.png", PNG)}, data={"prompt": "make it warmer"}
        )
    result = EditResult.model_validate_json(response.content).result
    assert f"results/{hashlib.sha256(PNG).hexdigest()}/" in result.object_key
    assert (result.meta.source.bytes, result.meta.source.cached) == (len(PNG), False)
    assert house.store.sources == []
    assert house.engine.edits[0].prompt == "make it warmer"


async def test_a_file_over_the_limit_is_refused_while_it_is_read() -> None:
    sent = 0

    async def drip() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(100):
            sent += 1024
            yield b"x" * 1024

    async with client(max_image_bytes=10_240) as http:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        response = await http.post("/edit", content=drip(), headers=kind)
    require_error(response, SourceTooLarge)
    assert sent <= 10_240 + 1024


async def test_an_answer_contains_the_file_as_base64_if_asked_for() -> None:
    endpoint = Endpoint()
    with_file = REQUEST.model_copy(update={"response_format": "b64_json"})
    answers = [
        EditResult.model_validate_json(bytes((await endpoint.answer(request=one)).body)).result
        for one in (REQUEST, with_file)
    ]
    assert answers[0].b64_json is None
    stored = endpoint.house.store.objects[answers[1].object_key]
    assert base64.b64decode(answers[1].b64_json or "") == stored.body
