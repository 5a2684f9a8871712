import asyncio
import base64
import json
import logging
from typing import Any

import pytest
from runpod import RunPodLogger
from support.fakes import PNG, REQUEST, URL, House, Pause, settle, until
from support.settings import build_settings
from support.web import Endpoint
from support.worker import build_worker
from support.worlds import require_idle

from retouch.editing.editor import Editor
from retouch.errors import (
    EditError,
    InternalError,
    ModelError,
    ModelLost,
    OutOfMemory,
    StoreDenied,
    StoreUnavailable,
    error_classes,
)
from retouch.lifecycle import ModelHost, State
from retouch.schema import EditRequest, EditResult, ErrorBody
from retouch.web.app import error_response
from retouch.worker.handler import (
    MAX_ANSWER_BYTES,
    MAX_FILE_CHARACTERS,
    Worker,
    build_success,
)
from retouch.worker.progress import Message, Reporter
from retouch.worker.sdk import redirect_log

INPUT = {"image_url": URL, "prompt": "make colors warmer"}


def job(body: object = None, *, job_id: str = "job-1") -> dict[str, Any]:
    return {"id": job_id, "input": INPUT if body is None else body}


class DefunctHost(ModelHost):
    """A host whose model hangs."""

    @property
    def state(self) -> State:
        return State.DEFUNCT

    @property
    def editor(self) -> Editor:
        raise ModelLost


class Rig:
    """A worker over fakes, and the progress it sent."""

    def __init__(self, host: type[ModelHost] = ModelHost, *, is_gpu_lost: bool = False) -> None:
        self.house = House()
        self.sent: list[Message] = []
        self.probes = 0
        self._is_gpu_lost = is_gpu_lost
        self.refreshes = 0
        self.worker = Worker(
            host(build_settings(), store=self.house.store, editor=self.house.editor),
            refresh=self._refresh,
            build_reporter=lambda _: Reporter(self._send, every_s=0),
            is_gpu_lost=self._probe,
        )

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def _refresh(self) -> None:
        self.refreshes += 1

    def _probe(self) -> bool:
        self.probes += 1
        return self._is_gpu_lost

    async def answer(self, body: object = None, *, job_id: str = "job-1") -> dict[str, Any]:
        return await self.worker.handle(job(body, job_id=job_id))


def read_failure(answer: dict[str, Any]) -> ErrorBody:
    """Hold a failure to its form, and return the body in it."""
    body = ErrorBody.model_validate_json(answer["error"])
    assert {"status": "error", "error": {k: answer[k] for k in ("type", "message", "details")}} == (
        json.loads(answer["error"])
    )
    assert set(answer) == {"error", "status", "type", "message", "details"}
    assert len(json.dumps(answer, allow_nan=False)) <= MAX_ANSWER_BYTES
    return body


# --- answers -----------------------------------------------------------------------------------


async def test_a_job_is_answered_with_the_envelope_of_success() -> None:
    rig = Rig()
    answer = await rig.answer()
    result = EditResult.model_validate(answer).result
    assert set(answer) == {"status", "result"}
    assert result.object_key in rig.house.store.objects
    assert result.object_key.endswith("/job-1-0.png")
    assert (result.meta.job_id, result.meta.request_id) == ("job-1", "job-1")
    assert len(json.dumps(answer, allow_nan=False)) <= MAX_ANSWER_BYTES


async def test_a_retried_job_answers_from_its_result() -> None:
    rig = Rig()
    first = await rig.answer()
    puts = len(rig.house.store.puts)
    again = await rig.answer()
    assert again["result"]["object_key"] == first["result"]["object_key"]
    assert len(rig.house.engine.edits) == 1
    assert len(rig.house.store.puts) == puts


async def test_a_store_that_cannot_say_whether_there_is_a_result_costs_no_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    rig.house.store.get_fault = StoreDenied("may not list")
    assert (await rig.answer())["status"] == "success"
    assert "result.unknown" in [record.message for record in caplog.records]


async def test_progress_is_sent_until_the_result() -> None:
    rig = Rig()
    pause = Pause()
    rig.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    running = asyncio.create_task(rig.answer())
    await pause.reached()
    await until(lambda: rig.sent and rig.sent[-1]["stage"] == "denoise")
    pause.release()
    await running
    assert rig.sent[0]["stage"] == "source"


async def test_a_worker_off_the_platform_sends_no_progress() -> None:
    assert (await build_worker(House()).handle(job()))["status"] == "success"


@pytest.mark.parametrize("named", [None, "", "local_test"])
async def test_a_job_without_an_id_of_its_own_gets_one(named: str | None) -> None:
    rig = Rig()
    keys = [
        (await rig.worker.handle({"id": named, "input": INPUT}))["result"]["object_key"]
        for _ in range(2)
    ]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("named", ["x" * 20_000, "lone \udfff", "two\nlines"])
async def test_a_job_with_an_odd_id_is_answered_in_bounds_and_the_same_when_it_is_retried(
    named: str,
) -> None:
    rig = Rig()
    first, again = [await rig.answer(job_id=named) for _ in range(2)]
    assert first["result"]["object_key"] == again["result"]["object_key"]
    assert len(rig.house.store.results) == 1
    assert len(json.dumps(first)) <= MAX_ANSWER_BYTES
    read_failure(await rig.answer({}, job_id=named))


async def test_a_job_is_answered_with_the_file_if_asked_for() -> None:
    rig = Rig()
    for _ in range(2):  # the second from its stored result
        answer = await rig.answer({**INPUT, "response_format": "b64_json"})
        stored = rig.house.store.objects[answer["result"]["object_key"]]
        assert base64.b64decode(answer["result"]["b64_json"]) == stored.body


def test_a_file_that_would_make_an_answer_too_large_is_left_out_with_a_note(
    result: EditResult,
) -> None:
    for size, is_left_out in ((MAX_FILE_CHARACTERS, False), (MAX_FILE_CHARACTERS + 1, True)):
        file = result.result.model_copy(update={"b64_json": "A" * size})
        answer = EditResult.model_validate(build_success(EditResult(result=file))).result
        assert (answer.b64_json is None) is is_left_out
        assert any("b64_json" in note for note in answer.meta.notes) is is_left_out


async def test_several_results_fit_an_answer_and_a_retry_makes_what_is_missing() -> None:
    rig = Rig()
    first = await rig.answer({**INPUT, "num_images": 4})
    assert len(json.dumps(first)) <= MAX_ANSWER_BYTES
    assert len(EditResult.model_validate(first).all) == 4
    del rig.house.store.objects[first["results"][2]["object_key"]]
    again = await rig.answer({**INPUT, "num_images": 4})
    assert len(rig.house.engine.edits) == 5
    for one, other in zip(first["results"], again["results"], strict=True):
        assert one["object_key"] == other["object_key"]
        assert one["object_key"] in rig.house.store.objects


async def test_a_later_failure_lists_the_results_that_are_stored() -> None:
    rig = Rig()

    def fail() -> None:
        if len(rig.house.engine.edits) == 4:
            raise ModelError("it went wrong")

    rig.house.engine.at_end = fail
    body = read_failure(await rig.answer({**INPUT, "num_images": 4}))
    assert body.error.details.code == "model_failed"
    assert [one.object_key for one in body.all] == sorted(rig.house.store.results)
    assert len(body.all) == 3


def test_files_beyond_the_limit_of_an_answer_are_left_out(result: EditResult) -> None:
    file = "A" * (MAX_FILE_CHARACTERS // 3)
    one = result.result.model_copy(update={"b64_json": file}, deep=True)
    sent = build_success(EditResult(result=one, results=[one.model_copy(deep=True)] * 4))
    assert ["b64_json" in each for each in sent["results"]] == [True, True, False, False]
    assert "b64_json" in sent["result"]


def test_notes_that_would_make_an_answer_too_large_are_left_out(result: EditResult) -> None:
    meta = result.result.meta.model_copy(update={"notes": ["n" * 40_000]})
    large = result.model_copy(update={"result": result.result.model_copy(update={"meta": meta})})
    answer = build_success(large)
    assert EditResult.model_validate(answer).result.meta.notes == []
    assert build_success(result) == result.model_dump(mode="json")


@pytest.fixture
async def result() -> EditResult:
    return await House().editor.run(REQUEST, job_id="job-1", request_id="job-1")


# --- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.code)
async def test_an_error_is_a_string_with_the_same_fields_beside_it(cls: type[EditError]) -> None:
    rig = Rig()
    rig.house.engine.fault = cls("it went wrong", details={"allow": ["POST"]}, key="inner")
    body = read_failure(await rig.answer())
    assert (body.error.type, body.error.details.code) == (cls.type, cls.code)
    assert body.error.details.retryable == cls.retryable
    assert body.error.details.request_id == "job-1"
    assert "inner" not in body.model_dump_json()


@pytest.mark.parametrize("body", [[], "text", 7, None, True])
async def test_an_input_that_is_not_an_object_is_malformed(body: object) -> None:
    answer = await Rig().worker.handle({"id": "job-1", "input": body})
    assert read_failure(answer).error.details.code == "malformed_body"


async def test_a_job_without_input_is_malformed() -> None:
    answer = await Rig().worker.handle({"id": "job-1"})
    assert read_failure(answer).error.details.code == "malformed_body"


async def test_wrong_fields_are_named() -> None:
    body = read_failure(await Rig().answer({**INPUT, "seed": "one", "colour": 1}))
    assert set(body.error.details.model_dump()["fields"]) == {"seed", "colour"}


async def test_a_failure_that_would_be_too_large_loses_its_details() -> None:
    body = read_failure(
        await Rig().answer({**INPUT, **{"😀" * 60 + str(n): n for n in range(160)}})
    )
    assert body.error.details.model_dump() == {
        "code": "invalid_request",
        "retryable": False,
        "request_id": "job-1",
    }


async def test_an_unexpected_error_reveals_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.house.engine.fault = ZeroDivisionError("/srv/secret")
    body = read_failure(await rig.answer())
    assert (body.error.type, body.error.message) == ("InternalError", InternalError.default_message)
    (record,) = [record for record in caplog.records if record.message == "edit.failed"]
    assert record.exc_info is not None


async def test_each_job_is_logged_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig = Rig()
    await rig.answer()
    await rig.answer({**INPUT, "seed": "one"})
    lines = [record for record in caplog.records if record.message.startswith("edit.")]
    assert [record.message for record in lines] == ["edit.finished", "edit.failed"]
    assert [vars(record)["fields"]["job_id"] for record in lines] == ["job-1", "job-1"]
    finished = vars(lines[0])["fields"]
    assert {"source_cached", "profile", "dtype", "denoise_ms", "total_ms"} <= finished.keys()
    assert lines[1].levelno == logging.INFO


# --- cancellation and the GPU ------------------------------------------------------------------


async def test_a_stopped_job_ends_its_edit_before_the_cancellation_goes_on() -> None:
    rig = Rig()
    pause = Pause()
    rig.house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    running = asyncio.create_task(rig.answer())
    await pause.reached()
    running.cancel()
    await settle()
    assert not running.done()
    pause.release()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert rig.house.engine.steps_taken == 1
    assert rig.house.store.results == []
    await require_idle(rig.house)


@pytest.mark.parametrize("fault", [ModelError("CUDA error"), RuntimeError("CUDA error")])
async def test_a_lost_gpu_refreshes_the_worker(fault: Exception) -> None:
    rig = Rig(is_gpu_lost=True)
    rig.house.engine.fault = fault
    read_failure(await rig.answer())
    assert rig.refreshes == 1


@pytest.mark.parametrize(
    "fault",
    [ModelError("it failed"), OutOfMemory("full"), RuntimeError(), StoreUnavailable("down")],
)
async def test_another_fault_does_not_refresh_the_worker(fault: Exception) -> None:
    rig = Rig()
    rig.house.engine.fault = fault
    read_failure(await rig.answer())
    assert rig.refreshes == 0


async def test_a_model_that_hangs_refreshes_the_worker() -> None:
    rig = Rig(DefunctHost)
    body = read_failure(await rig.answer())
    assert body.error.details.code == "model_lost"
    assert (rig.refreshes, rig.probes) == (1, 0)


async def test_a_fault_outside_the_model_does_not_ask_the_gpu() -> None:
    rig = Rig(is_gpu_lost=True)
    rig.house.store.put_fault = StoreUnavailable("down")
    read_failure(await rig.answer())
    assert rig.probes == 0


# --- both entry points ----------------------------------------------------------------------

OWN = {"job_id", "request_id", "timings_ms"}
OWN_RESULT = {"presigned_url", "object_key", "expires_at", "meta"}
DATA = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"seed": 7, "image_url": DATA},
        {"seed": 7, "output_format": "jpg", "output_quality": 80, "guidance_scale": 1},
        {"seed": 7, "width": 80, "height": 96, "num_inference_steps": 60, "negative_prompt": ""},
    ],
)
async def test_both_entry_points_give_the_same_result(change: dict[str, Any]) -> None:
    endpoint, rig = Endpoint(), Rig()
    request = EditRequest.model_validate({**INPUT, **change})
    by_http = EditResult.model_validate_json(
        bytes((await endpoint.answer(request=request)).body)
    ).result
    by_job = EditResult.model_validate(await rig.answer({**INPUT, **change})).result
    assert by_http.meta.model_dump(exclude=OWN) == by_job.meta.model_dump(exclude=OWN)
    assert by_http.model_dump(exclude=OWN_RESULT) == by_job.model_dump(exclude=OWN_RESULT)
    bodies = [
        place.store.objects[result.object_key].body
        for place, result in ((endpoint.house, by_http), (rig.house, by_job))
    ]
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.code)
async def test_both_entry_points_give_the_same_error(cls: type[EditError]) -> None:
    endpoint, rig = Endpoint(), Rig()
    endpoint.house.engine.fault, rig.house.engine.fault = (
        cls("it went wrong", details={"allow": ["POST"]}, key="inner"),
        cls("it went wrong", details={"allow": ["POST"]}, key="inner"),
    )
    with pytest.raises(cls) as raised:
        await endpoint.answer()
    by_http = json.loads(bytes(error_response(raised.value, request_id="r-1").body))
    by_job = json.loads((await rig.answer())["error"])
    for body in (by_http, by_job):
        del body["error"]["details"]["request_id"]
    assert by_http == by_job


# --- the SDK's log -----------------------------------------------------------------------------


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> RunPodLogger:
    monkeypatch.setattr(RunPodLogger, "log", RunPodLogger.log)
    monkeypatch.setattr(RunPodLogger, "level", "DEBUG")
    redirect_log()
    return RunPodLogger()


def test_the_sdks_lines_become_ours(sdk: RunPodLogger, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sdk.info("Started.", "job-1")
    sdk.warn("careful")
    sdk.error("lost")
    assert [(record.name, record.levelname, record.message) for record in caplog.records] == [
        ("runpod", "INFO", "Started."),
        ("runpod", "WARNING", "careful"),
        ("runpod", "ERROR", "lost"),
    ]
    assert [vars(record)["fields"] for record in caplog.records] == [{"requestId": "job-1"}, {}, {}]


def test_the_sdks_lines_below_info_are_dropped(
    sdk: RunPodLogger, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sdk.debug("Handler output: …")
    sdk.trace("…")
    sdk.tip("…")
    assert caplog.records == []


def test_the_sdks_own_level_holds(
    sdk: RunPodLogger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sdk, "level", "ERROR")
    caplog.set_level(logging.DEBUG)
    sdk.info("Started.")
    sdk.error("lost")
    assert [record.message for record in caplog.records] == ["lost"]
