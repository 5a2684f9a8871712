import asyncio
import logging
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.fakes import REQUEST, URL, House, Pause, until
from support.web import Endpoint, client, open_host, settings

from retouch.errors import error_classes
from retouch.logs import event
from retouch.schema import EditRequest
from retouch.web.metrics import Metrics

KINDS = ("allocated", "reserved", "free", "total")


def build(house: House | None = None) -> Metrics:
    return Metrics(open_host(settings(), house))


def samples(metrics: Metrics) -> dict[str, float]:
    text = bytes(metrics.response().body).decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def edits(code: str, *, entry: str = "edit", profile: str = "none") -> str:
    labels = {"code": code, "entry": entry, "profile": profile}
    return f"retouch_edits_total{list(labels.items())}"


async def test_a_success_is_counted_with_its_phases_and_its_source() -> None:
    house = House()
    metrics = build()
    for job_id in ("a", "b"):
        answer = await house.editor.run(REQUEST, job_id=job_id, request_id="r")
        metrics.count_success(answer, entry="job")
    found = samples(metrics)
    assert found[edits("success", entry="job", profile="full")] == 2
    assert found["retouch_sources_total[('cached', 'false')]"] == 1
    assert found["retouch_sources_total[('cached', 'true')]"] == 1
    assert found["retouch_precision_total[('dtype', 'float32')]"] == 2
    assert found["retouch_profile_total[('profile', 'full')]"] == 2
    assert found["retouch_phase_seconds_sum[('phase', 'denoise'), ('profile', 'full')]"] == 0.004
    for phase in answer.result.meta.timings_ms.model_dump():
        name = f"retouch_phase_seconds_count[('phase', '{phase}'), ('profile', 'full')]"
        assert found[name] == 2


async def test_each_source_of_an_edit_is_counted() -> None:
    house, metrics = House(), build()
    house.engine.info = replace(house.engine.info, max_areas_px=(1 << 22,) * 3)
    request = EditRequest(image_urls=[URL] * 3, prompt="join")
    metrics.count_success(await house.editor.run(request, job_id="a", request_id="r"), entry="edit")
    assert samples(metrics)["retouch_sources_total[('cached', 'false')]"] == 3


def test_a_failure_is_counted_by_its_code() -> None:
    metrics = build()
    for cls in error_classes():
        metrics.count_failure(cls.code, entry="edit", profile=None)
    metrics.count_failure("queue_full", entry="edit", profile=None)
    found = samples(metrics)
    assert found[edits("queue_full")] == 2
    assert found[edits("cancelled")] == 1


def test_a_failure_is_counted_by_its_profile_only_if_that_is_offered() -> None:
    metrics = build(House())
    for profile in (None, "full", "a caller's text"):
        metrics.count_failure("queue_full", entry="openai", profile=profile)
    found = samples(metrics)
    assert found[edits("queue_full", entry="openai", profile="full")] == 2
    assert found[edits("queue_full", entry="openai", profile="none")] == 1
    assert "caller" not in "".join(found)


def test_the_phases_of_the_start_are_shown() -> None:
    host = open_host(settings(), House())
    host.start_phases_s = {"process_s": 1.5, "weights_s": 20.0}
    found = samples(Metrics(host))
    assert found["retouch_start_seconds[('phase', 'process')]"] == 1.5
    assert found["retouch_start_seconds[('phase', 'weights')]"] == 20


async def test_edits_are_counted_while_they_wait_and_run() -> None:
    endpoint, pause = Endpoint(), Pause()
    endpoint.house.engine.at_step = lambda _: pause.hold()
    edits = [asyncio.create_task(endpoint.answer())]
    await pause.reached()
    edits += [asyncio.create_task(endpoint.answer()) for _ in range(2)]
    await until(lambda: "retouch_edits_waiting 2.0" in endpoint.counts)
    found = samples(endpoint.metrics)
    assert (found["retouch_edits_inside[]"], found["retouch_edits_running[]"]) == (3, 1)
    pause.release()
    await asyncio.gather(*edits)
    found = samples(endpoint.metrics)
    for name in ("inside", "waiting", "running"):
        assert found[f"retouch_edits_{name}[]"] == 0


def test_what_is_loaded_is_named_once_it_is_ready() -> None:
    assert samples(build())["retouch_ready[]"] == 0
    found = samples(build(House()))
    assert found["retouch_ready[]"] == 1
    (info,) = [name for name in found if name.startswith("retouch_model_info")]
    assert "('model', 'fake')" in info


def test_the_process_is_measured_and_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        mem_get_info=lambda: (3, 4),
        memory_allocated=lambda: 1,
        memory_reserved=lambda: 2,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = samples(build())
    assert found["process_resident_memory_bytes[]"] > 0
    sizes = [found[f"retouch_gpu_memory_bytes[('kind', '{kind}')]"] for kind in KINDS]
    assert sizes == [1, 2, 3, 4]
    cuda.is_initialized = lambda: False
    assert not [name for name in samples(build()) if name.startswith("retouch_gpu")]


def test_while_torch_is_imported_no_gpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert not [name for name in samples(build()) if name.startswith("retouch_gpu")]


def test_events_are_counted_by_name_and_other_lines_are_not() -> None:
    metrics, log = build(), logging.getLogger("retouch.test_metrics")
    metrics.count_events(log)
    event(log, "store.retried", level=logging.WARNING, wait_ms=5)
    event(log, "store.retried", level=logging.WARNING, wait_ms=6)
    log.warning("a sentence")
    found = samples(metrics)
    assert found["retouch_events_total[('event', 'store.retried')]"] == 2
    assert not [name for name in found if "sentence" in name]


async def test_requests_are_counted_by_route_and_status() -> None:
    async with client() as http:
        await http.post("/edit", json={})
        await http.get("/livez?token=secret")
        await http.get("/nothing/secret")
        text = (await http.get("/metrics")).text
    for route, status in (("/edit", 400), ("/livez", 200), ("none", 404)):
        assert (
            f'retouch_http_request_seconds_count{{route="{route}",status="{status}"}} 1.0' in text
        )
    assert "secret" not in text


def test_the_answer_is_in_the_format_of_prometheus() -> None:
    assert build().response().media_type == "text/plain; version=0.0.4; charset=utf-8"
