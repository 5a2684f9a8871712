"""What all downloads share, divided so that slow origins hold up nobody else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary


class ConnectionLimiter:
    """Bounds connections, per host and over all. Who waits for a host holds up no other host."""

    def __init__(self, total: int, *, per_host: int) -> None:
        self._per_host = per_host
        self._all = asyncio.Semaphore(total)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def hold(self, host: str) -> AsyncIterator[None]:
        """Wait for a place and keep it for the length of the `with`."""
        gate = self._hosts.setdefault(host, asyncio.Semaphore(self._per_host))
        async with gate, self._all:
            yield


class Budget:
    """Bounds the bytes of all bodies that are still arriving.

    Over the bound the oldest download that holds more than half its fair share is ended. Making
    others wait instead would let a few that never end hold everyone up; sparing all below the full
    share would let many that stay just under it push out a healthy one.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._total = 0
        self._held: dict[asyncio.Timeout, int] = {}

    def add(self, deadline: asyncio.Timeout, count: int) -> None:
        """Count bytes of the download that `deadline` ends."""
        self._held[deadline] = self._held.get(deadline, 0) + count
        self._total += count
        while self._total > self._max_bytes:
            fair_half = self._max_bytes // len(self._held) // 2
            victim = next(timeout for timeout, held in self._held.items() if held > fair_half)
            self.release(victim)
            if not victim.expired():
                victim.reschedule(asyncio.get_running_loop().time())

    def release(self, deadline: asyncio.Timeout) -> None:
        """Forget a download: its bytes are the caller's, or gone."""
        self._total -= self._held.pop(deadline, 0)
