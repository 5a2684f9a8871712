"""Webhooks of two replicas on one store; every message is verified by the reference library."""

import asyncio
import logging
from typing import Any

import pytest
from support.fakes import REQUEST, FakeStore, Pause, until
from support.replicas import CALLER, HOOK, FakeReceiver, Replica
from support.worlds import request

from retouch.errors import InvalidRequest, OutOfMemory, Overloaded, StoreDenied
from retouch.jobs import webhooks
from retouch.jobs.webhooks import plan_tries

ASKED = request(webhook=HOOK)


def build(store: FakeStore, receiver: FakeReceiver, **settings: Any) -> Replica:
    return Replica(store, receiver=receiver, **({"webhook_scale": 0.002} | settings))


async def test_the_end_of_a_job_is_sent_once_with_the_body_of_the_job() -> None:
    receiver = FakeReceiver()
    replica = build(FakeStore(), receiver)
    await replica.jobs.accept(ASKED, "a", CALLER)
    job = await replica.jobs.wait("a", "")
    await until(lambda: receiver.taken)
    await replica.jobs.close()
    [message] = receiver.taken
    assert (message["type"], message["timestamp"]) == ("job.completed", job.ended_at)
    told, read = message["data"], job.model_dump(mode="json")
    for one in (told, read):
        del one["answer"]["result"]["expires_at"]  # a GET makes a new link
    assert told == read
    assert "p/jobs/webhooks/a/delivered" in replica.house.store.objects


@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_every_end_has_its_event(end: str) -> None:
    receiver = FakeReceiver()
    replica = build(FakeStore(), receiver)
    if end == "failed":
        replica.house.engine.fault = OutOfMemory("too large")
    else:
        replica.house.engine.stay_at = 0
    await replica.jobs.accept(ASKED, "a", CALLER)
    if end == "cancelled":
        await replica.jobs.cancel("a", "")
    await until(lambda: receiver.taken)
    assert receiver.taken[0]["type"] == f"job.{end}"


async def test_a_refused_message_is_sent_again_with_the_same_id_and_body() -> None:
    receiver = FakeReceiver(statuses=[500, 302, 404])
    replica = build(FakeStore(), receiver)
    await replica.jobs.accept(ASKED, "a", CALLER)
    await until(lambda: "p/jobs/webhooks/a/delivered" in replica.house.store.objects)
    assert len(receiver.taken) == 4
    assert [len(bodies) for bodies in receiver.bodies.values()] == [1]


def test_a_message_is_tried_twelve_times_over_six_hours() -> None:
    tries = plan_tries(1000.0, 1000.5)
    assert (len(tries), tries[0], tries[-1]) == (12, 1000.5, 1000 + 6 * 3600)


@pytest.mark.parametrize(("statuses", "tries"), [([410], {1}), ([500] * 50, {*range(1, 13)})])
async def test_a_receiver_that_wants_none_or_takes_none_is_given_up(
    statuses: list[int], tries: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    receiver = FakeReceiver(statuses=statuses)
    replica = Replica(FakeStore(), receiver=receiver, webhook_scale=5e-6)
    with caplog.at_level(logging.INFO):
        await replica.jobs.accept(ASKED, "a", CALLER)
        await until(lambda: "webhook.given_up" in caplog.messages)
    assert len(receiver.taken) in tries  # on a busy machine most moments are over at the first try
    assert HOOK not in str([record.__dict__ for record in caplog.records])


async def test_without_a_secret_or_by_http_a_webhook_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="WEBHOOK_SECRET"):
        await Replica(FakeStore()).jobs.accept(ASKED, "a", CALLER)
    replica = build(FakeStore(), FakeReceiver())
    for url in ("http://hooks.example/", "https://hooks.example:8443/"):
        with pytest.raises(InvalidRequest, match="ALLOWED_WEBHOOK_HOSTS"):
            await replica.jobs.accept(request(webhook=url), "a", CALLER)


async def test_a_process_that_died_in_an_edit_is_reported_by_another_and_once() -> None:
    store, receiver = FakeStore(), FakeReceiver()
    one, two, three = (build(store, receiver, beat_s=0.1) for _ in range(3))
    pause = Pause()
    one.house.engine.at_step = lambda _: pause.hold()
    await one.jobs.accept(ASKED, "a", CALLER)
    await pause.reached()
    one.die()
    two.jobs.start()
    three.jobs.start()
    await until(lambda: receiver.taken)
    await asyncio.sleep(0.3)
    assert {message["type"] for message in receiver.taken} == {"job.failed"}
    error = receiver.taken[0]["data"]["answer"]["error"]
    assert error["details"]["code"] == "worker_lost"
    assert [len(bodies) for bodies in receiver.bodies.values()] == [1]
    assert (await two.jobs.get("a", "")).state == "failed"
    pause.release()
    for replica in (two, three):
        await replica.jobs.close()


async def test_a_process_that_died_between_the_end_and_its_message_is_stood_in_for() -> None:
    store, receiver = FakeStore(), FakeReceiver(statuses=[500])
    one, two = (build(store, receiver, beat_s=0.2, webhook_scale=9) for _ in range(2))
    await one.jobs.accept(ASKED, "a", CALLER)
    await until(lambda: receiver.taken)
    one.die()
    two.jobs.start()
    await until(lambda: "p/jobs/webhooks/a/delivered" in store.objects)
    assert {message["type"] for message in receiver.taken} == {"job.completed"}
    assert [len(bodies) for bodies in receiver.bodies.values()] == [1]
    await two.jobs.close()


async def test_what_another_live_process_delivers_is_left_to_it() -> None:
    store, receiver = FakeStore(), FakeReceiver(statuses=[500] * 3)
    one, two = build(store, receiver), build(store, receiver)
    two.jobs.start()
    await one.jobs.accept(ASKED, "a", CALLER)
    await until(lambda: "p/jobs/webhooks/a/delivered" in store.objects)
    assert not [key for key in store.objects if "/claim." in key]
    await two.jobs.close()


async def test_a_key_that_may_not_list_ends_the_sweeps_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FakeStore()
    store.list_fault = StoreDenied("no")
    replica = build(store, FakeReceiver())
    with caplog.at_level(logging.WARNING):
        replica.jobs.start()
        await until(lambda: "webhook.sweep_denied" in caplog.messages)
    await replica.jobs.close()


async def test_progress_is_sent_where_it_is_asked_for_and_never_after_the_end() -> None:
    receiver = FakeReceiver()
    # Every 2 ms: ids hold the milliseconds.
    replica = Replica(FakeStore(), receiver=receiver, webhook_scale=4e-4)
    asked = request(webhook=HOOK, webhook_progress=True)
    await replica.jobs.accept(asked, "a", CALLER)
    await until(lambda: receiver.taken and receiver.taken[-1]["type"] == "job.completed")
    await replica.jobs.close()
    kinds = [message["type"] for message in receiver.taken]
    assert set(kinds[:-1]) == {"job.progress"}
    assert len(set(receiver.ids)) == len(receiver.ids)
    assert receiver.taken[0]["data"]["progress"]["stage"]


async def test_webhooks_that_nobody_takes_are_bounded_and_so_are_tries_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "MAX_SENDING", 3)
    monkeypatch.setattr(webhooks, "MAX_TRIES_AT_ONCE", 2)
    receiver = FakeReceiver(is_silent=True)
    replica = Replica(FakeStore(), receiver=receiver)
    for number in range(3):
        await replica.jobs.accept(ASKED, f"a{number}", CALLER)
        await replica.jobs.wait(f"a{number}", "")
    with pytest.raises(Overloaded, match="undelivered"):
        await replica.jobs.accept(ASKED, "b", CALLER)
    await replica.jobs.accept(REQUEST, "c", CALLER)
    await replica.jobs.wait("c", "")
    assert receiver.waiting == 2
    replica.die()  # a close would wait for the receiver


async def test_a_job_without_a_webhook_sends_nothing() -> None:
    receiver = FakeReceiver()
    replica = build(FakeStore(), receiver)
    await replica.jobs.accept(REQUEST, "a", CALLER)
    await replica.jobs.wait("a", "")
    await replica.jobs.close()
    assert receiver.taken == []
