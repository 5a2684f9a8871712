"""Spans of OpenTelemetry where a trace is recorded; without one nothing is done and nothing imported.

A caller's `traceparent` is taken over (W3C Trace Context) and given on to the store and to webhooks,
never to the hosts of sources. Spans hold no URL, prompt or text of an error.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")
Link = Any
"""What another span can be linked to: OpenTelemetry's `SpanContext`."""

_tracers: list[Any] = []  # the one in use is the last: none, unless the process records spans


def record_with(provider: Any) -> None:
    """Record spans with a `TracerProvider` for as long as the process lives."""
    _tracers.append(provider.get_tracer("retouch"))


def current() -> Link | None:
    """Return the context of the current span if it is sampled; never the first to import OpenTelemetry."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    context = api.get_current_span().get_span_context()
    return context if context.trace_flags.sampled else None


def trace_id() -> str:
    """Return the id of the trace that is recorded in 32 hex digits, or nothing."""
    context = current()
    return f"{context.trace_id:032x}" if context else ""


@contextmanager
def span(name: str, /, **attributes: str | bool | float) -> Iterator[None]:
    """Record what runs inside as a step of the current trace; a failure is noted by its code."""
    if not _tracers or current() is None:
        yield
        return
    from opentelemetry.trace import StatusCode

    with _tracers[-1].start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as step:
        try:
            yield
        except BaseException as error:
            step.set_attribute("error.type", str(getattr(error, "code", type(error).__name__)))
            step.set_status(StatusCode.ERROR)
            raise


def run_in(threads: Executor, call: Callable[[], T], *, step: str = "") -> asyncio.Future[T]:
    """Run `call` in one of `threads`, with the caller's context for log and trace.

    With a name it is a `step` of the trace.
    """

    def run() -> T:
        with span(step) if step else nullcontext():
            return call()

    return asyncio.get_running_loop().run_in_executor(threads, copy_context().run, run)


def add_phases(began_ns: int, phases_ms: Mapping[str, float]) -> None:
    """Record phases that are over, one after the other from `began_ns` on (Unix time)."""
    if not _tracers or current() is None:
        return
    for name, ms in phases_ms.items():
        ended_ns = began_ns + int(ms * 1e6)
        _tracers[-1].start_span(name, start_time=began_ns).end(ended_ns)
        began_ns = ended_ns


def link(other: Link | None) -> None:
    """Link the current span to one that did work for it, in this trace or another."""
    if _tracers and other is not None and (own := current()) is not None and own != other:
        sys.modules["opentelemetry.trace"].get_current_span().add_link(other)


def describe(name: str, **attributes: str) -> None:
    """Rename the current span, which another library began, and set attributes of it."""
    if current() is not None:
        here = sys.modules["opentelemetry.trace"].get_current_span()
        here.update_name(name)
        here.set_attributes(attributes)


def headers() -> dict[str, str]:
    """Return the headers that continue the current trace elsewhere; none where none is recorded."""
    given: dict[str, str] = {}
    if current() is not None:
        _propagator().inject(given)
    return given


@contextmanager
def continued(traceparent: object) -> Iterator[None]:
    """Continue a caller's trace inside; anything but a `traceparent` is ignored."""
    if not isinstance(traceparent, str):
        yield
        return
    from opentelemetry import context

    token = context.attach(_propagator().extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        context.detach(token)


def _propagator() -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator()
