"""One HTTP/1.1 GET over an open connection. h11 parses; nothing is decompressed."""

import h11
import httpcore

Headers = list[tuple[bytes, bytes]]

_HEAD_READ_BYTES = 8 * 1024
"""Small, so that a flood of interim responses blocks the event loop only briefly."""
_HEAD_BYTES = _BODY_READ_BYTES = 64 * 1024


class Exchange:
    """The GET and its response. The caller closes the stream."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES)

    async def get(self, target: str, headers: Headers) -> h11.Response:
        """Send the request and return the head of the final response, header names in lower case.

        Raises:
            h11.RemoteProtocolError: it is not HTTP, or takes over 64 KiB, interim responses included.
            httpcore.NetworkError: the connection broke.
        """
        request = h11.Request(method="GET", target=target, headers=headers)
        data = (self._h11.send(request) or b"") + (self._h11.send(h11.EndOfMessage()) or b"")
        await self._stream.write(data)
        received = 0
        while True:
            event = self._h11.next_event()
            if isinstance(event, h11.Response):
                return event
            if event is h11.NEED_DATA:
                if received > _HEAD_BYTES:  # h11 bounds one head, not a row of 1xx responses
                    raise h11.RemoteProtocolError(f"no response within {_HEAD_BYTES} bytes")
                received += await self._receive(_HEAD_READ_BYTES)

    async def read(self) -> bytes:
        """Return the next piece of the body, empty at its end. Raises as `get` does."""
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            await self._receive(_BODY_READ_BYTES)
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _receive(self, max_bytes: int) -> int:
        data = await self._stream.read(max_bytes)
        self._h11.receive_data(data)
        return len(data)
