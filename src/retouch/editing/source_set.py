"""The sources of one request: loaded side by side, within one time, with faults named by field."""

import asyncio
import copy
import hashlib
from collections.abc import Mapping, Sequence

from retouch.editing.ports import Source, Sources
from retouch.errors import EditError, InvalidRequest, SourceTooLarge
from retouch.schema import CacheMode, Upload

_FIELD = "image_url"  # as the texts of a single source's errors call it


async def load_all(
    sources: Sources,
    images: Mapping[str, str | Upload],
    *,
    timeout_s: float,
    cache: CacheMode,
    max_bytes: int,
) -> list[Source]:
    """Load `images`, which are named by their fields, side by side; return them in order.

    The first failure cancels the other loads.

    Raises:
        SourceTooLarge: together they have over `max_bytes`.
        EditError: as `Sources.load`; the text and details name the field.
    """

    async def load(field: str, image: str | Upload) -> Source:
        try:
            return await sources.load(image, timeout_s=timeout_s, cache=cache)
        except EditError as error:
            raise name_field(error, field) from error

    tasks = [asyncio.ensure_future(load(field, image)) for field, image in images.items()]
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
    return loaded


async def find_ids(sources: Sources, images: Mapping[str, str | Upload]) -> list[str]:
    """Return the ids of the sources of `images`, without loading them.

    Raises:
        BadInput: as `Sources.source_id`; the text and details name the field.
    """
    ids = []
    for field, image in images.items():
        try:
            ids.append(await sources.source_id(image))
        except EditError as error:
            raise name_field(error, field) from error
    return ids


def combine_ids(ids: Sequence[str]) -> str:
    """Return one id for several in this order: of one source its own, else their hash in hex.

    >>> combine_ids(["ab"]), len(combine_ids(["ab", "cd"]))
    ('ab', 64)
    """
    return ids[0] if len(ids) == 1 else hashlib.sha256("\n".join(ids).encode()).hexdigest()


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
