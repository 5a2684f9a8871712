import asyncio
from collections.abc import Callable

import pytest
from support.fakes import settle

from retouch.errors import DownloadsFull, Overloaded
from retouch.net.download_limiter import ConnectionLimiter, DownloadLimiter


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move the clock of the event loop, without waiting."""
    skipped_s = 0.0
    loop_time = asyncio.BaseEventLoop.time

    def skip(seconds: float) -> None:
        nonlocal skipped_s
        skipped_s += seconds

    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda self: loop_time(self) + skipped_s)
    return skip


class Downloads:
    """Downloads that hold some bytes and then wait; `ended` has those that made room."""

    def __init__(self, limiter: DownloadLimiter) -> None:
        self.limiter = limiter
        self.ended: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, name: str, count: int, *, is_sending: bool = True) -> None:
        self.tasks.append(asyncio.create_task(self._run(name, count, is_sending=is_sending)))
        await settle()

    async def _run(self, name: str, count: int, *, is_sending: bool) -> None:
        try:
            with self.limiter.admit() as place:
                if not is_sending:
                    place.hold(count)
                    await asyncio.Event().wait()
                async with place.origin_time(600):
                    place.hold(count)
                    await asyncio.Event().wait()
        except DownloadsFull:
            self.ended.append(name)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_over_the_number_the_slowest_download_makes_room(
    wait: Callable[[float], None],
) -> None:
    downloads = Downloads(DownloadLimiter(max_downloads=3))
    for name, count in [("fast", 300), ("slow", 100), ("faster", 400)]:
        await downloads.start(name, count)
    wait(2)
    await downloads.start("new", 0)
    assert downloads.ended == ["slow"]
    await downloads.stop()


async def test_if_every_download_is_young_the_new_one_is_refused(
    wait: Callable[[float], None],
) -> None:
    downloads = Downloads(DownloadLimiter(max_downloads=2))
    await downloads.start("a", 1)
    await downloads.start("b", 1)
    wait(1.9)
    with pytest.raises(Overloaded) as refused, downloads.limiter.admit():
        pytest.fail("admitted")
    assert type(refused.value) is Overloaded
    assert refused.value.retry_after_s == 2
    assert downloads.ended == []
    await downloads.stop()
    with downloads.limiter.admit():
        pass


async def test_over_the_bytes_the_slowest_download_makes_room(
    wait: Callable[[float], None],
) -> None:
    downloads = Downloads(DownloadLimiter(max_bytes=1000))
    await downloads.start("slow", 300)
    await downloads.start("fast", 500)
    wait(2)
    await downloads.start("new", 400)
    assert downloads.ended == ["slow"]
    await downloads.stop()


async def test_the_download_that_goes_over_the_bytes_may_be_the_slowest_itself(
    wait: Callable[[float], None],
) -> None:
    limiter = DownloadLimiter(max_bytes=1000)
    downloads = Downloads(limiter)
    await downloads.start("fast", 900)
    with limiter.admit() as place:
        async with place.origin_time(600):
            wait(2)
            with pytest.raises(DownloadsFull):
                place.hold(101)
    assert downloads.ended == []
    await downloads.stop()


async def test_what_waits_for_us_never_makes_room(wait: Callable[[float], None]) -> None:
    downloads = Downloads(DownloadLimiter(max_downloads=2))
    await downloads.start("waits for a connection", 0, is_sending=False)
    await downloads.start("is decoded", 10, is_sending=False)
    wait(100)
    with pytest.raises(Overloaded), downloads.limiter.admit():
        pytest.fail("admitted")
    await downloads.stop()


async def test_a_download_out_of_time_is_not_reported_as_ended_for_others() -> None:
    with DownloadLimiter().admit() as place, pytest.raises(TimeoutError):
        async with place.origin_time(0):
            await asyncio.Event().wait()


class Clients:
    """Tasks that acquire a connection to a host and keep it."""

    def __init__(self, connections: ConnectionLimiter) -> None:
        self._connections = connections
        self.connected: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def connect(self, *hosts: str) -> None:
        self.tasks += [asyncio.create_task(self._stay(host)) for host in hosts]
        await settle()

    async def disconnect(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _stay(self, host: str) -> None:
        async with self._connections.acquire(host):
            self.connected.append(host)
            try:
                await asyncio.Event().wait()
            finally:
                self.connected.remove(host)


async def test_waiting_for_one_host_does_not_delay_another() -> None:
    clients = Clients(ConnectionLimiter(per_host=2))
    await clients.connect("a", "a", "a", "a", "b")
    assert clients.connected == ["a", "a", "b"]
    await clients.disconnect()


async def test_a_cancelled_wait_takes_no_connection() -> None:
    clients = Clients(ConnectionLimiter(per_host=1))
    await clients.connect("a", "a", "a")
    clients.tasks[1].cancel()
    clients.tasks[0].cancel()
    await settle()
    assert clients.connected == ["a"]
    await clients.disconnect()
