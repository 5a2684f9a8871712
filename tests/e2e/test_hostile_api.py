"""Hostile requests to the running service; tests/bench/hostile_api.py sends many more."""

from contextlib import suppress

import pytest
from support.attacks.raw_forms import hostile_forms, hostile_images_edits, hostile_jobs
from support.attacks.raw_http import (
    MIB,
    Call,
    fault,
    get,
    hostile_bodies,
    hostile_heads,
    hostile_lengths,
    hostile_paths,
    post,
    send,
    wrong_kinds,
    wrong_methods,
)
from support.attacks.slow_clients import Watch, connect
from support.servers.bentoml_service import Service

pytestmark = pytest.mark.e2e

# The fixture takes images up to 1 MiB.
MAX_BODY_BYTES = 2 * MIB * 4 // 3 + 65536


def hostile_calls() -> list[Call]:
    bodies = [*hostile_bodies(MAX_BODY_BYTES), *hostile_lengths(MAX_BODY_BYTES)]
    bodies += [*hostile_forms(MAX_BODY_BYTES), *hostile_jobs(), *list(hostile_images_edits())[::9]]
    return [*wrong_methods(), *wrong_kinds(), *hostile_heads(), *hostile_paths(), *bodies]


def test_every_hostile_call_is_refused_in_order_and_leaves_no_trace(local: Service) -> None:
    watch = Watch(local.pid)
    before, traces = watch.descriptors, local.output.count("Traceback")
    with watch.peak() as grown:
        faults = [fault(call, send(local.port, call)) for call in hostile_calls()]
    assert not [wrong for wrong in faults if wrong]
    assert len(faults) > 500
    assert local.output.count("Traceback") == traces
    assert grown[0] < 100 * MIB
    assert watch.wait_until_descriptors(before + 2, 30) <= before + 2


def test_an_endless_head_closes_the_connection(local: Service) -> None:
    sent_bytes = 0
    with connect(local.port) as connection, suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nA: ")
        while sent_bytes < 64 * MIB:
            connection.sendall(bytes(65536))
            sent_bytes += 65536
    assert sent_bytes < 16 * MIB, "what the two ends may hold between them is no more"


def test_the_refusal_of_a_pipelined_request_does_not_answer_another(local: Service) -> None:
    answer = send(local.port, Call("", post(b"{}") + get(b"/livez")))
    assert answer.status == 400
    assert b"invalid_request" in answer.body
