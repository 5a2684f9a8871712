"""Bounds what a connection may hold and how long it may stand still; uvicorn does neither.

uvicorn keeps a head, a trailer and pipelined requests in memory without a limit, and ends only a
connection that was answered and then says nothing (`uvicorn/protocols/http/httptools_impl.py`). It
also loses the body of a request that asks for an upgrade, as Java's client and `curl --http2` do of
every server, and with requests sent ahead it does not tell the one being answered that the caller left.
"""

import asyncio
import resource
from typing import Any, ClassVar

import httptools
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class _Parser(httptools.HttpRequestParser):
    """Goes on where a caller asks for an upgrade: nothing here speaks another protocol.

    httptools stops at the end of such a head and calls the rest another protocol's (RFC 9110, section
    7.8, lets a server ignore the wish, and then it is none).
    """

    def __init__(self, connection: "Connection") -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        self._connection = connection

    @property
    def asks_upgrade(self) -> bool:
        """Whether the head that was read asks for one; CONNECT is refused as the method it is."""
        return self.should_upgrade() and self.get_method() != b"CONNECT"

    def feed_data(self, data: Any) -> None:
        """Parse."""
        try:
            super().feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            if not self.asks_upgrade:
                raise
            self._connection.read_on(self, data[stopped.args[0] :])


def _is_hop(name: bytes) -> bool:
    return name.strip().lower() in (b"upgrade", b"http2-settings")


class Connection(HttpToolsProtocol):
    """One HTTP connection, ended if it stands still, holds too much or must make room."""

    check_every_s: ClassVar = 15.0
    """A head has this long; what is answered, unread or being drained has up to twice as long."""
    min_read_bytes: ClassVar = 16384
    """What a caller must at least read of an answer between two checks."""
    max_head_bytes: ClassVar = 65536
    max_pipelined: ClassVar = 8
    # Half of the descriptors stay for sources, the store and decoders.
    max_connections: ClassVar = min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    # In the order in which they began to owe us bytes: the first is ended where there are too many.
    _owing: ClassVar[dict["Connection", None]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Nothing here speaks WebSocket: such a request is answered as any other.
        self.ws_protocol_class = None
        self._loose_bytes = 0
        self._unread_bytes = 0
        self._checked: object = None
        self._answered: Any = None
        self.parser: _Parser = _Parser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it in, and where there are too many end the one that owes us bytes for longest."""
        super().connection_made(transport)
        self._owing[self] = None
        self._check_timer = self.loop.call_later(self.check_every_s, self._check)
        if len(self.connections) > self.max_connections:
            oldest = next(iter(self._owing))
            del self._owing[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._check_timer.cancel()
        self._owing.pop(self, None)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; what is neither body nor the end of a head may not grow without end."""
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > self.max_head_bytes and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        """Begin to answer, or to wait for the answers before."""
        if self.parser.asks_upgrade:
            return
        self._loose_bytes = 0
        if len(self.pipeline) >= self.max_pipelined:
            raise ValueError("too many requests before the first is answered")
        super().on_headers_complete()

    def read_on(self, parser: "_Parser", rest: bytes) -> None:
        """Read a request again without the upgrade it asked for, and what comes after its head."""
        line = (parser.get_method(), self.url, parser.get_http_version().encode())
        head = [b"%s %s HTTP/%s\r\n" % line]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                kept = b",".join(token for token in value.split(b",") if not _is_hop(token))
            if not _is_hop(name):
                head.append(b"%s: %s\r\n" % (name, kept))
        self.parser = _Parser(self)
        self.parser.feed_data(b"".join([*head, b"\r\n", rest]))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Hand on what belongs to a body."""
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the caller has said all; it is our turn."""
        if self.parser.asks_upgrade:
            return
        self._owing.pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that it is the caller's turn."""
        super().on_response_complete()
        if not self.pipeline:
            self._owing[self] = None

    def send_400_response(self, msg: str) -> None:
        """Refuse; never in the place or the middle of the answer to an earlier request."""
        if self._is_answering():
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _is_answering(self) -> bool:
        # None before the first request, whatever its type says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _check(self) -> None:
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes:
            stands = 0 < self._unread_bytes < unread_bytes + self.min_read_bytes
        else:  # an answer that is being made, or its body read, is bounded where that is done
            stands = not self._is_answering() and self.cycle is self._checked
        self._unread_bytes, self._checked = unread_bytes, self.cycle
        if stands:
            self.transport.abort()
        else:
            self._check_timer = self.loop.call_later(self.check_every_s, self._check)


def install() -> None:
    """Have the server that BentoML starts use it; BentoML hands no such choice on to uvicorn."""
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
