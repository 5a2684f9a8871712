"""Every change made to uvicorn and BentoML, each with a test that fails once upstream needs it no more.

`tests/unit/web/test_server.py` states what upstream does without each of them.
"""

import asyncio
import resource
import sys
import uuid
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.server.http import traffic
from circus.sockets import CircusSocket  # type: ignore[import-untyped]
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol

from retouch import tracing
from retouch.web.app import answer_loss
from retouch.web.standby import HOLD, Channel


class _Parser(h11.Connection):
    """Refuses a request of two lengths, and a body in many tiny pieces.

    A proxy in front may believe the other length. h11 believes Transfer-Encoding and goes on with the
    connection (RFC 9112, section 6.1, has a server close it, or refuse). It takes some 15 µs a chunk,
    so a body of one-byte chunks keeps the event loop busy at 400 kB/s.
    """

    max_pieces: ClassVar = 1024
    min_piece_bytes: ClassVar = 256
    """What a piece must have on average once there are more than `max_pieces`."""
    _pieces = _piece_bytes = 0

    def next_event(self) -> Any:
        """Return the next event."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._piece_bytes = 0
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
        if isinstance(event, h11.Data):
            self._pieces += 1
            self._piece_bytes += len(event.data)
            limit_bytes = self.min_piece_bytes * self._pieces
            if self._pieces > self.max_pieces and self._piece_bytes < limit_bytes:
                raise h11.RemoteProtocolError("the body comes in too many tiny pieces")
        return event


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """One HTTP connection that is closed if it stalls or if there are too many.

    h11 bounds heads, trailers and chunk headers, and answers pipelined requests one at a time. uvicorn
    itself closes only a connection that is silent after an answer: not one that sends nothing, drips a
    head or a refused body, or does not read its answer.
    """

    check_every_s: ClassVar = 15.0
    """A head has this long; a refused body and an unread answer have up to twice as long."""
    min_read_bytes: ClassVar = 16384
    """What a client must read of a long answer between two checks."""
    max_head_bytes: ClassVar = 65536
    # Half of the descriptors stay for sources, the store and decoders.
    max_connections: ClassVar = min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    # Oldest first, among connections waiting for the client: where there are too many it is closed.
    _awaiting_client: ClassVar[dict["Connection", None]] = {}
    # h11 takes some 20 µs a chunk, and a chunk may be one byte: short reads let the loop serve others.
    # One buffer serves all, as each read is parsed before the next.
    _buffer: ClassVar = memoryview(bytearray(16384))
    standby: ClassVar = Channel()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Parser(h11.SERVER, self.max_head_bytes)
        self._unread_bytes = 0
        self._checked: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the oldest idle connection where there are too many."""
        super().connection_made(transport)
        self.hold = self.standby.hold(transport)
        self.hold.begin(answer_loss("", uuid.uuid4().hex)[0])  # until there is a request
        self._awaiting_client[self] = None
        self._check_timer = self.loop.call_later(self.check_every_s, self._check)
        if len(self.connections) > self.max_connections:
            oldest = next(iter(self._awaiting_client))
            del self._awaiting_client[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the checks."""
        self.hold.end()
        self._check_timer.cancel()
        self._awaiting_client.pop(self, None)
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - a hint
        """Return where the transport puts what it reads."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse what was read."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def handle_events(self) -> None:
        """Parse; once a request is whole the client waits for us."""
        super().handle_events()
        if self.scope is not None:
            self.scope["state"][HOLD] = self.hold  # its task begins later
        if self._is_answering() and not self.cycle.more_body:
            self._awaiting_client.pop(self, None)

    def on_response_complete(self) -> None:
        """Wait for the client again, unless its next request is here already."""
        self._awaiting_client[self] = None
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse; h11 cannot in the middle of an answer."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def _should_upgrade(self) -> bool:
        # Nothing speaks WebSocket; RFC 9110, section 7.8, lets a server ignore the wish.
        return False

    def _is_answering(self) -> bool:
        # None before the first request, whatever its type says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _check(self) -> None:
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes:
            stalls = 0 < self._unread_bytes < unread_bytes + self.min_read_bytes
        else:  # an answer in progress, and its body, are bounded by the application
            stalls = not self._is_answering() and self.cycle is self._checked
        self._unread_bytes, self._checked = unread_bytes, self.cycle
        if stalls:
            self.transport.abort()
        else:
            self._check_timer = self.loop.call_later(self.check_every_s, self._check)


def _listen(sock: Any, listen: Callable[[Any], None] = CircusSocket.bind_and_listen) -> None:
    try:
        listen(sock)
    except OSError as error:
        sys.exit(f"cannot listen on {sock.location}: {error.strerror}; change --host or --port")


def install(standby: Channel) -> None:
    """Make BentoML's server use `Connection` with `standby`, and no timer a request.

    Where the port is taken, `bentoml serve` ends with one line instead of a trace.

    BentoML hands no choice of protocol on to uvicorn. Its TimeoutMiddleware keeps 4 KiB a request until
    the limit is over, however soon the answer went out, and cannot be switched off.
    """
    Connection.standby = standby
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
    vars(traffic)["TimeoutMiddleware"] = lambda app, timeout: app  # noqa: ARG005
    CircusSocket.bind_and_listen = _listen


def share_tracer() -> None:
    """Record the steps of edits by BentoML's tracer, where its tracing is set up."""
    if BentoMLContainer.config.tracing.exporter_type.get():
        tracing.record_with(BentoMLContainer.tracer_provider.get())


def allow_origins(app: ASGIApp) -> ASGIApp:
    """Return `app` behind CORS as BentoML's setting has it: unchanged where that is off.

    BentoML puts it below our own middleware, which answers every request itself: a preflight, which
    has no key, would not reach it.
    """
    if not BentoMLContainer.http.cors.enabled.get():
        return app
    options: dict[str, Any] = {"expose_headers": ["X-Request-ID", "Retry-After", "Location"]}
    return CORSMiddleware(app, **options | BentoMLContainer.access_control_options.get())


def read_origins() -> list[str]:
    """Return the origins that BentoML's CORS setting allows, `*` among them for any."""
    if not BentoMLContainer.http.cors.enabled.get():
        return []
    options: dict[str, Any] = BentoMLContainer.access_control_options.get()
    return list(options.get("allow_origins", []))
