"""Runs the cases of `addresses` through the real fetcher and watches every connect.

Only two things are faked: what a name resolves to (libc itself reads literals), and that public
addresses lead to an origin on 127.0.0.1. Any other address is dialled for real; the watch
records it and stops it before a packet leaves.
"""

import base64
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote

import httpcore

from retouch.editing.adapter_ports import HeldAdapter
from retouch.editing.ports import AdapterInfo
from retouch.editing.source_set import load_all
from retouch.errors import SourceRedirectError, SourceUnreachable
from retouch.net.connect import Connector
from retouch.net.download import Downloader
from retouch.net.download_limiter import DownloadLimiter
from retouch.net.limits import FetchLimits
from retouch.net.post import Poster
from retouch.net.url import parse_url
from retouch.schema import EditRequest
from retouch.sources.adapters import AdapterLoader
from retouch.sources.cache_entry import sha256_hex
from retouch.sources.loader import SourceLoader, SourceSettings
from support.attacks.addresses import (
    PUBLIC,
    REDIRECTS,
    STEP,
    STEP_V6,
    Case,
    list_cases,
    list_public,
    list_targets,
)
from support.connects import watch_connects
from support.fakes import PNG, FakeDecoder, FakeStore, picture
from support.servers.origin import Exchange, Names, Origin, answer, fetch_alone, redirect

BODY = PNG
DATA_URL = "data:image/png;base64," + base64.b64encode(picture("blue")).decode()
REFUSED = (ValueError, SourceUnreachable, SourceRedirectError)
LED_TO_ORIGIN = frozenset(map(ip_address, (*PUBLIC, STEP, STEP_V6)))


class Watch:
    """Records each connection that is tried, and stops all but those to the origin."""

    def __init__(self) -> None:
        self.connects: list[Any] = []

    @contextlib.contextmanager
    def over(self, origin: tuple[str, int]) -> Iterator[None]:
        def see(address: Any) -> None:
            self.connects.append(address)
            if address != origin:
                raise ConnectionRefusedError("stopped by the watch")

        with watch_connects(see):
            yield


class Passage(httpcore.AsyncNetworkBackend):
    """Dials the origin for a public address, and every other address itself."""

    def __init__(self, origin_port: int) -> None:
        self._origin_port = origin_port
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        if ip_address(host) in LED_TO_ORIGIN:
            host, port = "127.0.0.1", self._origin_port
        return await self._network.connect_tcp(host, port, *args, **options)


class Tally:
    """The number of cases of each kind, and the failures."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    def note(self, case: Case, fault: str | None) -> None:
        self.counts[case.way] += 1
        if fault:
            self.violations.append(f"{case.way}: {case.target.kind} {case.url}: {fault}")


async def _lead(exchange: Exchange) -> None:
    """Redirect as the path says, `/code/location`, or answer."""
    _, code, *rest = exchange.target.split("/", 2)
    script = redirect(unquote(rest[0]), status=int(code)) if rest else answer(BODY)
    await script(exchange)


class Runner:
    """One fetcher for all cases. `steps` counts the public hosts that a case leads through first."""

    def __init__(self, watch: Watch, origin_port: int) -> None:
        self._watch = watch
        self._names = Names({})
        self._limits = FetchLimits(max_bytes=1 << 16, connect_timeout_s=2)
        self._passage = Passage(origin_port)
        self._fetcher = Downloader(
            self._limits, Connector(self._limits, resolve=self.resolve, network=self._passage)
        )

    def resolve(self, host: str, port: int) -> Sequence[str]:
        with contextlib.suppress(socket.gaierror):  # libc reads literals; names do not go to DNS
            numeric = socket.getaddrinfo(
                host.encode(), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
            return [str(sockaddr[0]) for *_, sockaddr in numeric]
        return self._names(host, port)

    async def call(self, url: str) -> bytes:
        """Do what is attacked; the answer is `BODY` where the origin was reached."""
        return (await fetch_alone(self._fetcher, parse_url(url), timeout_s=10)).body or b""

    async def _end(self, case: Case) -> bytes | Exception:
        self._names = Names(case.names)
        self._watch.connects.clear()
        try:
            return await self.call(case.url)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is judged
            return error

    async def refuse(self, case: Case) -> str | None:
        """Return what is wrong where the case was not refused before the dial."""
        end = await self._end(case)
        if (dials := len(self._watch.connects)) != case.steps:
            return f"{dials} connects instead of {case.steps}: {self._watch.connects}"
        return None if isinstance(end, REFUSED) else f"ended as {end!r}"

    async def reach(self, case: Case) -> str | None:
        end = await self._end(case)
        return None if end == BODY else f"ended as {end!r}"


class LoraRunner(Runner):
    """Loads a LoRA file from each case."""

    def __init__(self, watch: Watch, origin_port: int) -> None:
        super().__init__(watch, origin_port)
        fetcher = Downloader(
            self._limits, Connector(self._limits, resolve=self.resolve, network=self._passage)
        )
        self._loader = AdapterLoader(
            downloader=fetcher, limiter=DownloadLimiter(max_bytes=1 << 16), keeper=self
        )

    async def call(self, url: str) -> bytes:
        held = await self._loader.load(url, "0" * 64, timeout_s=10)
        return bytes(held.weights)

    def find(self, _sha256: str) -> None:
        return None

    def add(self, body: bytes, sha256: str) -> HeldAdapter:
        return HeldAdapter(AdapterInfo("", sha256, 1, 1), body)


class FieldRunner(Runner):
    """Loads each case as what a request has in `field`, beside a picture that needs no connection."""

    def __init__(self, watch: Watch, origin_port: int, *, field: str) -> None:
        super().__init__(watch, origin_port)
        self._field = field
        fetcher = Downloader(
            self._limits, Connector(self._limits, resolve=self.resolve, network=self._passage)
        )
        self._sources = SourceLoader(
            store=FakeStore(),
            downloader=fetcher,
            decoder=FakeDecoder(),
            limiter=DownloadLimiter(),
            settings=SourceSettings(timeout_s=10),
        )

    async def call(self, url: str) -> bytes:
        fields = {"image_url": DATA_URL, "mask_url": url}
        if self._field == "image_urls":
            fields = {"image_urls": [DATA_URL, url]}
        asked = EditRequest.model_validate({"prompt": "p", "cache": "no-store", **fields})
        images, mask = await load_all(self._sources, asked, timeout_s=10, max_bytes=1 << 20)
        return BODY if (mask or images[1]).content_sha256 == sha256_hex(BODY) else b""


class WebhookRunner(Runner):
    """Posts to each case as to a webhook, which may use the cases' http here."""

    def __init__(self, watch: Watch, origin_port: int) -> None:
        super().__init__(watch, origin_port)
        self._poster = Poster(
            self._limits, Connector(self._limits, resolve=self.resolve, network=self._passage)
        )

    async def call(self, url: str) -> bytes:
        status = await self._poster.post(parse_url(url), b"{}", {}, timeout_s=10)
        if status in REDIRECTS:  # followed by nobody: one connect to the public host
            raise SourceRedirectError(f"answered {status}")
        return BODY if status == 200 else b""


@contextlib.asynccontextmanager
async def runner(
    watch: Watch, kind: Callable[[Watch, int], Runner] = Runner
) -> AsyncIterator[Runner]:
    async with Origin(_lead) as origin:
        with watch.over(("127.0.0.1", origin.port)):
            yield kind(watch, origin.port)


async def run_matrix(
    watch: Watch,
    *,
    seed: int,
    extra: int,
    every: int = 1,
    kind: Callable[[Watch, int], Runner] = Runner,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Tally, Tally]:
    """Run every `every`th refused case, and of the public ones more: they need fewer.

    `extra` are random addresses a network.
    """
    refused, public = Tally(), Tally()
    cases = list(list_cases(list_targets(random.Random(seed), extra=extra)))[::every]  # noqa: S311
    async with runner(watch, kind) as run:
        for done, case in enumerate(cases):
            refused.note(case, await run.refuse(case))
            if done % 2000 == 0:
                progress(f"{done} of {len(cases)} cases, {len(refused.violations)} violations")
        for case in list(list_cases(list_public()))[:: every // 7 or 1]:
            public.note(case, await run.reach(case))
    return refused, public
