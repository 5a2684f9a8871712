"""What one HTTP request is known by: its ids, its caller, and how to hear that the caller left."""

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Message, Receive, Scope

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_EVENTS = re.compile(
    r"(?:^|,)\s*text/event-stream\s*(?!;[^,]*\bq=0(?:\.0*)?\s*(?:[;,]|$))(?:[;,]|$)"
)
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:\d{1,5})?")


@dataclass(slots=True)
class RequestContext:
    """One request and its answer. `job_id` is ours; `request_id` may be the caller's.

    `is_read` is whether all of its body has come.
    """

    request: Request
    receive: Receive
    job_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    request_id: str = ""
    is_read: bool = False

    def __post_init__(self) -> None:
        given = self.request.headers.get("x-request-id", "")
        self.request_id = given if _REQUEST_ID.fullmatch(given) else self.job_id

    @property
    def wants_events(self) -> bool:
        """Whether the caller asked for progress as server-sent events."""
        if self.request.scope.get("http_version") == "1.0":
            return False  # which has no chunks to stream in
        accepted = ",".join(self.request.headers.getlist("accept")).lower()
        return bool(_EVENTS.search(accepted))

    @property
    def ends_connection(self) -> bool:
        """Whether the connection is closed after the answer, as the caller wants it."""
        wishes = ",".join(self.request.headers.getlist("connection")).lower()
        return "close" in wishes or self.request.scope.get("http_version") == "1.0"

    @property
    def base_url(self) -> str:
        """Scheme and host as the caller named them; without a sane Host header, nothing."""
        host = self.request.headers.get("host", "")
        return f"{self.request.url.scheme}://{host}" if _HOST.fullmatch(host) else ""

    async def wait_until_left(self) -> None:
        """Return when the caller has closed the connection."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


current: ContextVar[RequestContext] = ContextVar("exchange")
"""The exchange being answered; BentoML hands its methods no request without costing the status."""


def open_request_context(scope: Scope, receive: Receive) -> RequestContext:
    """Make the exchange of a request and set it as the current one."""

    async def receive_noting() -> Message:
        message = await receive()
        exchange.is_read = exchange.is_read or not message.get("more_body", False)
        return message

    exchange = RequestContext(Request(scope, receive_noting), receive_noting)
    current.set(exchange)
    return exchange


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` again, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again
