import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Message, Receive
from support.fakes import settle

from retouch.errors import (
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    EditError,
    InvalidRequest,
    MalformedBody,
    Overloaded,
    UnsupportedContentType,
)
from retouch.schema import EXAMPLE
from retouch.web.body import BodyReader, parse_request

MAX_BYTES = 40
BODY = b'{"image_url":"data:,","prompt":"a"}'
JSON = {"Content-Type": "application/json"}


def sending(*pieces: bytes | None) -> Callable[[], Awaitable[Message]]:
    """A caller that sends these pieces; None means it leaves."""
    messages: list[Message] = [
        {"type": "http.disconnect"}
        if piece is None
        else {"type": "http.request", "body": piece, "more_body": n < len(pieces) - 1}
        for n, piece in enumerate(pieces)
    ]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def asking(receive: Receive, headers: Mapping[str, str] = JSON) -> Request:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/edit", "headers": raw}, receive)


def build_reader(timeout_s: float = 5) -> BodyReader:
    return BodyReader(max_bytes=MAX_BYTES, max_file_bytes=20, timeout_s=timeout_s)


async def refused(
    kind: type[EditError], *pieces: bytes | None, headers: Mapping[str, str] = JSON
) -> EditError:
    reader = build_reader()
    with pytest.raises(kind) as caught:
        await reader.read(asking(sending(*pieces), headers))
    assert reader.held_bytes == 0
    return caught.value


@pytest.mark.parametrize(
    "pieces", [(BODY,), (BODY[:5], b"", BODY[5:]), (BODY.ljust(MAX_BYTES), b"")]
)
async def test_a_body_up_to_the_limit_is_read_whole(pieces: tuple[bytes, ...]) -> None:
    assert (await build_reader().read(asking(sending(*pieces)))).prompt == "a"


async def test_a_byte_order_mark_before_the_json_is_dropped() -> None:
    request = await build_reader().read(asking(sending(b"\xef", b"\xbb\xbf" + BODY)))
    assert request.prompt == "a"


async def test_a_message_without_a_body_is_an_empty_one() -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    with pytest.raises(MalformedBody):
        await build_reader().read(asking(receive))


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", " Application/JSON ;x"]
)
async def test_json_is_known_in_any_spelling(kind: str) -> None:
    request = asking(sending(BODY), {"Content-Type": kind})
    assert (await build_reader().read(request)).prompt == "a"


@pytest.mark.parametrize(
    "headers",
    [{"X": ""}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json-patch+json"}],
)
async def test_another_content_type_is_refused_before_the_body_is_read(
    headers: dict[str, str],
) -> None:
    error = await refused(UnsupportedContentType, None, headers=headers)
    assert "application/json" in error.message
    assert "data:image/jpeg;base64," in error.message


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
async def test_a_compressed_body_is_refused_before_it_is_read(coding: str) -> None:
    headers = JSON | {"Content-Encoding": coding}
    error = await refused(UnsupportedContentType, None, headers=headers)
    assert "Content-Encoding" in error.message


@pytest.mark.parametrize("declared", ["41", "9" * 30, "9" * 5000])
async def test_a_body_that_is_declared_too_large_is_refused_unread(declared: str) -> None:
    error = await refused(BodyTooLarge, None, headers=JSON | {"Content-Length": declared})
    assert error.message == "the body is over 40 bytes (from MAX_IMAGE_BYTES)"


@pytest.mark.parametrize("declared", ["", "-1", "ten", "²", "0" * 5000, "5"])
async def test_a_content_length_that_lies_does_not_help(declared: str) -> None:
    headers = JSON | {"Content-Length": declared}
    await refused(BodyTooLarge, b" " * MAX_BYTES, b"a", headers=headers)


async def test_a_body_is_counted_as_it_comes() -> None:
    await refused(BodyTooLarge, b" " * (MAX_BYTES + 1))
    await refused(BodyTooLarge, *[b" " * 10] * 6)


async def test_a_caller_that_disconnects_in_the_middle_is_gone() -> None:
    await refused(Cancelled, b"01234", None)


async def test_a_body_that_is_no_request_is_let_go_of() -> None:
    await refused(MalformedBody, b"{")
    await refused(InvalidRequest, b"{}")


async def test_a_body_that_does_not_arrive_in_time_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(DeadlineExceeded, match="did not arrive in time"):
        await build_reader(timeout_s=0.01).read(asking(receive))


async def test_bodies_held_at_once_are_bounded_and_given_back() -> None:
    reader = build_reader()
    stuck = asyncio.Event()

    async def read_slowly() -> None:
        pieces = [b" " * MAX_BYTES]

        async def receive() -> Message:
            if not pieces:
                await stuck.wait()
            return {"type": "http.request", "body": pieces.pop(), "more_body": True}

        await reader.read(asking(receive))

    holders = [asyncio.create_task(read_slowly()) for _ in range(4)]
    await settle()
    with pytest.raises(Overloaded) as caught:
        await reader.read(asking(sending(BODY)))
    assert caught.value.retry_after_s == 1
    for holder in holders:
        holder.cancel()
    await settle()
    assert reader.held_bytes == 0
    await reader.read(asking(sending(BODY)))


async def test_a_request_counts_for_as_long_as_it_is_held() -> None:
    reader = BodyReader(max_bytes=200_000, max_file_bytes=200_000, timeout_s=5)
    url = "data:image/png;base64," + "A" * 100_000
    body = json.dumps(dict(EXAMPLE) | {"image_url": url}).encode()
    request = await reader.read(asking(sending(body)))
    assert len(url) <= reader.held_bytes < len(body)
    del request
    assert reader.held_bytes == 0


def test_a_body_becomes_a_request() -> None:
    request = parse_request(json.dumps(dict(EXAMPLE)).encode())
    assert request.model_dump(exclude_unset=True) == EXAMPLE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"3",
        b"{}{}",
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        b'{"prompt": "\\ud800"}',
        b"[" * 60_000,
        b"{'prompt': 'x'}",
    ],
)
def test_what_is_not_one_json_object_in_utf_8_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="one JSON object in UTF-8"):
        parse_request(body)


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("size_characters", [1, 70_000])
def test_another_encoding_is_named_whatever_the_size(coding: str, size_characters: int) -> None:
    body = json.dumps({"prompt": "x" * size_characters}).encode(coding)
    with pytest.raises(MalformedBody, match="must be in UTF-8"):
        parse_request(body)


def test_the_error_of_malformed_json_has_the_position_and_no_quote() -> None:
    with pytest.raises(MalformedBody, match=r"in UTF-8: the fault is at line 1 column 2$"):
        parse_request(b"{'image_url': 's3cr3t'}")


def test_the_error_of_bare_base64_says_how_to_send_an_image() -> None:
    for name in ("image_url", "image_base64"):
        with pytest.raises(BodyTooLarge, match="begin with data:image/jpeg;base64,"):
            parse_request(json.dumps({"prompt": "x", name: "/9j/" * 20_000}).encode())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prompt": ""}, {"prompt"}),
        ({"seed": "x", "more": 1}, {"seed", "more"}),
        ({"prompt": None, "image_url": None}, {"prompt", "image_url"}),
    ],
)
def test_wrong_fields_are_named_and_leave_no_trace_of_the_values(
    changes: dict[str, Any], named: set[str]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(json.dumps(dict(EXAMPLE) | changes).encode())
    assert set(caught.value.details["fields"]) == named
    assert caught.value.__suppress_context__


def test_an_empty_object_lacks_both_fields() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_request(b"{}")
    assert set(caught.value.details["fields"]) == {"image_url", "prompt"}


def test_an_image_in_the_body_may_be_large() -> None:
    url = "DATA:image/png;base64," + "A" * 200_000
    request = parse_request(json.dumps(dict(EXAMPLE) | {"image_url": f"  {url}"}).encode())
    assert request.image_url == url


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"%x":1' % n for n in range(10_000)) + b"}",
        b'{"prompt":[' + b"[]," * 30_000 + b"[]]}",
        b'{"seed":' + b"9" * 70_000 + b"}",
        b'{"image_urls":['
        b'"data:,' + b"A" * 10_000 + b'",' * 9 + b'"a"],"x":"' + b"a" * 70_000 + b'"}',
        b'{"image_url":"data:,","prompt":"' + b"a" * 70_000 + b'"}',
        b" " * 70_000 + b"{}",
    ],
)
def test_nothing_but_an_image_may_be_large_in_a_body(body: bytes) -> None:
    with pytest.raises(BodyTooLarge, match="beside images"):
        parse_request(body)


def test_several_images_in_the_body_may_be_large() -> None:
    urls = ["data:image/png;base64," + "A" * 90_000] * 3
    fields = {k: v for k, v in EXAMPLE.items() if k != "image_url"} | {"image_urls": urls}
    request = parse_request(json.dumps(fields).encode())
    assert list(request.sources.values()) == urls
    assert request.sources_bytes > 270_000


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_text_that_begins_as_an_image_does_is_not_taken_for_it(name: str) -> None:
    fields = {"prompt": "sharpen", name: "data: sharpen the chart"}
    body = {**fields, "image_url": "data:image/png;base64," + "A" * 100_000}
    assert getattr(parse_request(json.dumps(body).encode()), name) == "data: sharpen the chart"
