import asyncio

import pytest
from starlette.types import Message, Scope
from support.fakes import settle

from retouch.web.request_context import RequestContext, current, open_request_context, replay


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


def opened(*, scheme: str = "http", **headers: str) -> RequestContext:
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "scheme": scheme,
        "server": ("127.0.0.1", 3000),
        "headers": [
            (name.replace("_", "-").encode(), value.encode("latin-1"))
            for name, value in headers.items()
        ],
    }
    return open_request_context(scope, never)


@pytest.mark.parametrize("given", ["a", "A-1_b.c:d", "x" * 128])
def test_a_caller_s_request_id_is_taken_over(given: str) -> None:
    exchange = opened(x_request_id=given)
    assert exchange.request_id == given
    assert exchange.job_id != given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\n", "a/b", "<a>", "ä", "a\r\nb"])
def test_a_hostile_one_is_replaced_by_the_job_id(given: str) -> None:
    exchange = opened(x_request_id=given)
    assert exchange.request_id == exchange.job_id


def test_a_job_id_is_ours_plain_and_new_every_time() -> None:
    ids = {opened().job_id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(job_id) == 32 and int(job_id, 16) for job_id in ids)


@pytest.mark.parametrize(
    ("accept", "wants"),
    [
        ("text/event-stream", True),
        ("application/json, text/event-stream;q=0.9", True),
        ("application/json, TEXT/Event-Stream ; q=0.5", True),
        ("text/event-stream;q=0, application/json", False),
        ("text/event-stream; q=0.0", False),
        ("text/event-streams", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_events_are_sent_to_who_asks_for_them(accept: str, *, wants: bool) -> None:
    assert opened(accept=accept).wants_events is wants
    older = opened(accept=accept)
    older.request.scope["http_version"] = "1.0"
    assert not older.wants_events


@pytest.mark.parametrize(
    "host", ["example.com", "example.com:8443", "10.0.0.1:3000", "[::1]:3000", "[::1]", "a-b.c"]
)
def test_links_begin_with_the_host_that_the_caller_used(host: str) -> None:
    assert opened(host=host).base_url == f"http://{host}"


def test_links_have_the_scheme_of_the_request() -> None:
    assert opened(scheme="https", host="example.com").base_url == "https://example.com"


@pytest.mark.parametrize(
    "host",
    ["", "a b", "a/b", "u@h", "h:x", "h:123456", "a\n", "<script>", "h\\x", "[::1", "a" * 254],
)
def test_a_host_that_is_none_makes_a_relative_link(host: str) -> None:
    assert opened(host=host).base_url == ""


def test_the_exchange_is_the_current_one() -> None:
    assert current.get(None) is not opened()
    exchange = opened()
    assert current.get() is exchange


async def test_waiting_ends_when_the_caller_leaves() -> None:
    exchange = opened()
    messages: asyncio.Queue[Message] = asyncio.Queue()
    exchange.receive = messages.get
    wait = asyncio.create_task(exchange.wait_until_left())
    messages.put_nowait({"type": "http.request", "body": b""})
    await settle()
    assert not wait.done()
    messages.put_nowait({"type": "http.disconnect"})
    await wait


async def test_a_replayed_body_comes_once_and_then_what_follows() -> None:
    async def left() -> Message:
        return {"type": "http.disconnect"}

    receive = replay(b"body", left)
    assert await receive() == {"type": "http.request", "body": b"body", "more_body": False}
    assert await receive() == {"type": "http.disconnect"}
    assert await receive() == {"type": "http.disconnect"}
