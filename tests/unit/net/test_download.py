import ssl

import httpcore
import pytest
from support.servers.origin import fetch_alone

from retouch.errors import (
    DownloadFailed,
    EditError,
    InvalidRequest,
    SourceEncoded,
    SourceProtocolError,
    SourceRedirectError,
    SourceServerError,
    SourceStatusError,
    SourceTooLarge,
)
from retouch.net.connect import Connector
from retouch.net.download import Download, Downloader
from retouch.net.limits import FetchLimits
from retouch.net.url import parse_url

URL = parse_url("http://pictures.example/a?token=s3cr3t")
LIMITS = FetchLimits(max_bytes=1000)
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one takes 30 ms to load


async def fetch(*answer: bytes, etag: str | None = None) -> Download:
    """Fetch from an origin that says `answer`, in these pieces, to whoever connects."""
    network = httpcore.AsyncMockBackend(list(answer))
    fetcher = Downloader(
        LIMITS,
        Connector(LIMITS, resolve=lambda *_: ["1.1.1.1"], network=network, ssl_context=NO_TLS),
    )
    return await fetch_alone(fetcher, URL, timeout_s=5, etag=etag)


def head(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} -", *headers]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


async def test_body_and_headers_come_back() -> None:
    fetched = await fetch(
        head(
            200,
            "Content-Length: 5",
            'ETag: "x"',
            "Cache-Control: stale-if-error=7",
            "Last-Modified: Sat, 01 Aug 2026 00:00:00 GMT",
            "Date: Sun, 02 Aug 2026 00:00:00 GMT",
            "Cache-Control: public",
            "Cache-Control: max-age=60",
            "Age: 10",
            "Content-Encoding: Identity",
        ),
        b"ab",
        b"cde",
    )
    assert fetched == Download(
        body=b"abcde",
        etag='"x"',
        last_modified="Sat, 01 Aug 2026 00:00:00 GMT",
        max_age_s=50,
        storable=True,
        heuristic_s=8640,
        max_stale_s=7,
    )


async def test_an_image_that_a_proxy_changed_is_an_image() -> None:
    assert (await fetch(head(203), b"abc")).body == b"abc"


async def test_missing_headers_are_none() -> None:
    assert await fetch(head(200), b"abc") == Download(b"abc", None, None, None, storable=True)


@pytest.mark.parametrize("said", ["bytes 0-2/3", "bytes 0-0/1"])
async def test_a_partial_answer_with_all_the_bytes_is_an_image(said: str) -> None:
    assert (await fetch(head(206, f"Content-Range: {said}"), b"abc")).body == b"abc"


@pytest.mark.parametrize("value", [b"\xff\xfe", b'"' + b"x" * 2000 + b'"', "é".encode()])
async def test_a_validator_that_is_not_short_ascii_is_dropped(value: bytes) -> None:
    fetched = await fetch(b"HTTP/1.1 200 -\r\nETag: " + value + b"\r\nContent-Length: 0\r\n\r\n")
    assert fetched.etag is None


async def test_not_modified_is_accepted_only_for_a_conditional_request() -> None:
    answer = head(304, 'ETag: "x"', "Cache-Control: max-age=9")
    assert await fetch(answer, etag='"x"') == Download(None, '"x"', None, 9, storable=True)
    for unasked in (None, "", "bad\r\nX-Injected: 1"):
        with pytest.raises(SourceStatusError):
            await fetch(answer, etag=unasked)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (head(200, "Content-Length: 1001"), SourceTooLarge),
        (head(200, "Content-Encoding: br"), SourceEncoded),
        (head(200, "Content-Encoding: gzip, identity"), SourceEncoded),
        (head(200, "Transfer-Encoding: gzip"), SourceProtocolError),
        (head(200, "Content-Length: 5") + b"abc", SourceProtocolError),
        (head(200, "Content-Length: 5", "Content-Length: 6") + b"abcdef", SourceProtocolError),
        (head(200, "Content-Length: -1"), SourceProtocolError),
        (head(200, "Transfer-Encoding: chunked") + b"zz\r\n", SourceProtocolError),
        (head(200, "Transfer-Encoding: chunked") + b"3\r\nabc\r\n", SourceProtocolError),
        (b"", SourceProtocolError),
        (b"\x89PNG\r\n\x1a\n", SourceProtocolError),
        (b"<html></html>\r\n\r\n", SourceProtocolError),
        (head(100) * 10_000, SourceProtocolError),
        (head(101), SourceProtocolError),
        (head(201), SourceStatusError),
        (head(204), SourceStatusError),
        (head(206), SourceStatusError),
        (head(206, "Content-Range: bytes 0-2/4") + b"abc", SourceStatusError),
        (head(206, "Content-Range: bytes 1-3/4") + b"abc", SourceStatusError),
        (head(206, "Content-Range: bytes 0-2/*") + b"abc", SourceStatusError),
        (head(201, "Content-Range: bytes 0-2/3") + b"abc", SourceStatusError),
        (head(300), SourceStatusError),
        (head(305), SourceStatusError),
        (head(400), SourceStatusError),
        (head(404), SourceStatusError),
        (head(410), SourceStatusError),
        (head(429), SourceServerError),
        (head(500), SourceServerError),
        (head(599), SourceServerError),
        (head(302), SourceRedirectError),
        (head(302, "Location: ftp://example.com/"), SourceRedirectError),
        (head(302, "Location: http://example.com:22/"), SourceRedirectError),
        (head(302, "Location: http://u:p@example.com/"), SourceRedirectError),
        (head(302, "Location: /again"), SourceRedirectError),
    ],
)
async def test_a_response_without_an_image_is_a_typed_error(
    answer: bytes, expected: type[EditError]
) -> None:
    with pytest.raises(expected) as caught:
        await fetch(answer)
    assert type(caught.value) is expected
    assert caught.value.context == {"host": "pictures.example"}
    assert "s3cr3t" not in caught.value.message + repr(caught.value.details)


async def test_the_error_has_the_status_of_the_origin() -> None:
    with pytest.raises(DownloadFailed) as caught:
        await fetch(head(404))
    assert caught.value.details == {"origin_status": 404}


async def test_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert (await fetch(head(200), b"x" * 1000)).body == b"x" * 1000
    with pytest.raises(SourceTooLarge, match=r"over 1000 bytes \(MAX_IMAGE_BYTES\)"):
        await fetch(head(200), b"x" * 1001)


async def test_another_port_is_refused_before_a_lookup() -> None:
    fetcher = Downloader(
        LIMITS, Connector(LIMITS, resolve=lambda *_: pytest.fail("looked up"), ssl_context=NO_TLS)
    )
    with pytest.raises(InvalidRequest):
        await fetch_alone(fetcher, parse_url("http://pictures.example:22/"), timeout_s=5)


@pytest.mark.parametrize("coding", ["aws-chunked", "UTF-8", "base64", "binary", "none", "x-none, "])
async def test_a_content_encoding_that_is_none_is_ignored(coding: str) -> None:
    assert (await fetch(head(200, f"Content-Encoding: {coding}"), b"abc")).body == b"abc"


@pytest.mark.parametrize(
    "line",
    [
        "X-Odd : y",
        "X Odd: y",
        "no colon",
        ": y",
        "X-Odd: \0",
        "X-Odd: a\x0bb",
        "X-Ödd: y",
        "X-Ödd: y\r\n folded: z",
    ],
)
@pytest.mark.parametrize("at", [0, 1])
async def test_a_header_line_that_is_not_http_is_dropped(line: str, at: int) -> None:
    lines = ['ETag: "x"', "Content-Length: 3"]
    lines.insert(at, line)
    download = await fetch(head(200, *lines).replace("Ö".encode(), b"\xd6"), b"abc")
    assert (download.body, download.etag) == (b"abc", '"x"')


@pytest.mark.parametrize(
    "line", ["Transfer-Encoding: identity", "transfer-encoding:Identity ", "Content-Length:"]
)
async def test_a_header_that_says_nothing_about_the_length_is_ignored(line: str) -> None:
    assert (await fetch(head(200, line), b"abc")).body == b"abc"
    assert (await fetch(head(200, line, "Content-Length: 3"), b"abcdef")).body == b"abc"


async def test_a_header_line_that_is_repeated_counts_once() -> None:
    lines = ["Transfer-Encoding: chunked", 'ETag: "x"'] * 2
    download = await fetch(head(200, *lines), b"3\r\nabc\r\n0\r\n\r\n")
    assert (download.body, download.etag) == (b"abc", '"x"')


async def test_white_space_before_a_colon_is_ignored() -> None:
    assert (await fetch(head(200, "Content-Length : 3"), b"abcdef")).body == b"abc"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200\nContent-Length: 3\n\nabc",
        b"HTTP/1.1 103 -\r\nLink: a\r\n\r\nHTTP/1.1 200 -\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.0 200 OK\r\nX-A: b\r\n c\r\n\r\nabc",
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 7, 1000])
async def test_a_head_may_be_cut_anywhere(answer: bytes, piece_bytes: int) -> None:
    pieces = [answer[at : at + piece_bytes] for at in range(0, len(answer), piece_bytes)]
    assert (await fetch(*pieces)).body == b"abc"
