"""Serves the signed links of the local store."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from retouch.storage.keys import attachment
from retouch.storage.local import LocalStore


async def serve_file(store: LocalStore, request: Request) -> Response:
    """Answer `/files/{key:path}` with the object, as an attachment that no browser runs as a page.

    Raises:
        LinkInvalid: the link was not signed by this store.
        LinkExpired: the link has expired.
        RouteNotFound: the object no longer exists.
        StorageError: the object cannot be read.
    """
    key = request.path_params["key"]
    file = await run_in_threadpool(store.open_link, key, request.url.query)
    headers = {
        "Content-Type": file.content_type,
        "Content-Length": str(len(file.body)),
        "Content-Disposition": attachment(key),
        "Cache-Control": f"private, max-age={file.left_s}",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(b"" if request.method == "HEAD" else file.body, headers=headers)
