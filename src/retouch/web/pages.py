"""The pages at `/` and `/docs`: static files without a build step, under a strict policy."""

import os
from pathlib import Path

from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' http: https: data: blob:; "  # sources and results may be anywhere
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


def build_page(name: str) -> Response:
    """Return the answer with a page of `static/`, which runs code of this service only."""
    return HTMLResponse(
        (STATIC / name).read_text(encoding="utf-8"),
        headers={
            "Content-Security-Policy": _POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        },
    )


def page_routes() -> list[Route]:
    """Return the routes of the pages and of what they load; none needs a key."""
    static = _StaticAssets(directory=STATIC)
    return [
        Route("/", build_page("page.html"), methods=["GET"]),
        Route("/docs", build_page("docs.html"), methods=["GET"]),
        *(
            Route(path, static, methods=["GET"])
            for path in ("/page/{name}", "/sample.jpg", "/demo.webp")
        ),
    ]


class _StaticAssets(StaticFiles):
    """Serves `static/`. Browsers ask each time, so that a new version never meets old modules."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return the file, or 304 where the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response
