"""Spans of an edit, and where a trace is given on to: into memory, by OpenTelemetry's own exporter."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpcore
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from support.fakes import URL, FakeStore, House, Pause, until
from support.replicas import CALLER, HOOK, FakeReceiver, Replica
from support.servers.origin import fetch_alone
from support.worker import build_worker
from support.worlds import World, refused, request, run
from urllib3 import HTTPResponse, PoolManager

from retouch import tracing
from retouch.errors import OutOfMemory
from retouch.net.connect import Connector
from retouch.net.download import Downloader
from retouch.net.limits import FetchLimits
from retouch.net.url import parse_url
from retouch.schema import Progress
from retouch.storage.s3_transport import Connections, deadline

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Recorder:
    """Keeps what is recorded; `request` is the span that a server makes of a request."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    @contextmanager
    def request(self, name: str = "request") -> Iterator[Any]:
        tracer = self.provider.get_tracer("test")
        tracing.record_with(self.provider)
        with tracer.start_as_current_span(name) as span:
            yield span.get_span_context()

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return tuple(self._exporter.get_finished_spans())

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def path(self, span: ReadableSpan) -> str:
        """The names from the request down to this span."""
        names = {one.context.span_id: one for one in self.spans if one.context}
        above = names[span.parent.span_id] if span.parent else None
        return f"{self.path(above)}/{span.name}" if above else span.name


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context
    return span.context.trace_id, span.context.span_id


async def test_every_step_of_an_edit_is_a_span_below_its_request() -> None:
    house, recorder = House(), Recorder()
    with recorder.request() as context:
        await run(house)
    assert {recorder.path(span) for span in recorder.spans} == {
        "request",
        "request/edit",
        "request/edit/source.load",
        "request/edit/source.load/source.fetch",
        "request/edit/source.load/source.decode",
        "request/edit/prepare",
        "request/edit/queue",
        "request/edit/model",
        "request/edit/model/condition",
        "request/edit/model/denoise",
        "request/edit/model/vae_decode",
        "request/edit/encode",
        "request/edit/store",
        "request/edit/store/sign",
    }
    assert {ids(span)[0] for span in recorder.spans} == {context.trace_id}


async def test_the_phases_of_the_model_follow_one_another_as_it_measured_them() -> None:
    house, recorder = House(), Recorder()
    with recorder.request():
        await run(house)
    times = [
        (span.start_time or 0, span.end_time or 0)
        for name in ("condition", "denoise", "vae_decode")
        for span in recorder.named(name)
    ]
    assert [round((end - start) / 1e6) for start, end in times] == [1, 2, 3]
    assert [end for _, end in times[:-1]] == [start for start, _ in times[1:]]


async def test_spans_hold_neither_url_nor_prompt_and_name_a_failure_by_its_code() -> None:
    house, recorder = House(), Recorder()
    house.engine.fault = OutOfMemory("s3cr3t")
    with recorder.request():
        await refused(house, OutOfMemory)
    [model] = recorder.named("model")
    assert model.attributes == {"error.type": "out_of_memory"}
    assert not model.status.is_ok
    told = "".join(span.to_json() for span in recorder.spans)
    assert "s3cr3t" not in told
    assert "make colors warmer" not in told


async def test_a_download_that_two_requests_share_is_below_the_first_and_linked_to_the_other() -> (
    None
):
    world, recorder = World(), Recorder()
    world.origin.is_open.clear()

    async def load(name: str) -> None:
        with recorder.request(name):
            await world.load()

    first = asyncio.create_task(load("first"))
    await until(lambda: world.origin.flying)
    second = asyncio.create_task(load("second"))
    await asyncio.sleep(0)
    world.origin.is_open.set()
    await asyncio.gather(first, second)
    [fetch] = recorder.named("source.fetch")
    assert recorder.path(fetch) == "first/source.load/source.fetch"
    loads = {recorder.path(span): span for span in recorder.named("source.load")}
    [link] = loads["second/source.load"].links
    assert (link.context.trace_id, link.context.span_id) == ids(loads["first/source.load"])
    assert not loads["first/source.load"].links


async def test_an_equal_request_is_linked_to_the_edit_that_made_its_result() -> None:
    house, recorder, pause = House(), Recorder(), Pause()
    house.engine.at_step = lambda _: pause.hold()

    seen: list[Progress] = []

    async def edit(name: str) -> None:
        with recorder.request(name):
            await house.editor.run(
                request(seed=7), job_id=name, request_id=name, progress=seen.append
            )

    first = asyncio.create_task(edit("first"))
    await pause.reached()
    seen.clear()
    second = asyncio.create_task(edit("second"))
    await until(lambda: [one.stage for one in seen[-1:]] == ["queue"])
    pause.release()
    await asyncio.gather(first, second)
    edits = {recorder.path(span): span for span in recorder.named("edit")}
    assert len(recorder.named("model")) == 1
    [link] = edits["second/edit"].links
    assert (link.context.trace_id, link.context.span_id) == ids(edits["first/edit"])


async def test_nothing_is_recorded_or_given_on_of_a_request_that_is_not_sampled() -> None:
    house, recorder = House(), Recorder(ALWAYS_OFF)
    with recorder.request():
        await run(house)
        assert tracing.headers() == {}
        assert not tracing.trace_id()
    assert recorder.spans == ()


@pytest.mark.parametrize(
    "traceparent", ["", "00-zz", f"00-{'0' * 32}-00f067aa0ba902b7-01", 7, None]
)
def test_a_traceparent_that_is_none_is_ignored(traceparent: object) -> None:
    with tracing.continued(traceparent):
        assert tracing.headers() == {}


async def test_the_webhook_of_a_job_continues_the_trace_of_its_request() -> None:
    receiver, recorder = FakeReceiver(), Recorder()
    replica = Replica(FakeStore(), receiver=receiver, webhook_scale=0.002)
    with recorder.request() as context:
        await replica.jobs.accept(request(webhook=HOOK), "a", CALLER)
        await until(lambda: receiver.taken)
    await replica.jobs.close()
    [headers] = receiver.headers
    assert headers["traceparent"].split("-")[1] == f"{context.trace_id:032x}"


async def test_a_job_of_runpod_continues_the_trace_in_its_input() -> None:
    house = House()
    seen: list[str] = []
    house.engine.at_step = lambda _: seen.append(tracing.headers()["traceparent"])
    body = {"image_url": URL, "prompt": "warmer", "traceparent": TRACEPARENT}
    answer = await build_worker(house).handle({"id": "run-1", "input": body})
    assert answer["status"] == "success"
    assert {traceparent.split("-")[1] for traceparent in seen} == {TRACE}
    assert tracing.headers() == {}


def test_a_request_to_the_store_continues_the_trace_and_one_without_a_trace_has_no_header(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[Mapping[str, str]] = []

    def urlopen(_: PoolManager, *args: object, headers: Mapping[str, str], **kw: object) -> Any:
        sent.append(headers)
        return HTTPResponse(status=200)

    monkeypatch.setattr(PoolManager, "urlopen", urlopen)
    pool = Connections(max_connections=1, connect_timeout_s=1, read_timeout_s=1, ca_certs=None)
    signed = {"Authorization": "signature"}
    with deadline(5), tracing.continued(TRACEPARENT):
        pool.urlopen("GET", "http://store.example/a", headers=signed)
    with deadline(5):
        pool.urlopen("GET", "http://store.example/a", headers=signed)
    assert sent == [{**signed, "traceparent": TRACEPARENT}, signed]


async def test_the_host_of_a_source_gets_no_trace() -> None:
    class Wire(httpcore.AsyncMockStream):
        async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
            written.append(buffer)

    class Network(httpcore.AsyncMockBackend):
        async def connect_tcp(self, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            return Wire([b"HTTP/1.1 200 -\r\nContent-Length: 1\r\n\r\na"])

    written: list[bytes] = []
    fetcher = Downloader(
        FetchLimits(), Connector(FetchLimits(), resolve=lambda *_: ["1.1.1.1"], network=Network([]))
    )
    with tracing.continued(TRACEPARENT):
        await fetch_alone(fetcher, parse_url("http://pictures.example/a"), timeout_s=5)
    sent = b"".join(written).lower()
    assert b"host: pictures.example" in sent
    assert b"trace" not in sent
    assert TRACE.encode() not in sent
