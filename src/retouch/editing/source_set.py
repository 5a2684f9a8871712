"""The sources of one request: loaded side by side, within one time, with faults named by field."""

import asyncio
import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from retouch.editing.adapter_ports import HeldAdapter
from retouch.editing.masking import Masking
from retouch.editing.ports import Source, Sources
from retouch.errors import EditError, InvalidRequest, SourceTooLarge
from retouch.images.kind import Kind
from retouch.net.url import parse_url, require_destination
from retouch.schema import EditRequest, Upload

_FIELD = "image_url"  # as the texts of a single source's errors call it


@dataclass(frozen=True, slots=True)
class SourceSet:
    """The images of a request in order, its mask with what follows from it, and the adapters it brings.

    `masking` is None where there is no mask, or where it is full and nothing is cropped.
    """

    images: tuple[Source, ...]
    mask: Source | None = None
    masking: Masking | None = None
    adapters: tuple[HeldAdapter, ...] = ()

    @property
    def ids(self) -> list[str]:
        """The ids of the images, and of the mask."""
        return [*(image.id for image in self.images), *mask_id(self.mask.id if self.mask else None)]

    @property
    def content(self) -> list[str]:
        """The hashes of the files of the images, and of the mask."""
        mask = self.mask.content_sha256 if self.mask else None
        return [*(image.content_sha256 for image in self.images), *mask_id(mask)]

    @property
    def is_stale(self) -> bool:
        """Whether some copy has expired and its origin could not be asked."""
        return any(source.stale for source in (*self.images, self.mask) if source)

    def lead(self, request: EditRequest) -> Source:
        """Return the image whose shape the result has: where the edit starts from one, or keeps to it, the first."""
        is_first = self.mask or request.strength < 1 or request.size_from == "first"
        return self.images[0 if is_first else -1]


def mask_id(digest: str | None) -> list[str]:
    """Return what stands for a mask in a list of images' hashes: nothing for none."""
    return [] if digest is None else [f"mask {digest}"]


async def load_all(
    sources: Sources,
    request: EditRequest,
    *,
    timeout_s: float,
    max_bytes: int,
) -> tuple[tuple[Source, ...], Source | None]:
    """Load the images and the mask of `request` side by side; return the images in order, and the mask.

    The first failure cancels the other loads.

    Raises:
        SourceTooLarge: together they have over `max_bytes`.
        EditError: as `Sources.load`; the text and details name the field.
    """

    async def load(field: str, image: str | Upload, kind: Kind) -> Source:
        with naming(field):
            return await sources.load(image, timeout_s=timeout_s, cache=request.cache, kind=kind)

    kinds: dict[Kind, dict[str, str | Upload]] = {"picture": request.sources, "mask": request.mask}
    tasks = [
        asyncio.ensure_future(load(field, image, kind))
        for kind, named in kinds.items()
        for field, image in named.items()
    ]
    try:
        loaded = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # so that none outlives the request
    if sum(source.size_bytes for source in loaded) > max_bytes:
        raise SourceTooLarge(
            f"the images of one request are over {max_bytes} bytes (twice MAX_IMAGE_BYTES) together"
        )
    count = len(request.sources)
    return tuple(loaded[:count]), next(iter(loaded[count:]), None)


def require_destinations(request: EditRequest, *, allowed_hosts: frozenset[str]) -> None:
    """Require that every URL in `request` may be fetched, by what it says itself. Looks up no name.

    Raises:
        EditError: as `require_destination`; the text and details name the field.
    """
    loras = {f"loras[{at}].url": lora.url or "" for at, lora in enumerate(request.loras)}
    for field, image in {**request.sources, **request.mask, **loras}.items():
        if isinstance(image, str) and image and image[:5].lower() != "data:":
            with naming(field):
                require_destination(parse_url(image), allowed_hosts=allowed_hosts)


async def find_ids(sources: Sources, request: EditRequest) -> list[str]:
    """Return the `SourceSet.ids` of `request`, without loading anything.

    Raises:
        BadInput: as `Sources.source_id`; the text and details name the field.
    """

    async def find(field: str, image: str | Upload) -> str:
        with naming(field):
            return await sources.source_id(image)

    ids = [await find(field, image) for field, image in request.sources.items()]
    for field, image in request.mask.items():
        ids += mask_id(await find(field, image))
    return ids


def combine_ids(ids: Sequence[str]) -> str:
    """Return one id for several in this order: of one source its own, else their hash in hex.

    >>> combine_ids(["ab"]), len(combine_ids(["ab", "cd"]))
    ('ab', 64)
    """
    return ids[0] if len(ids) == 1 else hashlib.sha256("\n".join(ids).encode()).hexdigest()


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Raise the error of a source in the block as one that names its `field`."""
    try:
        yield
    except EditError as error:
        raise name_field(error, field) from error


def name_field(error: EditError, field: str) -> EditError:
    """Return a copy of a source's error that names `field`; of `image_url` the error itself.

    >>> name_field(SourceTooLarge("the image is over 9 bytes"), "image_urls[1]").message
    'image_urls[1]: the image is over 9 bytes'
    """
    if field == _FIELD:
        return error
    named = copy.copy(error)
    if isinstance(error, InvalidRequest):
        fields = {
            field if name == _FIELD else name: fault
            for name, fault in error.details["fields"].items()
        }
        named.details = {**error.details, "fields": fields}
    else:
        named.details = {**error.details, "source": field}
    text = error.message.replace(_FIELD, field)
    named.message = text if field in text else f"{field}: {text}"
    named.args = (named.message,)
    return named
