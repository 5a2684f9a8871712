"""Several results of one request, however it is sent: the same list, with links that open."""

import asyncio
from typing import Any

import httpx
import pytest
from support.fakes import House
from support.web import BODY, client, open_host, parse_events, settings

from retouch.errors import ModelError

SEVERAL = {**BODY, "num_images": 4}


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    """An editor with a store whose links are local, as they are without S3."""
    house = House()
    monkeypatch.setattr(house.store, "link", lambda key, expires_in_s: f"/files/{key}?sig")
    return house


def fail_at_the_third(house: House) -> None:
    def fail() -> None:
        if len(house.engine.edits) == 3:
            raise ModelError("it went wrong")

    house.engine.at_end = fail


def require_links(results: list[dict[str, Any]], house: House, count: int) -> None:
    """Require the results of `count` seeds, each by a whole link to an object that is there."""
    seeds = [result["meta"]["seed"] for result in results]
    assert seeds == [SEVERAL["seed"] + number for number in range(count)]
    for result in results:
        assert result["object_key"] in house.store.objects
        assert result["presigned_url"] == f"http://retouch.example/files/{result['object_key']}?sig"


async def ended(http: httpx.AsyncClient, place: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            job: dict[str, Any] = (await http.get(place)).json()
            if job["answer"]:
                return job
            await asyncio.sleep(0.01)


async def test_an_answer_lists_all_results_and_the_first_alone(house: House) -> None:
    async with client(host=open_host(settings(), house)) as http:
        answer = (await http.post("/edit", json=SEVERAL)).json()
    require_links(answer["results"], house, 4)
    assert answer["result"] == answer["results"][0]


async def test_a_stream_ends_with_all_results(house: House) -> None:
    headers = {"Accept": "text/event-stream"}
    async with client(host=open_host(settings(), house)) as http:
        events = parse_events((await http.post("/edit", json=SEVERAL, headers=headers)).text)
    assert [name for name, _ in events[-2:]] == ["progress", "result"]
    require_links(events[-1][1]["results"], house, 4)


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_an_error_lists_what_is_stored(house: House, accept: str) -> None:
    fail_at_the_third(house)
    async with client(host=open_host(settings(), house)) as http:
        response = await http.post("/edit", json=SEVERAL, headers={"Accept": accept})
    if accept == "application/json":
        assert response.status_code == ModelError.status
        body = response.json()
    else:
        body = parse_events(response.text)[-1][1]
    assert body["error"]["details"]["code"] == "model_failed"
    require_links(body["error"]["details"]["results"], house, 2)


async def test_a_job_ends_with_all_results_by_new_links(house: House) -> None:
    async with client(host=open_host(settings(), house)) as http:
        await http.put("/jobs/mine", json=SEVERAL)
        job = await ended(http, "/jobs/mine")
    assert job["state"] == "completed"
    require_links(job["answer"]["results"], house, 4)
    assert job["answer"]["result"] == job["answer"]["results"][0]


async def test_a_failed_job_lists_what_is_stored_by_new_links(house: House) -> None:
    fail_at_the_third(house)
    async with client(host=open_host(settings(), house)) as http:
        await http.put("/jobs/mine", json=SEVERAL)
        job = await ended(http, "/jobs/mine")
        assert job["state"] == "failed"
        require_links(job["answer"]["error"]["details"]["results"], house, 2)
        headers = {"Idempotency-Key": "mine"}
        house.engine.edits.clear()
        waited = await http.post("/edit", json=SEVERAL, headers=headers)
    require_links(waited.json()["error"]["details"]["results"], house, 2)


async def test_phases_are_counted_for_all_results_together(house: House) -> None:
    async with client(host=open_host(settings(), house)) as http:
        await http.post("/edit", json=SEVERAL)
        metrics = (await http.get("/metrics")).text
    lines = [line for line in metrics.splitlines() if 'phase="denoise"' in line]
    values = {line.partition("{")[0]: float(line.split()[-1]) for line in lines}
    assert values["retouch_phase_seconds_sum"] == pytest.approx(0.008)
    assert values["retouch_phase_seconds_count"] == 1
