from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from retouch.errors import EditError
from retouch.storage.local import LocalStore
from retouch.web.files import serve_file

KEY = "results/a/job-1.svg"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(tmp_path, secret=b"s", public_url="", result_ttl_s=3600)
    made.put(KEY, b"<svg/>", content_type="image/svg+xml", metadata={}, timeout_s=1)
    return made


@pytest.fixture
def client(store: LocalStore) -> TestClient:
    async def endpoint(request: Request) -> Response:
        try:
            return await serve_file(store, request)
        except EditError as error:
            return Response(error.code, status_code=error.status)

    return TestClient(Starlette(routes=[Route("/files/{key:path}", endpoint)]))


@pytest.fixture
def url(store: LocalStore) -> str:
    return store.link(KEY, expires_in_s=60)


def test_a_file_is_an_attachment_that_runs_no_script(client: TestClient, url: str) -> None:
    answer = client.get(url)
    assert (answer.status_code, answer.content) == (200, b"<svg/>")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["content-disposition"] == 'attachment; filename="job-1.svg"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("sandbox")
    kind, _, max_age = answer.headers["cache-control"].partition(", max-age=")
    assert kind == "private"
    assert 58 <= int(max_age) <= 60


def test_head_has_the_headers_of_get_and_no_body(client: TestClient, url: str) -> None:
    answer = client.head(url)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "6"


@pytest.mark.parametrize("path", ["", "%2e%2e/link_secret", "..%2f..%2fetc/passwd", "results//a"])
def test_a_path_without_its_own_link_is_refused(client: TestClient, url: str, path: str) -> None:
    answer = client.get(f"/files/{path}?{url.partition('?')[2]}")
    assert (answer.status_code, answer.text) == (403, "link_invalid")
