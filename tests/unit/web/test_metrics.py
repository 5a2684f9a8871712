from prometheus_client.parser import text_string_to_metric_families
from support.fakes import REQUEST, House

from retouch.errors import error_classes
from retouch.web.metrics import Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    text = bytes(metrics.response().body).decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_a_success_is_counted_with_its_phases_and_its_source() -> None:
    house = House()
    metrics = Metrics()
    for job_id in ("a", "b"):
        answer = await house.editor.run(REQUEST, job_id=job_id, request_id="r")
        metrics.count_success(answer)
    found = samples(metrics)
    assert found["retouch_edits_total[('code', 'success')]"] == 2
    assert found["retouch_sources_total[('cached', 'false')]"] == 1
    assert found["retouch_sources_total[('cached', 'true')]"] == 1
    assert found["retouch_precision_total[('dtype', 'float32')]"] == 2
    assert found["retouch_phase_seconds_sum[('phase', 'denoise')]"] == 0.004
    for phase in answer.result.meta.timings_ms.model_dump():
        assert found[f"retouch_phase_seconds_count[('phase', '{phase}')]"] == 2


def test_a_failure_is_counted_by_its_code() -> None:
    metrics = Metrics()
    for cls in error_classes():
        metrics.count_failure(cls.code)
    metrics.count_failure("queue_full")
    found = samples(metrics)
    assert found["retouch_edits_total[('code', 'queue_full')]"] == 2
    assert found["retouch_edits_total[('code', 'cancelled')]"] == 1


def test_edits_in_progress_are_counted_up_and_down() -> None:
    metrics = Metrics()
    with metrics.in_progress():
        assert samples(metrics)["retouch_edits_inside[]"] == 1
    assert samples(metrics)["retouch_edits_inside[]"] == 0


def test_the_answer_is_in_the_format_of_prometheus() -> None:
    assert Metrics().response().media_type == "text/plain; version=0.0.4; charset=utf-8"
