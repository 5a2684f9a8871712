"""Load the LoRA files at URLs that requests bring; an adapter is known by its file's SHA-256."""

import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from retouch import tracing
from retouch.editing.adapter_ports import AdapterKeeper, HeldAdapter
from retouch.errors import BadInput, DownloadFailed
from retouch.logs import event
from retouch.net.download import Downloader
from retouch.net.download_limiter import DownloadLimiter
from retouch.net.url import SourceUrl, parse_url
from retouch.sources.single_flight import SingleFlight

_log = logging.getLogger(__name__)
_WORDS = (
    ("the image is", "the file is"),
    ("the image", "the file"),
    ("an image", "a file"),
    (" (MAX_IMAGE_BYTES)", " (a quarter of LORA_CACHE_GIB)"),
    (" (SOURCE_TIMEOUT_SECONDS)", ""),
)
"""What errors of a download say of an image, and what they say of an adapter."""


class AdapterLoader:
    """The `AdapterFetcher` over a guarded download and the adapters' keeper. Belongs to one event loop.

    One file at a time is read, and `limiter` bounds the bytes on their way, so that what is beside the
    keeper's memory has a bound too.
    """

    def __init__(
        self, *, downloader: Downloader, limiter: DownloadLimiter, keeper: AdapterKeeper
    ) -> None:
        self._downloader = downloader
        self._limiter = limiter
        self._keeper = keeper
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adapter")
        self._loads: SingleFlight[HeldAdapter] = SingleFlight()

    def close(self) -> None:
        """Let a file that is being read end. Blocks."""
        self._thread.shutdown()

    async def load(self, url: str, sha256: str, *, timeout_s: float) -> HeldAdapter:
        """Return the adapter; concurrent calls for one URL share a download."""
        if found := self._keeper.find(sha256):
            return found
        parsed = parse_url(url)
        # By the URL too: a caller with the hash of another's file cannot make that one wait.
        key = f"{sha256} {parsed.canonical}"
        return await self._loads.do(key, partial(self._load, parsed, sha256, timeout_s))

    async def _load(self, url: SourceUrl, sha256: str, timeout_s: float) -> HeldAdapter:
        with self._limiter.admit() as place:
            try:
                download = await self._downloader.fetch(url, timeout_s=timeout_s, place=place)
            except (BadInput, DownloadFailed) as error:
                raise _retell(error) from error
            body = download.body or b""
            event(_log, "adapter.fetched", host=url.host, bytes=len(body))
            return await tracing.run_in(self._thread, partial(self._keeper.add, body, sha256))


def _retell(error: BadInput | DownloadFailed) -> BadInput | DownloadFailed:
    """Return a copy of a download's error that speaks of a file, not of an image."""
    told = copy.copy(error)
    for old, new in _WORDS:
        told.message = told.message.replace(old, new)
    told.args = (told.message,)
    return told
