import hashlib
from dataclasses import replace

import pytest

from retouch.sources.cache_entry import (
    CachedSource,
    is_fresh,
    read_stored,
    to_object_metadata,
)
from retouch.storage.port import StoredObject

BODY = bytes(range(256))
ORIGINAL = CachedSource(
    body=BODY,
    sha256=hashlib.sha256(BODY).hexdigest(),
    fetched_at_s=1000.9,
    fresh_s=60,
    etag='"v1"',
    last_modified="Sat, 01 Aug 2026 00:00:00 GMT",
)


@pytest.mark.parametrize(
    ("fetched_at_s", "now_s", "fresh_s", "fresh"),
    [
        (100, 100, 60, True),
        (100, 159.9, 60, True),
        (100, 160, 60, False),
        (100, 99.9, 60, False),
        (100, 100, 0, False),
    ],
)
def test_a_copy_is_fresh_from_its_fetch_until_its_time_is_over(
    fetched_at_s: float, now_s: float, fresh_s: float, *, fresh: bool
) -> None:
    assert is_fresh(fetched_at_s, now_s, fresh_s) is fresh




def test_a_stored_source_is_read_back_as_cached() -> None:
    read = read_stored(StoredObject(BODY, to_object_metadata(ORIGINAL)))
    assert read == replace(ORIGINAL, fetched_at_s=1000, cached=True)


def test_metadata_leaves_out_unknown_validators() -> None:
    metadata = to_object_metadata(replace(ORIGINAL, etag=None, last_modified=None))
    assert metadata == {
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "fetched-at": "1000",
        "fresh-seconds": "60",
    }
    read = read_stored(StoredObject(BODY, metadata))
    assert read is not None
    assert (read.etag, read.last_modified) == (None, None)


@pytest.mark.parametrize("lost", ["sha256", "fetched-at", "fresh-seconds"])
def test_an_object_without_its_metadata_is_damaged(lost: str) -> None:
    metadata = {name: value for name, value in to_object_metadata(ORIGINAL).items() if name != lost}
    assert read_stored(StoredObject(BODY, metadata)) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"fetched-at": "soon"},
        {"fetched-at": "9" * 400},
        {"fresh-seconds": "1.5"},
        {"sha256": "0" * 64},
    ],
)
def test_an_object_with_wrong_metadata_is_damaged(changed: dict[str, str]) -> None:
    assert read_stored(StoredObject(BODY, to_object_metadata(ORIGINAL) | changed)) is None


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x", b""])
def test_an_object_with_another_body_is_damaged(body: bytes) -> None:
    assert read_stored(StoredObject(body, to_object_metadata(ORIGINAL))) is None
