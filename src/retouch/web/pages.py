"""The page for people at `/` and the reference at `/docs`: static, with nothing from elsewhere."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.responses import HTMLResponse, Response

from retouch.web.request_context import RequestContext

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def _read(name: str) -> tuple[str, str]:
    """Return a page and the policy under which only what is written in it runs."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    hashes = {"script": "", "style": ""}
    for tag, content in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[tag] += f" 'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src{hashes['script']}; style-src{hashes['style']}; "
        "connect-src 'self'; img-src 'self' http: https: data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _answer(name: str) -> Response:
    text, policy = _read(name)
    return HTMLResponse(
        text,
        headers={
            "Content-Security-Policy": policy,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


async def answer_page(_: RequestContext) -> Response:
    """Answer `/`."""
    return _answer("page.html")


async def answer_docs(_: RequestContext) -> Response:
    """Answer `/docs`."""
    return _answer("docs.html")


async def answer_sample(_: RequestContext) -> Response:
    """Answer `/sample.jpg`: a cup of coffee to try an edit on."""
    return Response(_read_picture("sample.jpg"), media_type="image/jpeg")


async def answer_strip(_: RequestContext) -> Response:
    """Answer `/demo.webp`: the sample and what the demo model makes of it."""
    return Response(_read_picture("demo.webp"), media_type="image/webp")


@cache
def _read_picture(name: str) -> bytes:
    return (Path(__file__).parent / name).read_bytes()
