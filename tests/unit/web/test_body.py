import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.types import Message
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
from retouch.web.body import BodyReader, drain, parse_request

MAX_BYTES = 10
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


def build_bodies(timeout_s: float = 5) -> BodyReader:
    return BodyReader(max_bytes=MAX_BYTES, timeout_s=timeout_s)


async def refused(
    kind: type[EditError], *pieces: bytes | None, headers: dict[str, str] | None = None
) -> EditError:
    bodies = build_bodies()
    with pytest.raises(kind) as caught:
        async with bodies.read(Headers(headers or JSON), sending(*pieces)):
            pytest.fail("the body was taken")
    assert bodies._held_bytes == 0  # noqa: SLF001 - that none is lost is the claim
    return caught.value


@pytest.mark.parametrize("pieces", [(b"",), (b"0123456789",), (b"01234", b"", b"56789")])
async def test_a_body_up_to_the_limit_is_read_whole(pieces: tuple[bytes, ...]) -> None:
    async with build_bodies().read(Headers(JSON), sending(*pieces)) as body:
        assert body == b"".join(pieces)


async def test_a_message_without_a_body_is_an_empty_one() -> None:
    async def receive() -> Message:
        return {"type": "http.request"}

    async with build_bodies().read(Headers(JSON), receive) as body:
        assert body == b""


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", " Application/JSON ;x"]
)
async def test_json_is_known_in_any_spelling(kind: str) -> None:
    async with build_bodies().read(Headers({"Content-Type": kind}), sending(b"{}")) as body:
        assert body == b"{}"


@pytest.mark.parametrize(
    "headers",
    [{"X": ""}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json-patch+json"}],
)
async def test_another_content_type_is_refused_before_the_body_is_read(
    headers: dict[str, str],
) -> None:
    error = await refused(UnsupportedContentType, None, headers=headers)
    assert "application/json" in error.message


@pytest.mark.parametrize("said", ["11", "9" * 30, "9" * 5000])
async def test_a_body_that_says_it_is_too_large_is_refused_unread(said: str) -> None:
    error = await refused(BodyTooLarge, None, headers=JSON | {"Content-Length": said})
    assert error.message == "the body is over 10 bytes (from MAX_IMAGE_BYTES)"


@pytest.mark.parametrize("said", ["", "-1", "ten", "²", "0" * 5000, "5"])
async def test_a_content_length_that_lies_does_not_help(said: str) -> None:
    headers = JSON | {"Content-Length": said}
    await refused(BodyTooLarge, b"0123456789", b"a", headers=headers)


async def test_a_body_is_counted_as_it_comes() -> None:
    await refused(BodyTooLarge, b"01234567890")
    await refused(BodyTooLarge, *[b"ab"] * 6)


async def test_a_caller_that_leaves_in_the_middle_is_gone() -> None:
    await refused(Cancelled, b"01234", None)


async def test_a_body_that_does_not_arrive_in_time_is_given_up() -> None:
    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(DeadlineExceeded, match="did not arrive in time"):
        async with build_bodies(timeout_s=0.01).read(Headers(JSON), receive):
            pytest.fail("the body was taken")


async def test_a_timeout_of_what_follows_is_not_taken_for_the_body_s() -> None:
    with pytest.raises(TimeoutError):
        async with build_bodies().read(Headers(JSON), sending(b"{}")):
            raise TimeoutError


async def test_bodies_held_at_once_are_bounded_and_given_back() -> None:
    bodies = build_bodies()
    leave = asyncio.Event()

    async def hold() -> None:
        async with bodies.read(Headers(JSON), sending(b"0123456789")):
            await leave.wait()

    holders = [asyncio.create_task(hold()) for _ in range(8)]
    await settle()
    with pytest.raises(Overloaded) as caught:
        async with bodies.read(Headers(JSON), sending(b"a")):
            pytest.fail("the body was taken")
    assert caught.value.retry_after_s == 1
    holders[0].cancel()
    await settle()
    async with bodies.read(Headers(JSON), sending(b"0123456789")):
        pass
    leave.set()
    await asyncio.gather(*holders, return_exceptions=True)
    assert bodies._held_bytes == 0  # noqa: SLF001 - as above


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
        '{"prompt": "x"}'.encode("utf-16"),
        b'{"prompt": "\\ud800"}',
        b"[" * 60_000,
        b"{'prompt': 'x'}",
    ],
)
def test_what_is_not_one_json_object_in_utf_8_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="one JSON object in UTF-8"):
        parse_request(body)


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
    request = parse_request(json.dumps(dict(EXAMPLE) | {"image_url": url}).encode())
    assert request.image_url == url


@pytest.mark.parametrize(
    "body",
    [
        b"{" + b",".join(b'"%x":1' % n for n in range(10_000)) + b"}",
        b'{"prompt":[' + b"[]," * 30_000 + b"[]]}",
        b'{"seed":' + b"9" * 70_000 + b"}",
        b'{"image_url":"data:,' + b"A" * 70_000 + b'","prompt":["data:,' + b"A" * 70_000 + b'"]}',
        b'{"image_url":"data:,","prompt":"' + b"a" * 70_000 + b'"}',
        b" " * 70_000 + b"{}",
    ],
)
def test_nothing_but_an_image_may_be_large_in_a_body(body: bytes) -> None:
    with pytest.raises(BodyTooLarge, match="beside an image"):
        parse_request(body)


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_text_that_begins_as_an_image_does_is_not_taken_for_it(name: str) -> None:
    fields = {"prompt": "sharpen", name: "data: sharpen the chart"}
    body = {**fields, "image_url": "data:image/png;base64," + "A" * 100_000}
    assert getattr(parse_request(json.dumps(body).encode()), name) == "data: sharpen the chart"


async def test_what_is_still_to_come_is_thrown_away_within_bounds() -> None:
    pieces = [b"12345"] * 4
    whole = sending(*pieces)
    await drain(whole, max_bytes=100, timeout_s=5)
    long = sending(*pieces)
    await drain(long, max_bytes=10, timeout_s=5)
    assert (await long())["body"] == b"12345"
    await drain(sending(None), max_bytes=10, timeout_s=5)
    stuck = sending()
    await asyncio.wait_for(drain(stuck, max_bytes=10, timeout_s=0.01), 1)
