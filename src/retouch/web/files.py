"""The signed links of the local store: make them absolute, and serve them."""

import hashlib
import re

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from retouch.errors import MethodNotAllowed
from retouch.schema import Result
from retouch.storage.local import LocalStore

_METHODS = ("GET", "HEAD")
_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))", re.ASCII)


def complete_link(result: Result, base_url: str) -> Result:
    """Put `base_url` in front of a local link, where PUBLIC_URL gives it no host."""
    link = result.presigned_url
    if not link.startswith("/"):
        return result
    return result.model_copy(update={"presigned_url": base_url + link})


async def serve_file(store: LocalStore, request: Request) -> Response:
    """Answer `/files/{key:path}` with the object, which no browser runs as a page.

    Knows ETag, If-None-Match, and one range of bytes (RFC 9110).

    Raises:
        MethodNotAllowed: the method is neither GET nor HEAD.
        LinkInvalid: the link was not signed by this store.
        LinkExpired: the link has expired.
        RouteNotFound: the object no longer exists.
        StorageError: the object cannot be read.
    """
    if request.method not in _METHODS:
        raise MethodNotAllowed("a file link takes GET and HEAD", details={"allow": list(_METHODS)})
    key = request.path_params["key"]
    file = await run_in_threadpool(store.open_link, key, request.url.query)
    etag = f'"{hashlib.sha256(file.body).hexdigest()[:32]}"'
    headers = {
        "Content-Type": file.content_type,
        "Content-Disposition": file.disposition,
        "Cache-Control": f"private, max-age={file.left_s}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "ETag": etag,
        "Accept-Ranges": "bytes",
    }
    if any(etag in one for one in request.headers.getlist("if-none-match")):
        return Response(status_code=304, headers=headers)
    body, status = file.body, 200
    if request.headers.get("if-range", etag) == etag and request.method == "GET":
        span = find_range(request.headers.get("range", ""), len(body))
        if span is not None:
            start, end = span
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(body)}"
            body, status = body[start:end], 206
            if not body:
                headers["Content-Range"] = f"bytes */{len(file.body)}"
                status = 416
    headers["Content-Length"] = str(len(body))
    return Response(b"" if request.method == "HEAD" else body, status_code=status, headers=headers)


def find_range(text: str, size: int) -> tuple[int, int] | None:
    """Return start and end of the bytes that a Range header asks for; None: all of them.

    Several ranges, and a header that is not well-formed, count as none, as RFC 9110 allows.

    >>> find_range("bytes=2-4", 10), find_range("bytes=2-", 10), find_range("bytes=-3", 10)
    ((2, 5), (2, 10), (7, 10))
    >>> find_range("bytes=10-", 10), find_range("bytes=4-2", 10), find_range("bytes=0-1,3-4", 10)
    ((10, 10), None, None)
    """
    parts = _RANGE.fullmatch(text)
    if parts is None:
        return None
    if parts[3]:
        return max(size - int(parts[3]), 0), size
    start = int(parts[1])
    if parts[2] and int(parts[2]) < start:
        return None
    return min(start, size), min(int(parts[2]) + 1 if parts[2] else size, size)
