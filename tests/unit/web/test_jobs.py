"""Jobs over HTTP, over an editor of fakes."""

import asyncio
import logging
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from support.fakes import URL, FakeStore, House, Page, Pause, settle, until
from support.replicas import SECRET
from support.web import BODY, client, open_host, parse_events, require_error, settings

from retouch.errors import (
    EditError,
    InvalidRequest,
    JobConflict,
    JobNotFound,
    MethodNotAllowed,
    OutOfMemory,
    SourceUnreachable,
    StoreUnavailable,
    Unauthorized,
)
from retouch.storage.port import StoredObject

KEYS = {"api_keys": ("key-of-the-first-caller", "key-of-the-second-caller")}
FIRST, SECOND = ({"X-API-Key": key} for key in KEYS["api_keys"])


async def ended(http: httpx.AsyncClient, place: str, **headers: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            job: dict[str, Any] = (await http.get(place, headers=headers)).json()
            if job["answer"]:
                return job
            await asyncio.sleep(0.01)


async def test_an_edit_that_prefers_it_is_answered_by_a_job_whose_answer_is_that_of_an_edit() -> (
    None
):
    async with client() as http:
        begun = await http.post("/edit", json=BODY, headers={"Prefer": "wait=5, respond-async"})
        assert begun.status_code == 202
        assert begun.headers["preference-applied"] == "respond-async"
        place = begun.headers["location"]
        assert place == f"/jobs/{begun.json()['id']}"
        job = await ended(http, place)
        answer = (await http.post("/edit", json=BODY)).json()
        assert job["state"] == "completed"
        assert job["answer"].keys() == answer.keys()
        assert job["answer"]["result"].keys() == answer["result"].keys()
        assert job["answer"]["result"]["meta"]["job_id"] == job["id"]


async def test_a_preference_may_stand_in_a_header_of_its_own_beside_others() -> None:
    house = House()
    async with client(host=open_host(settings(), house)) as http:
        lines = [("Prefer", "wait=5"), ("Prefer", "respond-async")]
        assert (await http.post("/edit", json=BODY, headers=lines)).status_code == 202
        lines = [("Accept", "application/json"), ("Accept", "text/event-stream")]
        stream = await http.post("/edit", json=BODY, headers=lines)
        assert parse_events(stream.text)[-1][0] == "result"


async def test_a_put_begins_a_job_once() -> None:
    house = House()
    async with client(host=open_host(settings(), house)) as http:
        first = await http.put("/jobs/mine", json=BODY)
        assert first.status_code == 202
        await ended(http, "/jobs/mine")
        again = await http.put("/jobs/mine", json=BODY)
        assert (again.status_code, again.json()["state"]) == (200, "completed")
        require_error(await http.put("/jobs/mine", json={**BODY, "seed": 1}), JobConflict)
        require_error(await http.put("/jobs/not.mine", json=BODY), InvalidRequest)
    assert len(house.engine.edits) == 1


async def test_half_of_the_downloads_serve_jobs_and_the_other_jobs_wait() -> None:
    house = House()
    urls = [f"{URL}&{n}" for n in range(5)]
    house.origin.pages |= {url: Page() for url in urls}
    house.origin.is_open.clear()
    async with client(host=open_host(settings(max_downloads=4), house)) as http:
        for n, url in enumerate(urls):
            await http.put(f"/jobs/a{n}", json={**BODY, "image_url": url})
        await until(lambda: house.origin.flying == 2)
        await settle()
        assert house.origin.flying == 2
        house.origin.is_open.set()
        jobs = [await ended(http, f"/jobs/a{n}") for n in range(5)]
    assert {job["state"] for job in jobs} == {"completed"}


async def test_an_id_in_capitals_is_the_same_job() -> None:
    async with client() as http:
        begun = await http.put("/jobs/8F14E45F-CEEA", json=BODY)
        assert begun.headers["location"] == "/jobs/8f14e45f-ceea"
        for name in ("8F14E45F-CEEA", "8f14e45f-ceea"):
            assert (await http.get(f"/jobs/{name}")).json()["id"] == "8f14e45f-ceea"
        await http.delete("/jobs/8F14E45F-CEEA")


def with_url(field: str, url: str) -> dict[str, Any]:
    """A request with `url` in the place that errors call `field`."""
    bare = {name: value for name, value in BODY.items() if name != "image_url"}
    good = str(BODY["image_url"])
    return {
        "image_url": bare | {"image_url": url},
        "image_urls[1]": bare | {"image_urls": [good, url]},
        "mask_url": BODY | {"mask_url": url},
        "loras[0].url": BODY | {"loras": [{"url": url, "sha256": "0" * 64}]},
        "webhook": BODY | {"webhook": url},
    }[field]


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("ftp://a.example/", InvalidRequest),
        ("https://user:password@a.example/", InvalidRequest),
        ("https://a.example:8443/", InvalidRequest),
        ("https://10.0.0.1/", SourceUnreachable),
        ("https://0x7f.1/", SourceUnreachable),
        ("https://[::1]/", SourceUnreachable),
    ],
)
@pytest.mark.parametrize(
    "field", ["image_url", "image_urls[1]", "mask_url", "loras[0].url", "webhook"]
)
async def test_a_url_that_shows_itself_to_be_forbidden_is_refused_before_there_is_a_job(
    field: str, url: str, kind: type[EditError]
) -> None:
    secret = SecretStr(SECRET)
    async with client(host=open_host(settings(webhook_secret=secret), House())) as http:
        put = await http.put("/jobs/mine", json=with_url(field, url))
        preferred = {"Prefer": "respond-async"}
        posted = await http.post("/edit", json=with_url(field, url), headers=preferred)
        for response in (put, posted):
            error = require_error(response, InvalidRequest if field == "webhook" else kind)
            assert field.removesuffix(".url") in str(error["message"])
        require_error(await http.get("/jobs/mine"), JobNotFound)


async def test_a_host_that_is_exempt_from_the_guard_is_so_for_a_job() -> None:
    allowed = {"allowed_source_hosts": ("10.0.0.1:8080",)}
    async with client(host=open_host(settings(**allowed), House())) as http:
        body = BODY | {"image_url": "http://10.0.0.1:8080/a.png"}
        assert (await http.put("/jobs/mine", json=body)).status_code == 202


async def test_a_put_that_accepts_events_follows_its_job() -> None:
    house = House()
    events = {"Accept": "text/event-stream"}
    async with client(host=open_host(settings(), house)) as http:
        first = await http.put("/jobs/mine", json=BODY, headers=events)
        again = await http.put("/jobs/mine", json=BODY, headers=events)
        got = await http.get("/jobs/mine", headers=events)
    for response in (first, again, got):
        assert response.headers["location"] == "/jobs/mine"
        assert parse_events(response.text)[-1][0] == "result"
    assert len(house.engine.edits) == 1


async def test_a_client_that_lost_its_answer_gets_it_by_its_idempotency_key() -> None:
    house = House()
    headers = {"Idempotency-Key": "order 7"}
    async with client(host=open_host(settings(), house)) as http:
        first, again = [await http.post("/edit", json=BODY, headers=headers) for _ in range(2)]
        assert first.status_code == again.status_code == 200
        assert first.headers["location"] == again.headers["location"]
        assert first.json()["result"]["object_key"] == again.json()["result"]["object_key"]
        other = await http.post("/edit", json={**BODY, "seed": 1}, headers=headers)
        require_error(other, JobConflict)
        too_long = await http.post("/edit", json=BODY, headers={"Idempotency-Key": "k" * 256})
        require_error(too_long, InvalidRequest)
    assert len(house.engine.edits) == 1


async def test_a_job_that_is_asked_for_again_after_its_end_is_answered_by_202_as_at_first() -> None:
    headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
    async with client() as http:
        begun = await http.post("/edit", json=BODY, headers=headers)
        job = await ended(http, begun.headers["location"])
        again = await http.post("/edit", json=BODY, headers=headers)
    assert (again.status_code, again.json()["state"]) == (202, "completed")
    assert again.headers["location"] == f"/jobs/{job['id']}"


async def test_a_failed_edit_with_an_idempotency_key_has_its_status() -> None:
    house = House()
    house.engine.fault = OutOfMemory("too large")
    async with client(host=open_host(settings(), house)) as http:
        response = await http.post("/edit", json=BODY, headers={"Idempotency-Key": "k"})
        require_error(response, OutOfMemory)


async def test_a_job_is_streamed_to_its_end() -> None:
    house = House()
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold()
    async with client(host=open_host(settings(), house)) as http:
        place = (await http.put("/jobs/mine", json=BODY)).headers["location"]
        pause.release()
        stream = await http.get(place, headers={"Accept": "text/event-stream"})
        events = parse_events(stream.text)
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert {name for name, _ in events[:-1]} == {"progress"}
        name, answer = events[-1]
        assert (name, answer["status"]) == ("result", "success")
        headers = {"Accept": "text/event-stream", "Idempotency-Key": "k"}
        again = await http.post("/edit", json={**BODY, "seed": 1}, headers=headers)
        assert parse_events(again.text)[-1][0] == "result"


async def test_a_stream_of_a_failed_job_ends_with_its_error() -> None:
    house = House()
    house.engine.fault = OutOfMemory("too large")
    async with client(host=open_host(settings(), house)) as http:
        await http.put("/jobs/mine", json=BODY)
        stream = await http.get("/jobs/mine", headers={"Accept": "text/event-stream"})
        name, body = parse_events(stream.text)[-1]
        assert (name, body["error"]["details"]["code"]) == ("error", "out_of_memory")


class UnreadableEnds(FakeStore):
    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:
        if key.endswith("/ended"):
            raise StoreUnavailable("no answer")
        return super().get(key, max_bytes=max_bytes, timeout_s=timeout_s)


async def test_a_stream_ends_with_an_error_where_the_job_can_no_longer_be_read() -> None:
    house = House(store=UnreadableEnds())
    async with client(host=open_host(settings(), house)) as http:
        stream = await http.put("/jobs/mine", json=BODY, headers={"Accept": "text/event-stream"})
    *_, (name, body) = parse_events(stream.text)
    details = body["error"]["details"]
    assert (name, details["code"], details["retryable"]) == ("error", "store_unavailable", True)
    assert details["request_id"] == stream.headers["x-request-id"]


async def test_a_job_is_cancelled_within_a_step(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    house = House()
    house.engine.stay_at = 1
    async with client(host=open_host(settings(), house)) as http:
        await http.put("/jobs/mine", json=BODY)
        await until(lambda: house.engine.steps_taken == 1)
        response = await http.delete("/jobs/mine")
        assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    [failed] = [vars(one)["fields"] for one in caplog.records if one.message == "edit.failed"]
    assert failed["reason"] == "the caller left or cancelled"
    assert house.engine.steps_taken == 1


async def test_a_job_is_its_key_s_own() -> None:
    async with client(host=open_host(settings(**KEYS), House())) as http:
        require_error(await http.put("/jobs/mine", json=BODY), Unauthorized)
        assert (await http.put("/jobs/mine", json=BODY, headers=FIRST)).status_code == 202
        require_error(await http.get("/jobs/mine", headers=SECOND), JobNotFound)
        require_error(await http.delete("/jobs/mine", headers=SECOND), JobNotFound)
        assert (await ended(http, "/jobs/mine", **FIRST))["state"] == "completed"


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_other_methods_are_refused(method: str) -> None:
    async with client() as http:
        error = require_error(await http.request(method, "/jobs/mine"), MethodNotAllowed)
        assert set(error["details"]["allow"]) == {"DELETE", "GET", "HEAD", "PUT"}
