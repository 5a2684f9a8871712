"""One HTTP/1.1 request over an open connection. h11 parses; nothing is decompressed."""

import re

import h11
import httpcore

Headers = list[tuple[bytes, bytes]]

_HEAD_READ_BYTES = 8 * 1024
"""Small, so that a flood of interim responses blocks the event loop only briefly."""
_HEAD_BYTES = _BODY_READ_BYTES = 64 * 1024
_HEAD_END = re.compile(rb"\r?\n\r?\n")
# What h11 takes (RFC 9110, section 5), and beside it white space before the colon, as browsers do.
_HEADER_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+)[ \t]*:([^\x00\x0b\x0c\r]*)")
# What h11 refuses although it says nothing about the body, which then ends with the connection.
_EMPTY_FRAMING = re.compile(rb"content-length:\s*|transfer-encoding:\s*identity\s*", re.IGNORECASE)
_FOLDED_LINE = re.compile(rb"[ \t][^\x00\x0b\x0c\r]*")


class Exchange:
    """The request and its response. The caller closes the stream."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)

    async def send(
        self, method: str, target: str, headers: Headers, body: bytes = b""
    ) -> h11.Response:
        """Send the request and return the head of the final response, header names in lower case.

        Header lines that are not HTTP are dropped.

        Raises:
            h11.RemoteProtocolError: it is not HTTP, or takes over 64 KiB, interim responses included.
            httpcore.NetworkError: the connection broke.
        """
        request = h11.Request(method=method, target=target, headers=headers)
        parts = [request, *([h11.Data(body)] if body else []), h11.EndOfMessage()]
        await self._stream.write(b"".join(self._h11.send(part) or b"" for part in parts))
        received, rest = 0, b""
        while True:
            head, rest = await self._read_head(rest, max_bytes=_HEAD_BYTES - received)
            received += len(head)
            self._h11.receive_data(_clean(head))
            event = self._h11.next_event()
            if isinstance(event, h11.Response):
                if rest:
                    self._h11.receive_data(rest)
                return event

    async def read(self) -> bytes:
        """Return the next piece of the body, empty at its end. Raises as `send` does."""
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._stream.read(_BODY_READ_BYTES))
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _read_head(self, data: bytes, *, max_bytes: int) -> tuple[bytes, bytes]:
        """Read up to the next empty line; return what is before its end, and what is behind it."""
        searched = 0
        while not (end := _HEAD_END.search(data, searched)):
            searched = max(0, len(data) - 3)  # an end may have begun
            if len(data) > max_bytes:
                raise h11.RemoteProtocolError(f"no response within {_HEAD_BYTES} bytes")
            more = await self._stream.read(_HEAD_READ_BYTES)
            if not more:
                raise h11.RemoteProtocolError("the connection closed before the response")
            data += more
        return data[: end.end()], data[end.end() :]


def _clean(head: bytes) -> bytes:
    """Return the head without the header lines that h11 would refuse, and each line once."""
    status, *lines = head.rstrip(b"\r\n").split(b"\n")
    kept, may_fold = [status.removesuffix(b"\r")], False
    seen: set[bytes] = set()
    for line in lines:
        plain = line.removesuffix(b"\r")
        if header := _HEADER_LINE.fullmatch(plain):
            field = header[1] + b": " + header[2].strip(b" \t")
            may_fold = field not in seen and not _EMPTY_FRAMING.fullmatch(field)
            kept += [field] if may_fold else []
            seen.add(field)
        elif may_fold and _FOLDED_LINE.fullmatch(plain):
            kept.append(plain)
        else:
            may_fold = False
    return b"\r\n".join(kept) + b"\r\n\r\n"
