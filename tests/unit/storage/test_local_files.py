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


def test_a_file_is_shown_but_runs_no_script(client: TestClient, url: str) -> None:
    answer = client.get(url)
    assert (answer.status_code, answer.content) == (200, b"<svg/>")
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.headers["content-disposition"] == 'inline; filename="job-1.svg"'
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


def test_a_file_that_the_client_has_is_not_sent_again(client: TestClient, url: str) -> None:
    etag = client.get(url).headers["etag"]
    again = client.get(url, headers=[("If-None-Match", '"other"'), ("If-None-Match", etag)])
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    ("asked", "body", "told"),
    [
        ("bytes=0-2", b"<sv", "bytes 0-2/6"),
        ("bytes=4-", b"/>", "bytes 4-5/6"),
        ("bytes=-2", b"/>", "bytes 4-5/6"),
        ("bytes=3-99", b"g/>", "bytes 3-5/6"),
    ],
)
def test_a_range_is_sent_alone(
    client: TestClient, url: str, asked: str, body: bytes, told: str
) -> None:
    answer = client.get(url, headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, body)
    assert answer.headers["content-range"] == told
    assert answer.headers["content-length"] == str(len(body))


def test_a_range_behind_the_end_is_refused(client: TestClient, url: str) -> None:
    answer = client.get(url, headers={"Range": "bytes=6-"})
    assert (answer.status_code, answer.content) == (416, b"")
    assert answer.headers["content-range"] == "bytes */6"


@pytest.mark.parametrize(
    "headers",
    [{"Range": "bytes=a"}, {"Range": "bytes=0-1,3-4"}, {"Range": "bytes=0-1", "If-Range": '"x"'}],
)
def test_other_ranges_get_the_whole_file(
    client: TestClient, url: str, headers: dict[str, str]
) -> None:
    answer = client.get(url, headers=headers)
    assert (answer.status_code, answer.content) == (200, b"<svg/>")


def test_a_store_can_make_links_that_save(tmp_path: Path) -> None:
    store = LocalStore(
        tmp_path, secret=b"s", public_url="", result_ttl_s=60, disposition="attachment"
    )
    store.put(KEY, b"x", content_type="image/png", metadata={}, timeout_s=1)
    file = store.open_link(KEY, store.link(KEY, expires_in_s=60).partition("?")[2])
    assert file.disposition == 'attachment; filename="job-1.svg"'
