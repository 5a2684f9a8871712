"""Serves the signed links of the local store."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from retouch.errors import MethodNotAllowed
from retouch.storage.keys import attachment
from retouch.storage.local import LocalStore

_METHODS = ("GET", "HEAD")


async def serve_file(store: LocalStore, request: Request) -> Response:
    """Answer `/files/{key:path}` with the object, as a file to save and never as a page to run.

    Raises:
        MethodNotAllowed: neither GET nor HEAD.
        LinkInvalid: the link was not made by this store.
        LinkExpired: its time is over.
        RouteNotFound: its object is gone.
        StorageError: its object cannot be read.
    """
    if request.method not in _METHODS:
        raise MethodNotAllowed("a file link takes GET and HEAD")
    key = request.path_params["key"]
    file = await run_in_threadpool(store.open_link, key, request.url.query)
    headers = {
        "Content-Type": file.content_type,
        "Content-Length": str(len(file.body)),
        "Content-Disposition": attachment(file.filename),
        "Cache-Control": f"private, max-age={file.left_s}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(b"" if request.method == "HEAD" else file.body, headers=headers)
