"""Bound the connections to a host, and all loads of sources together, in number and bytes.

Of the loads the slowest makes room for a new one.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from weakref import WeakValueDictionary

from retouch.errors import DownloadsFull, Overloaded

_MIN_AGE_S = 2.0
"""A younger download is never ended: its rate says nothing yet."""
_RETRY_AFTER_S = 2


class Place:
    """One load of a source: the bytes it holds, and its rate while the origin is sending."""

    def __init__(self, limiter: "DownloadLimiter") -> None:
        self._limiter = limiter
        self._began_s = math.inf
        self._deadline: asyncio.Timeout | None = None
        self._is_ended = False
        self.held_bytes = 0

    def hold(self, count: int) -> None:
        """Count more bytes of the body.

        Raises:
            Overloaded: they are too many together, and no slower download could make room.
        """
        self.held_bytes += count
        self._limiter.make_room(self)

    @contextlib.asynccontextmanager
    async def origin_time(self, timeout_s: float) -> AsyncIterator[None]:
        """Bound what is inside by `timeout_s`. Only inside may it be ended to make room.

        Raises:
            TimeoutError: the time is over.
            DownloadsFull: it made room for another download.
        """
        self._began_s = min(self._began_s, asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(timeout_s) as self._deadline:
                yield
        except TimeoutError:
            if self._is_ended:
                raise _ended() from None
            raise
        finally:
            self._deadline = None

    def may_end(self, now_s: float) -> bool:
        """Whether its origin is sending and had time to show its rate."""
        return self._deadline is not None and now_s - self._began_s >= _MIN_AGE_S

    def rate(self, now_s: float) -> float:
        """Return the bytes per second since its download began. Only if `may_end`."""
        return self.held_bytes / (now_s - self._began_s)

    def end(self, now_s: float) -> None:
        """Interrupt the download."""
        self._is_ended = True
        if self._deadline is not None and not self._deadline.expired():
            self._deadline.reschedule(now_s)


class ConnectionLimiter:
    """Bounds the connections to each host. Waiting for one host does not delay another."""

    def __init__(self, *, per_host: int) -> None:
        self._per_host = per_host
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @contextlib.asynccontextmanager
    async def acquire(self, host: str) -> AsyncIterator[None]:
        """Wait for a free connection to `host` and hold it for the length of the `with`."""
        async with self._hosts.setdefault(host, asyncio.Semaphore(self._per_host)):
            yield


class DownloadLimiter:
    """Hands out the places. Belongs to one event loop.

    To make others wait instead would let a few origins that never finish delay everyone.
    """

    def __init__(self, *, max_downloads: int = 64, max_bytes: int = 33 * 26_214_400) -> None:
        self._max_downloads = max_downloads
        self._max_bytes = max_bytes
        self._places: set[Place] = set()

    @contextlib.contextmanager
    def admit(self) -> Iterator[Place]:
        """Take a place for one load of a source, from the look-up to the decoded image.

        Raises:
            Overloaded: all places are taken, and every download is younger than 2 s.
        """
        place = Place(self)
        self._places.add(place)
        try:
            self.make_room(place)
            yield place
        finally:
            self._places.discard(place)

    def make_room(self, newcomer: Place) -> None:
        """End the slowest downloads until the others are within the limits.

        Raises:
            Overloaded: none may be ended.
            DownloadsFull: the newcomer itself is the slowest.
        """
        while (
            len(self._places) > self._max_downloads
            or sum(place.held_bytes for place in self._places) > self._max_bytes
        ):
            now_s = asyncio.get_running_loop().time()
            slow = [place for place in self._places if place.may_end(now_s)]
            if not slow:
                raise Overloaded(
                    "too many source images are being loaded (MAX_DOWNLOADS, MAX_DOWNLOAD_BYTES)",
                    details={"retry_after": _RETRY_AFTER_S},
                )
            victim = min(slow, key=lambda place: place.rate(now_s))
            self._places.discard(victim)
            if victim is newcomer:
                raise _ended()
            victim.end(now_s)


def _ended() -> DownloadsFull:
    return DownloadsFull(
        "the download of image_url was the slowest and made room for others (MAX_DOWNLOADS)",
        details={"retry_after": _RETRY_AFTER_S},
    )
