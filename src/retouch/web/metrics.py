"""Prometheus metrics with bounded labels, in place of BentoML's, which have a label a path."""

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.responses import Response

from retouch import __version__
from retouch.editing.profiles import choose_profile
from retouch.errors import EditError
from retouch.lifecycle import ModelHost
from retouch.schema import EditResult
from retouch.web.workers import Workers

M = TypeVar("M")
NO_PROFILE = "none"
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters, gauges and histograms. `host` is asked what is ready.

    Of several workers each writes to files, from which whichever is scraped adds them up; gauges of
    the others are as old as their last `observe`. `retouch_model` is that of the one that answers.
    """

    def __init__(self, host: ModelHost, workers: Workers | None = None) -> None:
        self._host = host
        self._workers = workers = workers or Workers()
        self._registry = CollectorRegistry()
        self._own = CollectorRegistry()  # what is not added up
        if workers.several:
            self._own.register(_ProcessesCollector(workers))
        else:
            ProcessCollector(registry=self._own)
        add, timed = self._add, partial(Histogram, buckets=_SECONDS)
        gauge = partial(Gauge, multiprocess_mode="livesum")
        worker = ["worker"] if workers.several else []
        edits = "Edits that ended, by error code or success, entry point and profile."
        self._edits = add(Counter, "retouch_edits", edits, "code", "entry", "profile")
        phases = "Phases of successful edits."
        self._phases = add(timed, "retouch_phase_seconds", phases, "phase", "profile")
        self._sources = add(Counter, "retouch_sources", "Sources used, by cache hit.", "cached")
        dtypes = "Edits delivered, by the transformer's dtype; bfloat16 where float16 overflowed."
        self._precision = add(Counter, "retouch_precision", dtypes, "dtype")
        self._profiles = add(Counter, "retouch_profile", "Edits delivered, by profile.", "profile")
        self._inside = add(gauge, "retouch_edits_inside", "Edits in progress.")
        self._waiting = add(gauge, "retouch_edits_waiting", "Edits that wait for the model.")
        self._running = add(gauge, "retouch_edits_running", "Edits on the model.")
        requests = "HTTP requests, by the pattern of their route and their status."
        self._requests = add(timed, "retouch_http_request_seconds", requests, "route", "status")
        events = "Log events by name, as store.retried."
        self._events = add(Counter, "retouch_events", events, "event")
        self._ready = add(gauge, "retouch_ready", "Workers whose model is loaded and warm.")
        starts = "Phases of this process's start, from its creation to the first edit it can make."
        self._start = add(gauge, "retouch_start_seconds", starts, "phase", *worker)
        self._model = Info("retouch_model", "What is loaded.", registry=self._own)
        memory = "GPU memory; allocated and reserved by this process."
        self._gpu = add(gauge, "retouch_gpu_memory_bytes", memory, "kind", *worker)
        for entry in ("edit", "job", "openai"):  # series before the first edit
            self._edits.labels("success", entry, NO_PROFILE)

    def _add(self, kind: Callable[..., M], name: str, text: str, *labels: str) -> M:
        return kind(name, text, labels, registry=self._registry)

    def in_progress(self) -> AbstractContextManager[None]:
        """Count an edit as in progress while the block runs."""
        return self._inside.track_inprogress()

    def count_success(self, answer: EditResult, *, entry: str) -> None:
        """Count a delivered edit and its phases."""
        meta = answer.result.meta
        self._edits.labels("success", entry, meta.profile).inc()
        for source in meta.sources:
            self._sources.labels(str(source.cached).lower()).inc()
        self._precision.labels(meta.dtype).inc()
        self._profiles.labels(meta.profile).inc()
        if meta.reused:
            return  # it had no phases: zeros would spoil the histograms
        for phase, ms in answer.sum_timings().items():
            self._phases.labels(phase, meta.profile).observe(ms / 1000)

    def count_failure(self, code: str, *, entry: str, profile: str | None) -> None:
        """Count an edit that failed, whose request named this profile."""
        try:
            name = choose_profile(profile, self._host.editor.info).name
        except EditError:  # a label must not hold a caller's text
            name = NO_PROFILE
        self._edits.labels(code, entry, name).inc()

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request by the pattern of its route."""
        self._requests.labels(route, str(status)).observe(seconds)

    def count_events(self, log: logging.Logger) -> None:
        """Count what `log` and its children log through `retouch.logs.event`."""
        log.addHandler(_EventCounter(self._events))

    def response(self) -> Response:
        """Return the answer of `/metrics`, in the text format of Prometheus."""
        self.observe()
        counted = self._registry
        if self._workers.several:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)  # type: ignore[no-untyped-call]
        text = generate_latest(counted) + generate_latest(self._own)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    def observe(self) -> None:
        """Set the gauges to the present state."""
        worker = [str(self._workers.index)] if self._workers.several else []
        try:
            editor = self._host.editor
        except EditError:
            self._ready.set(0)
        else:
            info = editor.info
            self._ready.set(1)
            for phase, seconds in self._host.start_phases_s.items():
                self._start.labels(phase.removesuffix("_s"), *worker).set(seconds)
            self._waiting.set(editor.waiting)
            self._running.set(editor.running)
            self._model.info(
                {
                    "version": __version__,
                    "model": info.model,
                    "revision": info.revision,
                    "dtype": info.dtype,
                    "memory_plan": info.memory_plan,
                }
            )
        for kind, count in _measure_gpu().items():
            self._gpu.labels(kind, *worker).set(count)


class _ProcessesCollector(Collector):
    """The standard metrics of every worker's process, by the worker's number."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of the workers that live."""
        found: dict[str, Metric] = {}
        pids = self._workers.board.pids if self._workers.board else {}
        for index, pid in pids.items():
            for one in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                every = found.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    every.add_sample(sample.name, {"worker": str(index)}, sample.value)
        return found.values()


class _EventCounter(logging.Handler):
    def __init__(self, counter: Counter) -> None:
        super().__init__()
        self._counter = counter

    def emit(self, record: logging.LogRecord) -> None:
        """Count an event; its name is constant, so the labels are bounded."""
        if hasattr(record, "fields"):
            self._counter.labels(record.msg).inc()


def _measure_gpu() -> dict[str, int]:
    """Return bytes of the current GPU, or nothing without one; never the first to import torch."""
    # While another thread imports torch it has no `cuda`: that is set once the submodule is whole.
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return {}
    free, total = cuda.mem_get_info()
    return {
        "allocated": cuda.memory_allocated(),
        "reserved": cuda.memory_reserved(),
        "free": free,
        "total": total,
    }
