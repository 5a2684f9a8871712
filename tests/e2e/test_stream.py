"""Progress as server-sent events, and what happens when the caller leaves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from support.servers.bentoml_service import ALL_DAY, LiveOrigin, Service, request
from support.servers.origin import answer

from retouch.schema import EditResult, ErrorBody

pytestmark = pytest.mark.e2e


def test_a_stream_has_every_stage_and_step_and_ends_with_the_result(local: Service) -> None:
    with local.stream(num_inference_steps=3) as events:
        assert events.response.headers["content-type"].startswith("text/event-stream")
        assert events.response.headers["cache-control"] == "no-store"
        heard = list(events)
    *news, (name, body) = heard
    assert {kind for kind, _ in news} == {"progress"}
    stages = [(told["stage"], told["step"], told["steps"]) for _, told in news]
    assert stages == [
        ("source", 0, 0),
        ("queue", 0, 0),
        ("condition", 0, 3),
        ("denoise", 0, 3),
        ("denoise", 1, 3),
        ("denoise", 2, 3),
        ("vae_decode", 3, 3),
        ("store", 0, 0),
    ]
    assert name == "result"
    result = EditResult.model_validate(body).result
    assert httpx.get(result.presigned_url, trust_env=False).status_code == 200
    assert result.presigned_url.startswith(local.url)


def test_the_stream_of_a_failing_edit_ends_with_the_error(
    local: Service, origin: LiveOrigin
) -> None:
    with local.stream(image_url=origin.offer("/refused", answer(status=403))) as events:
        assert events.response.status_code == 200
        heard = list(events)
    assert [name for name, _ in heard] == ["progress", "error"]
    error = ErrorBody.model_validate(heard[-1][1]).error
    assert error.details.code == "source_refused"
    assert error.details.request_id == events.request_id


def test_a_stream_ends_at_the_deadline_with_the_error(strict: Service) -> None:
    with strict.stream(**ALL_DAY) as events:
        name, body = list(events)[-1]
    assert (name, body["error"]["details"]["code"]) == ("error", "deadline_exceeded")


@contextmanager
def left_stream(service: Service) -> Iterator[str]:
    """Be at work on an edit whose caller reads a stream, and goes at the end."""
    with service.busy() as events:
        yield events.request_id


@contextmanager
def left_request(service: Service) -> Iterator[str]:
    """Be at work on an edit whose caller waits for the answer, and goes at the end."""
    body = httpx.Request("POST", service.url, json=request(**ALL_DAY)).content
    head = (
        f"POST /edit HTTP/1.1\r\nHost: {service.address}\r\nX-Request-ID: leaver\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with service.connect() as connection:
        connection.sendall(head.encode() + body)
        time.sleep(3)  # past the source and the conditioning, which no step ends
        yield "leaver"


@pytest.mark.parametrize("leave", [left_stream, left_request])
def test_a_caller_that_leaves_frees_the_model_within_a_step(local: Service, leave: object) -> None:
    with local.busy() as events:
        began = time.monotonic()
        events.skip_to("progress", step=4)
        step_ms = 1000 * (time.monotonic() - began) / 3
    local.edit()
    with leave(local) as request_id:  # type: ignore[operator]
        assert not local.events("edit.failed", requestId=request_id)
    queue_ms = local.edit()["meta"]["timings_ms"]["queue"]
    print(f"a step takes {step_ms:.0f} ms; the next edit waited {queue_ms:.0f} ms")  # noqa: T201
    failed = local.wait_for_event("edit.failed", requestId=request_id)
    assert failed["code"] == "cancelled"
    assert queue_ms < 2 * step_ms + 200
    assert not local.events("edit.finished", requestId=request_id)


def test_a_caller_that_leaves_the_queue_frees_its_place(local: Service) -> None:
    with local.busy(), local.stream() as waiting:
        waiting.skip_to("progress", stage="queue")
    assert local.edit()
    failed = local.wait_for_event("edit.failed", requestId=waiting.request_id)
    assert failed["code"] == "cancelled"
