"""Prometheus metrics with bounded labels, in place of BentoML's, which has a label a path."""

from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.responses import Response

from retouch.schema import EditResult

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters, gauges and histograms of edits."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._edits = Counter(
            "retouch_edits",
            "Edits that ended, by error code, or success.",
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
            "Edits delivered, by the transformer's dtype; bfloat16 where float16 overflowed.",
            ["dtype"],
            registry=self._registry,
        )
        self._inside = Gauge("retouch_edits_inside", "Edits in progress.", registry=self._registry)

    def in_progress(self) -> AbstractContextManager[None]:
        """Count an edit as in progress while the block runs."""
        return self._inside.track_inprogress()

    def count_success(self, answer: EditResult) -> None:
        """Count a delivered edit and its phases."""
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
        """Return the answer of `/metrics`, in the text format of Prometheus."""
        return Response(
            generate_latest(self._registry), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
