"""What the loader needs of others: downloads, and decoding."""

from collections.abc import Awaitable
from typing import Protocol

from retouch.images.decode import Decoded
from retouch.images.kind import Kind
from retouch.net.download import Download
from retouch.net.download_limiter import Place
from retouch.net.url import SourceUrl


class Fetch(Protocol):
    """Downloads from an origin; `Downloader.fetch` implements it."""

    async def __call__(
        self,
        url: SourceUrl,
        *,
        timeout_s: float,
        place: Place,
        etag: str | None,
        last_modified: str | None,
    ) -> Download:
        """Return the body, or none if the version with these validators is still current."""
        ...


class Decode(Protocol):
    """Decodes an image file; `Decoder.decode` implements it."""

    def __call__(self, body: bytes, *, timeout_s: float, kind: Kind) -> Awaitable[Decoded]:
        """Return the decoded picture, or mask."""
        ...
