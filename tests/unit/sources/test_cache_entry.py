import base64
import hashlib
from dataclasses import replace

import pytest

from retouch.errors import InvalidRequest, SourceTooLarge
from retouch.sources.cache_entry import (
    CachedSource,
    is_fresh,
    read_stored,
    to_object_metadata,
)
from retouch.sources.data_url import decode_data_url, is_data_url
from retouch.storage.port import StoredObject

NO_BASE64 = "holds no valid base64 after its comma"
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


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("data:,x", True), ("DATA:,x", True), ("https://a/", False), ("dat", False), ("data", False)],
)
def test_a_data_url_is_recognised_by_its_scheme(text: str, *, is_one: bool) -> None:
    assert is_data_url(text) is is_one


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{base64.b64encode(BODY).decode()}",
        f"DATA:;BASE64,{base64.b64encode(BODY).decode()}",
        f"data:image/png;name=a;base64,{base64.b64encode(BODY).decode().replace('+', '%2B')}",
        "data:;base64," + base64.encodebytes(BODY).decode().replace("=", "=\r\n\t "),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in BODY),
    ],
)
def test_a_data_url_is_decoded_to_its_bytes(text: str) -> None:
    assert decode_data_url(text, max_bytes=256) == BODY


def test_an_empty_data_url_is_no_bytes() -> None:
    assert decode_data_url("data:,", max_bytes=1) == b""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("data:image/png;base64", "must be data:[<type>][;base64],<data>"),
        ("data:;base64,A", NO_BASE64),
        ("data:;base64,AA=", NO_BASE64),
        ("data:;base64,A*==", NO_BASE64),
        ("data:;base64,ÄÄ==", NO_BASE64),
        ("data:,\ud800", "must be data:[<type>][;base64],<data>"),
    ],
)
def test_a_malformed_data_url_is_an_error_of_the_field_that_does_not_repeat_it(
    text: str, fault: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_data_url(text, max_bytes=256)
    assert caught.value.details == {"fields": {"image_url": fault}}
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("kind", ["data:;base64,", "data:,"])
def test_a_data_url_over_the_limit_is_refused_with_limit_and_setting(kind: str) -> None:
    text = kind + (base64.b64encode(b"a" * 11).decode() if "base64" in kind else "a" * 11)
    with pytest.raises(SourceTooLarge, match=r"10 bytes \(MAX_IMAGE_BYTES\)"):
        decode_data_url(text, max_bytes=10)
    assert decode_data_url(text, max_bytes=11) == b"a" * 11


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
