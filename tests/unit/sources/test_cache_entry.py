import hashlib
from dataclasses import replace

import pytest

from retouch.net.cache_headers import FOREVER_S
from retouch.sources.cache_entry import (
    CachedSource,
    lifetime_s,
    read_stored,
    stale_for_s,
    to_object_metadata,
)
from retouch.storage.port import StoredObject

BODY = bytes(range(256))
ORIGINAL = CachedSource(
    body=BODY,
    sha256=hashlib.sha256(BODY).hexdigest(),
    fetched_at_s=1000.9,
    fresh_s=60,
    max_stale_s=90,
    etag='"v1"',
    last_modified="Sat, 01 Aug 2026 00:00:00 GMT",
)


@pytest.mark.parametrize(
    ("fetched_at_s", "now_s", "fresh_s", "stale_s"),
    [
        (100, 100, 60, -60),
        (100, 159, 60, -1),
        (100, 160, 60, 0),
        (100, 170, 60, 10),
        (100, 99, 60, 0),
        (100, 100, 0, 0),
    ],
)
def test_a_copy_is_fresh_from_its_download_for_its_lifetime(
    fetched_at_s: float, now_s: float, fresh_s: float, stale_s: float
) -> None:
    assert stale_for_s(fetched_at_s, now_s, fresh_s) == stale_s


@pytest.mark.parametrize(
    ("max_age_s", "heuristic_s", "has_validators", "expected_s"),
    [
        (None, None, True, 3600),
        (None, None, False, 3600),
        (None, 40, True, 40),
        (None, 0, True, 0),
        (None, 10**6, True, 3600),
        (0, None, True, 0),
        (0, None, False, 60),
        (59, 7, False, 60),
        (61, 7, False, 61),
        (10**9, None, True, 604800),
    ],
)
def test_a_lifetime_is_the_origins_within_bounds(
    max_age_s: int | None, heuristic_s: int | None, *, has_validators: bool, expected_s: int
) -> None:
    found = lifetime_s(max_age_s, heuristic_s, ttl_s=3600, has_validators=has_validators)
    assert found == expected_s


def test_a_stored_source_is_read_back_as_cached() -> None:
    read = read_stored(StoredObject(BODY, to_object_metadata(ORIGINAL)))
    assert read == replace(ORIGINAL, fetched_at_s=1000, cached=True)


def test_metadata_leaves_out_unknown_validators() -> None:
    metadata = to_object_metadata(replace(ORIGINAL, etag=None, last_modified=None))
    assert metadata == {
        "sha256": hashlib.sha256(BODY).hexdigest(),
        "fetched-at": "1000",
        "fresh-seconds": "60",
        "max-stale-seconds": "90",
    }
    read = read_stored(StoredObject(BODY, metadata))
    assert read is not None
    assert (read.etag, read.last_modified) == (None, None)


def test_a_copy_of_an_earlier_version_may_be_stale_as_long_as_the_settings_allow() -> None:
    metadata = to_object_metadata(ORIGINAL)
    del metadata["max-stale-seconds"]
    read = read_stored(StoredObject(BODY, metadata))
    assert read is not None
    assert read.max_stale_s == FOREVER_S


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
        {"max-stale-seconds": "long"},
        {"sha256": "0" * 64},
    ],
)
def test_an_object_with_wrong_metadata_is_damaged(changed: dict[str, str]) -> None:
    assert read_stored(StoredObject(BODY, to_object_metadata(ORIGINAL) | changed)) is None


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"x", b""])
def test_an_object_with_another_body_is_damaged(body: bytes) -> None:
    assert read_stored(StoredObject(body, to_object_metadata(ORIGINAL))) is None
