"""The load test's own eyes: it sees an answer that is another's, and a request that has two or none."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import httpx
import pytest
from support.load.answers import Attempt, send
from support.load.audit import Stored, audit
from support.load.phases import MIX, Arrivals, Load, Phase
from support.load.requests import PICTURES, Ask, Hosts, Requests, draw, read_number
from support.load.soaking import Checkpoint, Soak, judge
from support.processes.process_stats import Holding

REQUESTS = Requests(Hosts(8080), side_px=64, steps=1)
ASK = REQUESTS.edit(7, "new")
STREAMED = REQUESTS.edit(7, "stream", streamed=True)


def result_of(ask: Ask, **meta: Any) -> dict[str, Any]:
    meta = {
        "request_id": f"load-{ask.number}",
        "job_id": f"job-{ask.number}",
        "seed": ask.number,
        "width": ask.side_px,
        "height": ask.side_px,
        "timings_ms": {"queue": 1.0},
        **meta,
    }
    key = f"p/results/{ask.source_id}/job-{ask.number}.png"
    return {"presigned_url": "http://service/file", "object_key": key, "meta": meta}


def judged(
    ask: Ask,
    text: str,
    *,
    status: int = 200,
    request_id: str = "load-7",
    picture: int = 7,
    **more: str,
) -> Attempt:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/file":
            return httpx.Response(200, content=draw(picture))
        return httpx.Response(status, text=text, headers={"X-Request-ID": request_id, **more})

    async def ask_once() -> Attempt:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await send(client, ask, phase="p", due_s=0, began_s=0)

    return asyncio.run(ask_once())


def success(ask: Ask = ASK, **meta: Any) -> str:
    return json.dumps({"status": "success", "result": result_of(ask, **meta)})


@pytest.mark.parametrize("number", [0, 1, 7, 1234, PICTURES - 1])
def test_a_picture_carries_its_number(number: int) -> None:
    assert read_number(draw(number)) == number


def test_an_answer_that_is_the_requests_own_has_no_fault() -> None:
    attempt = judged(ASK, success())
    assert (attempt.end, attempt.code, attempt.faults) == ("answered", "success", [])


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (success(), {"request_id": "load-8"}),
        (success(request_id="load-8"), {}),
        (success(seed=8), {}),
        (success(width=128), {}),
        (success(replace(ASK, source_id="0" * 64)), {}),
        (success(), {"picture": 8}),
    ],
)
def test_an_answer_that_is_anothers_is_a_fault(text: str, changes: dict[str, Any]) -> None:
    assert len(judged(ASK, text, **changes).faults) == 1


def test_a_stream_has_one_end() -> None:
    end = f"event: result\ndata: {success(STREAMED)}\n\n"
    told = 'event: progress\ndata: {"stage": "queue"}\n\n'
    assert not judged(STREAMED, told + end).faults
    for wrong in (told + end + end, end + told):
        assert len(judged(STREAMED, wrong).faults) == 1
    assert judged(STREAMED, told).end == "lost"


def test_a_refusal_tells_when_to_come_back_in_either_form() -> None:
    details = {"code": "queue_full", "request_id": "load-7", "retry_after": 3}
    error = json.dumps({"status": "error", "error": {"details": details}})
    plain = judged(ASK, error, status=429, **{"Retry-After": "3"})
    streamed = judged(STREAMED, f"event: error\ndata: {error}\n\n")
    assert [(each.retry_after_s, each.faults) for each in (plain, streamed)] == [(3, []), (3, [])]


def test_an_error_that_was_not_to_come_is_a_fault() -> None:
    details = {"code": "internal_error", "request_id": "load-7"}
    error = json.dumps({"status": "error", "error": {"details": details}})
    assert judged(ASK, error, status=500).faults == [
        "answered internal_error, not decoder_busy or downloads_full or queue_full or success"
    ]


def delivered(number: int, **changes: Any) -> Attempt:
    attempt = Attempt(
        f"load-{number}", number, "new", "mixed", "p", 0.0, end="answered", code="success"
    )
    values = {"job_id": f"job-{number}", "object_key": f"key-{number}", **changes}
    return replace(attempt, **values)


LOGGED = Counter(
    {(event, f"load-{n}"): 1 for n in (1, 2) for event in ("http.answered", "edit.finished")}
)
TWO = [delivered(1), delivered(2)]
STORED = [Stored("key-1", 1), Stored("key-2", 2)]


def test_one_answer_and_one_result_each_is_no_fault() -> None:
    left = replace(delivered(3), end="left", code="", job_id="", object_key="")
    assert audit(TWO, STORED, LOGGED) == []
    assert audit([*TWO, left], [*STORED, Stored("key-3", 3)], LOGGED) == []


@pytest.mark.parametrize(
    ("attempts", "stored", "more", "said"),
    [
        ([TWO[0], delivered(2, job_id="job-1")], STORED, {}, "job job-1: 2 times"),
        ([*TWO, delivered(2)], STORED, {}, "request load-2: 2 times"),
        ([*TWO, delivered(3, end="lost", code="")], STORED, {}, "load-3 (new) is lost"),
        ([delivered(1), delivered(3)], STORED, {}, "request 2 has no record"),
        (TWO, STORED[:1], {}, "key-2 is not in the store"),
        (TWO, [STORED[0], Stored("key-2", 3)], {}, "key-2 in the store is of seed 3, which"),
        (TWO, [*STORED, Stored("key-4", 4)], {}, "key-4 in the store is of seed 4, which"),
        (TWO, [*STORED, Stored("key-5", 2)], {}, "seed in the store 2: 2 times"),
        (TWO, STORED, {("edit.finished", "load-1"): 1}, "edit.finished of load-1: 2 times"),
        (TWO, STORED, {("http.answered", "load-2"): -1}, "load-2: no line says"),
    ],
)
def test_two_answers_or_none_are_a_fault(
    attempts: list[Attempt], stored: list[Stored], more: dict[tuple[str, str], int], said: str
) -> None:
    logged = LOGGED.copy()
    logged.update(more)
    assert said in "\n".join(audit(attempts, stored, logged))


async def test_arrivals_do_not_wait_for_answers() -> None:
    never = asyncio.Event()

    async def answer(_: httpx.Request) -> httpx.Response:
        await never.wait()
        return httpx.Response(200)

    transport = httpx.MockTransport(answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        load = Load(client, REQUESTS, seed=1)
        await load.run(Phase("p", 0.2, (Arrivals("mixed", 500, {"new": 1}, returning=0),)))
        assert load.under_way > 50
        never.set()
        await load.drain()
    assert not load.under_way
    assert {attempt.end for attempt in load.attempts} == {"lost"}


def test_every_kind_of_request_can_be_made_in_every_turn() -> None:
    asks = [REQUESTS.make(number, kind, number) for kind in MIX for number in range(16)]
    assert {ask.kind for ask in asks} == set(MIX)


def grown(**changes: int) -> list[str]:
    roles = ("supervisor", "worker", "decoders")
    before = {role: Holding(1, 100 << 20, 10, 10) for role in roles}
    after = before | {"worker": replace(before["worker"], **changes)}
    return judge(Soak([Checkpoint(500, 0, before), Checkpoint(5000, 1, after)]), 500)


def test_what_a_soak_may_not_leave_is_found() -> None:
    assert grown() == grown(rss_bytes=103 << 20) == grown(threads=25) == []
    assert grown(rss_bytes=104 << 20) == ["memory grew by 2.00%"]
    assert grown(descriptors=11) == ["descriptors of worker grew from 10 to 11"]
    assert grown(threads=26) == ["threads of worker grew from 10 to 26"]
