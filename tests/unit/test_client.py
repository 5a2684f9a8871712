import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from support.fakes import REQUEST, URL, House

from retouch import client
from retouch.client import Client, read_error, read_status
from retouch.errors import (
    Cancelled,
    DeadlineExceeded,
    EditError,
    InternalError,
    Overloaded,
    RouteNotFound,
    SourceStatusError,
    Unauthorized,
    error_classes,
)
from retouch.schema import EditResult, error_body


class Runpod:
    """Answers requests one by one from a list: a status code, a body, or an exception."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.client = Client("e1", "the-key", transport=httpx.MockTransport(self._answer))

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, int):
            return httpx.Response(answer)
        return httpx.Response(200, json=answer)

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url.path}" for request in self.requests]


@pytest.fixture(autouse=True)
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only sleeping advances."""
    slept: list[float] = []
    monkeypatch.setattr(client.time, "sleep", slept.append)
    monkeypatch.setattr(client.time, "monotonic", lambda: sum(slept))
    return slept


@pytest.fixture
async def result() -> dict[str, Any]:
    answer = await House().editor.run(REQUEST, job_id="job-1", request_id="job-1")
    return answer.model_dump(mode="json")


def failed(error: EditError) -> dict[str, Any]:
    return {"status": "FAILED", "error": error_body(error, request_id="j").model_dump_json()}


def test_a_request_is_submitted_with_the_key() -> None:
    runpod = Runpod({"id": "j1", "status": "IN_QUEUE"}, {"id": "j2", "status": "IN_QUEUE"})
    with runpod.client as endpoint:
        assert endpoint.submit(REQUEST) == "j1"
        assert endpoint.submit({"image_url": URL, "prompt": "make colors warmer"}) == "j2"
    assert runpod.asked == ["POST /v2/e1/run"] * 2
    bodies = [json.loads(request.content) for request in runpod.requests]
    assert bodies[0] == bodies[1]
    assert bodies[0] == {"input": {"image_url": URL, "prompt": "make colors warmer"}}
    assert runpod.requests[0].headers["authorization"] == "Bearer the-key"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, Unauthorized),
        (403, Unauthorized),
        (404, RouteNotFound),
        (429, Overloaded),
        (400, httpx.HTTPStatusError),
        (500, httpx.HTTPStatusError),
    ],
)
def test_a_refused_request_is_raised_as_an_error(status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        Runpod(status).client.submit(REQUEST)


def test_a_wait_reports_each_new_progress_and_returns_the_result(result: dict[str, Any]) -> None:
    steps = [{"stage": "denoise", "step": step} for step in (1, 1, 2)]
    runpod = Runpod(
        {"status": "IN_QUEUE"},
        *({"status": "IN_PROGRESS", "output": step} for step in steps),
        {"status": "COMPLETED", "output": result},
    )
    reported: list[Mapping[str, Any]] = []
    answer = runpod.client.wait("j1", progress=reported.append)
    assert answer == EditResult.model_validate(result)
    assert reported == [steps[0], steps[2]]
    assert set(runpod.asked) == {"GET /v2/e1/status/j1"}


def test_a_wait_survives_transient_faults(result: dict[str, Any]) -> None:
    passing = (
        httpx.ConnectError("down"),
        httpx.ReadTimeout("slow"),
        *(500, 502, 503, 522, 524, 429),
    )
    runpod = Runpod(*passing, {"status": "COMPLETED", "output": result})
    assert runpod.client.wait("j1").status == "success"


def test_a_submission_without_a_job_id_is_an_error() -> None:
    with pytest.raises(InternalError, match="returned no job id: no workers"):
        Runpod({"error": "no workers"}).client.submit(REQUEST)


def test_a_wait_ends_at_a_permanent_fault() -> None:
    with pytest.raises(httpx.HTTPStatusError):
        Runpod(400).client.wait("j1")
    with pytest.raises(RouteNotFound):
        Runpod(404).client.wait("j1")


def test_a_wait_has_an_end(slept_s: list[float]) -> None:
    runpod = Runpod(*[{"status": "IN_PROGRESS"}] * 20)
    with pytest.raises(TimeoutError):
        runpod.client.wait("j1", timeout_s=5, every_s=1)
    assert sum(slept_s) == 5


def test_an_edit_is_submitted_and_waited_for(result: dict[str, Any]) -> None:
    runpod = Runpod({"id": "j1"}, {"status": "COMPLETED", "output": result})
    assert runpod.client.edit(REQUEST).result.meta.job_id == "job-1"


@pytest.mark.parametrize("left", [KeyboardInterrupt(), ZeroDivisionError(), None])
def test_an_edit_is_cancelled_if_its_wait_ends_early(left: BaseException | None) -> None:
    runpod = Runpod({"id": "j1"}, {"status": "IN_PROGRESS", "output": {"step": 1}}, {})

    def leave(_: object) -> None:
        if left is not None:
            raise left

    with pytest.raises(type(left or TimeoutError())):
        runpod.client.edit(REQUEST, timeout_s=0.5, progress=leave)
    assert runpod.asked[-1] == "POST /v2/e1/cancel/j1"


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.code)
def test_a_failed_job_raises_the_class_it_failed_with(cls: type[EditError]) -> None:
    error = cls("it went wrong", details={"more": 1})
    with pytest.raises(cls) as raised:
        Runpod(failed(error)).client.wait("j1")
    assert type(raised.value) is cls
    assert raised.value.message == str(raised.value) == error.message
    assert raised.value.details.items() >= error.details.items()
    assert raised.value.details["request_id"] == "j"


def test_an_overload_says_when_to_try_again() -> None:
    error = read_error(failed(Overloaded("full", details={"retry_after": 7}))["error"])
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 7


def test_a_code_of_a_later_version_is_an_edit_error() -> None:
    body = error_body(SourceStatusError("no"), request_id="j").model_dump()
    body["error"]["details"]["code"] = "source_melted"
    error = read_error(json.dumps(body))
    assert (type(error), error.message, error.details["code"]) == (EditError, "no", "source_melted")


@pytest.mark.parametrize("text", [None, "", "worker exited", "{}", {"type": "x"}, "x" * 9000])
def test_an_error_of_the_platform_is_an_internal_error(text: object) -> None:
    error = read_error(text)
    assert isinstance(error, InternalError)
    assert len(error.message) <= 500


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        ({"status": "CANCELLED"}, Cancelled),
        ({"status": "TIMED_OUT"}, DeadlineExceeded),
        ({"status": "COMPLETED"}, InternalError),
        ({"status": "COMPLETED", "output": {"status": "success"}}, InternalError),
        ({"status": "FAILED"}, InternalError),
    ],
)
def test_an_end_without_a_result_is_an_error(job: dict[str, Any], kind: type[EditError]) -> None:
    status = read_status(job)
    assert type(status.error) is kind
    assert status.state == job["status"]


@pytest.mark.parametrize("output", [None, "text", 7])
def test_a_running_job_is_not_an_error(output: object) -> None:
    status = read_status({"status": "IN_PROGRESS", "output": output})
    assert (status.error, status.result, status.progress) == (None, None, None)
