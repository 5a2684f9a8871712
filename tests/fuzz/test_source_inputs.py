import base64
import contextlib
import urllib.parse

import pytest
from hypothesis import given, strategies as st

from retouch.errors import InvalidRequest
from retouch.net.cache_headers import parse_date
from retouch.net.url import parse_url
from retouch.sources.data_url import decode_data_url
from retouch.sources.signed_url import valid_for_s
from retouch.sources.trailing_bytes import trim

pytestmark = pytest.mark.fuzz

NAMES = st.sampled_from(
    ["X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature", "se", "sig", "Expires", "Signature", "Policy",
     "hdnts", "q-sign-time", "q-signature", "ex", "hm", "oe", "token", "e"]
)  # fmt: skip
VALUES = st.text(max_size=20) | st.sampled_from(
    [
        "20261126T133320Z",
        "900",
        "-1",
        "9" * 400,
        "2026-11-27",
        "exp=1~",
        "1;2",
        "ffffffff" * 20,
        "1e9",
    ]
)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
def test_any_query_has_a_validity_or_is_not_signed(pairs: list[tuple[str, str]]) -> None:
    query = urllib.parse.urlencode(pairs, errors="replace")
    valid_s = valid_for_s(parse_url(f"https://a.example/?{query}"), 1000.0)
    assert valid_s is None or valid_s >= 0


@given(st.text())
def test_any_text_is_a_date_or_none(text: str) -> None:
    assert isinstance(parse_date(text), float | None)


@given(body=st.binary(), is_padded=st.booleans())
def test_any_bytes_come_back_from_a_data_url(body: bytes, *, is_padded: bool) -> None:
    text = base64.b64encode(body).decode()
    text = text if is_padded else text.rstrip("=")
    for data in (
        f";base64,{text}",
        f";base64,{urllib.parse.quote(text)}",
        f",{urllib.parse.quote(body)}",
    ):
        assert decode_data_url(f"data:{data}", max_bytes=len(body)) == body


@given(text=st.text(), is_base64=st.booleans())
def test_any_other_text_is_bytes_or_a_wrong_field(text: str, *, is_base64: bool) -> None:
    with contextlib.suppress(InvalidRequest):  # and no other error
        decode_data_url(f"data:{';base64' if is_base64 else ''},{text}", max_bytes=10**6)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\4\0\0\0WEBP", b""]),
)
def test_trimming_takes_only_from_the_end_and_once(body: bytes, start: bytes) -> None:
    trimmed = trim(start + body)
    assert (start + body).startswith(trimmed)
    assert trim(trimmed) == trimmed
