"""Jobs over HTTP, through the service as its users run it."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support.servers.bentoml_service import (
    ALL_DAY,
    Events,
    LiveOrigin,
    Service,
    opened,
    request,
    require_error,
)
from support.servers.origin import answer

pytestmark = pytest.mark.e2e


def new_path() -> str:
    return f"/jobs/{uuid.uuid4().hex}"


@contextmanager
def watch(service: Service, path: str) -> Iterator[Events]:
    headers = {"Accept": "text/event-stream"}
    with service.client.stream("GET", path, headers=headers) as response:
        yield Events(response)


def ended(service: Service, path: str) -> dict[str, Any]:
    """Return a job once it has ended, as a stream of it says."""
    with watch(service, path) as events:
        last = list(events)[-1]
    assert last[0] in {"result", "error"}
    job: dict[str, Any] = service.client.get(path).json()
    assert job["ended_at"]
    return job


def test_an_edit_becomes_a_job_whose_answer_comes_later(either: Service) -> None:
    headers = {"Prefer": "respond-async"}
    accepted = either.ask(headers=headers)
    assert accepted.status_code == 202
    assert accepted.headers["preference-applied"] == "respond-async"
    path = accepted.headers["location"]
    assert path == f"/jobs/{accepted.json()['id']}"
    job = ended(either, path)
    assert job["state"] == "completed"
    assert job["answer"]["status"] == "success"
    assert opened(job["answer"]["result"]["presigned_url"]).status_code == 200
    assert either.events("job.ended", job_id=job["id"], state="completed")


def test_a_put_that_is_repeated_edits_once_and_one_with_another_body_is_refused(
    either: Service,
) -> None:
    path = new_path()
    for _ in range(2):
        assert either.client.put(path, json=request()).status_code in {200, 202}
    job = ended(either, path)
    assert either.client.put(path, json=request()).json()["answer"]["result"] is not None
    assert len(either.events("edit.finished", job_id=job["id"])) == 1
    other = either.client.put(path, json=request(seed=5))
    require_error(other, 409, "BadInput", "job_conflict")


def test_an_idempotency_key_gives_the_first_answer_again(local: Service) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    answers = [local.ask(headers=headers) for _ in range(2)]
    assert [one.status_code for one in answers] == [200, 200]
    keys = {one.json()["result"]["object_key"] for one in answers}
    assert len(keys) == 1
    job_id = answers[0].headers["location"].removeprefix("/jobs/")
    assert len(local.events("edit.finished", job_id=job_id)) == 1
    other = local.ask(headers=headers, seed=5)
    require_error(other, 409, "BadInput", "job_conflict")


def test_a_deleted_job_ends_at_its_next_step(local: Service) -> None:
    path = new_path()
    local.client.put(path, json=request(**ALL_DAY))
    with watch(local, path) as events:
        events.skip_to("progress", stage="denoise")
        running = local.client.get(path).json()
        assert (running["state"], running["progress"]["stage"]) == ("running", "denoise")
        assert local.client.delete(path).json()["state"] in {"running", "cancelled"}
        events.skip_to("error", status="error")
    assert ended(local, path)["state"] == "cancelled"
    assert local.client.delete(path).json()["state"] == "cancelled"


def test_a_job_that_fails_has_the_error_that_the_edit_has(
    local: Service, origin: LiveOrigin
) -> None:
    url = origin.offer("/never-there.png", answer(status=404))
    path = new_path()
    local.client.put(path, json=request(image_url=url))
    job = ended(local, path)
    assert job["state"] == "failed"
    assert job["answer"]["error"]["details"]["code"] == "source_refused"


def test_an_unknown_job_is_not_found(local: Service) -> None:
    require_error(local.client.get(new_path()), 404, "BadInput", "job_not_found")
