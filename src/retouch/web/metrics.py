"""Prometheus metrics with bounded labels, in place of BentoML's, which has a label a path."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from retouch.schema import EditResult

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600)


class Metrics:
    """What is counted about edits."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._edits = Counter(
            "retouch_edits",
            "Edits ended, by code; success is one.",
            ["code"],
            registry=self._registry,
        )
        self._phases = Histogram(
            "retouch_phase_seconds",
            "Seconds of each phase of successful edits.",
            ["phase"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._sources = Counter(
            "retouch_sources", "Sources used, by cache hit.", ["cached"], registry=self._registry
        )
        self._precision = Counter(
            "retouch_precision",
            "Edits delivered, by the transformer's dtype; it changes where float16 overflowed.",
            ["dtype"],
            registry=self._registry,
        )
        self._inside = Gauge(
            "retouch_edits_inside", "Edits in the house now.", registry=self._registry
        )

    def count_inside(self, change: int) -> None:
        """Count edits that come in (+1) and go out (-1)."""
        self._inside.inc(change)

    def count_success(self, answer: EditResult) -> None:
        """Count an edit that was delivered, with its phases."""
        meta = answer.result.meta
        self._edits.labels("success").inc()
        self._sources.labels(str(meta.source.cached).lower()).inc()
        self._precision.labels(meta.dtype).inc()
        for phase, ms in meta.timings_ms.model_dump().items():
            self._phases.labels(phase).observe(ms / 1000)

    def count_failure(self, code: str) -> None:
        """Count an edit that failed."""
        self._edits.labels(code).inc()

    def response(self) -> Response:
        """Answer `/metrics` in the text format of Prometheus."""
        return Response(
            generate_latest(self._registry), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
