"""The contract of the `Store` port: one suite for S3 over http and https and for a directory."""

import hashlib
import os
import random
import secrets
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import httpx
import pytest
import trustme
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient
from support.servers.ceph_rgw import Rgw

from retouch.errors import EditError, StorageError
from retouch.storage.local import LocalStore, load_secret
from retouch.storage.port import Store
from retouch.storage.s3 import S3Settings, S3Store
from retouch.web.files import serve_file

pytestmark = pytest.mark.integration
PNG = "image/png"
KEY = "retouch/results/0f/job-1.png"


class Answer(Protocol):
    """What responses of httpx and of Starlette's test client have in common."""

    status_code: int

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def content(self) -> bytes: ...


@dataclass
class Home:
    store: Store
    open: Callable[[str, str], Answer]


def local_home(folder: Path) -> Home:
    secret = load_secret(folder, "")
    store = LocalStore(folder, secret=secret, public_url="http://here", result_ttl_s=3600)

    async def endpoint(request: Request) -> Response:
        try:
            return await serve_file(store, request)
        except EditError as error:
            return Response(error.message, status_code=error.status)

    app = Starlette(routes=[Route("/files/{key:path}", endpoint)])
    client = TestClient(app, base_url="http://here")
    return Home(store, lambda url, method: client.request(method, url))


@pytest.fixture(params=["s3-http", "s3-https", "local"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    if request.param == "local":
        yield local_home(tmp_path)
        return
    rgw: Rgw = request.getfixturevalue("rgw")
    settings: S3Settings = request.getfixturevalue("s3_settings")
    if request.param == "s3-https":
        settings = replace(settings, endpoint=rgw.tls_endpoint, secure=True)
    store = S3Store(settings, ca_certs=rgw.ca_file)
    trust = ssl.create_default_context(cafile=rgw.ca_file)
    with httpx.Client(verify=trust, trust_env=False) as client:
        yield Home(store, lambda url, method: client.request(method, url))
    store.close()


def put(store: Store, key: str, body: bytes, metadata: dict[str, str] | None = None) -> None:
    store.put(key, body, content_type=PNG, metadata=metadata or {}, timeout_s=20)


def get(store: Store, key: str, max_bytes: int = 1 << 24) -> bytes | None:
    found = store.get(key, max_bytes=max_bytes, timeout_s=20)
    return found.body if found else None


def link(store: Store, key: str = KEY, expires_in_s: int = 60) -> str:
    return store.link(key, expires_in_s=expires_in_s)


@pytest.mark.parametrize("size", [0, 1, 5 << 20, 12_000_000])
def test_an_object_comes_back_with_its_metadata(home: Home, size: int) -> None:
    body = random.Random(size).randbytes(size)  # noqa: S311
    put(home.store, KEY, body, {"sha256": "ab12", "fetched-at": "2026-01-02T03:04:05Z"})
    found = home.store.get(KEY, max_bytes=size, timeout_s=20)
    assert found is not None
    assert found.body == body
    assert found.metadata == {"sha256": "ab12", "fetched-at": "2026-01-02T03:04:05Z"}


def test_an_absent_object_is_none(home: Home) -> None:
    assert get(home.store, "retouch/sources/v1/00/none") is None


def test_a_second_put_replaces_the_first(home: Home) -> None:
    put(home.store, KEY, b"first, and longer", {"n": "1"})
    put(home.store, KEY, b"second", {"n": "2"})
    found = home.store.get(KEY, max_bytes=100, timeout_s=20)
    assert found is not None
    assert (found.body, found.metadata) == (b"second", {"n": "2"})


def test_an_object_over_the_limit_is_an_error_and_one_at_it_is_not(home: Home) -> None:
    put(home.store, KEY, b"x" * 100)
    assert get(home.store, KEY, max_bytes=100) == b"x" * 100
    with pytest.raises(StorageError, match="over 99 bytes"):
        get(home.store, KEY, max_bytes=99)
    assert get(home.store, KEY, max_bytes=100) is not None


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a/../b", ".", "A", "a b", "a%41", "é"])
def test_a_malformed_key_is_refused(home: Home, key: str) -> None:
    with pytest.raises(StorageError, match="key"):
        put(home.store, key, b"x")
    with pytest.raises(StorageError, match="key"):
        get(home.store, key)
    with pytest.raises(StorageError, match="key"):
        link(home.store, key)


def test_a_link_shows_the_object(home: Home) -> None:
    put(home.store, KEY, b"picture")
    answer = home.open(link(home.store), "GET")
    assert answer.status_code == 200
    assert answer.content == b"picture"
    assert answer.headers["content-type"] == PNG
    assert answer.headers["content-length"] == "7"
    assert answer.headers["content-disposition"] == 'inline; filename="job-1.png"'


def extended(url: str) -> str:
    now_s = int(time.time())
    expires = next(f"expires={at}" for at in range(now_s + 50, now_s + 70) if f"={at}" in url)
    return url.replace(expires, "expires=9999999999")


CHANGES: dict[str, Callable[[str], str]] = {
    "signature": lambda url: url[:-1] + ("0" if url[-1] != "0" else "1"),
    "no signature": lambda url: url.rpartition("&")[0],
    "no query": lambda url: url.partition("?")[0],
    "other key": lambda url: url.replace("job-1", "job-2"),
    "escaping key": lambda url: url.replace(KEY, quote("../link_secret", safe="")),
    "added parameter": lambda url: url + "&x=1",
    "longer": lambda url: (
        extended(url) if "X-Amz" not in url else url.replace("Expires=60", "Expires=600")
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_link_is_refused(home: Home, change: str) -> None:
    put(home.store, KEY, b"picture")
    put(home.store, KEY.replace("job-1", "job-2"), b"other")
    url = link(home.store)
    changed = CHANGES[change](url)
    assert changed != url
    answer = home.open(changed, "GET")
    assert answer.status_code == 403
    assert b"picture" not in answer.content
    assert b"other" not in answer.content


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_a_link_to_read_cannot_write(home: Home, method: str) -> None:
    put(home.store, KEY, b"picture")
    assert home.open(link(home.store), method).status_code in {403, 405}
    assert get(home.store, KEY) == b"picture"


def test_a_link_expires(home: Home) -> None:
    put(home.store, KEY, b"picture")
    url = link(home.store, expires_in_s=1)
    time.sleep(2.1)
    answer = home.open(url, "GET")
    assert answer.status_code == 403
    assert b"picture" not in answer.content


def test_the_longest_link_opens(home: Home) -> None:
    put(home.store, KEY, b"picture")
    assert home.open(link(home.store, expires_in_s=7 * 24 * 3600), "GET").status_code == 200


def test_the_keys_under_a_prefix_are_listed_in_order_up_to_the_limit(home: Home) -> None:
    folder = secrets.token_hex(4)  # both S3 stores are one bucket
    prefix = f"retouch/{folder}/webhooks/"
    assert home.store.list_keys(prefix, max_keys=9, timeout_s=20) == []
    for name in ("b/due", "a/delivered", "a/due"):
        put(home.store, prefix + name, b"{}")
    put(home.store, f"retouch/{folder}/c/accepted", b"{}")
    keys = [f"{prefix}{name}" for name in ("a/delivered", "a/due", "b/due")]
    assert home.store.list_keys(prefix, max_keys=9, timeout_s=20) == keys
    assert home.store.list_keys(prefix, max_keys=2, timeout_s=20) == keys[:2]


def test_a_working_store_passes_its_check(home: Home) -> None:
    home.store.check(timeout_s=10)


def test_sixteen_threads_get_their_own_bytes_and_leave_no_thread(home: Home) -> None:
    threads = threading.active_count()

    def round_trip(number: int) -> bool:
        key, body = f"retouch/results/{number:02}/job.png", bytes([number]) * 50_000
        put(home.store, key, body, {"n": str(number)})
        return get(home.store, key) == body

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(round_trip, range(64)))
    assert threading.active_count() == threads


def test_the_check_leaves_no_object_behind(rgw: Rgw, s3_settings: S3Settings) -> None:
    client = rgw.client(region="us-east-1")

    def probes() -> set[str | None]:
        listed = client.list_objects(bucket_name=rgw.bucket, prefix="retouch/check/")
        return {each.object_name for each in listed}

    before = probes()  # an outage in another test may have left one
    store = S3Store(s3_settings)
    store.check(timeout_s=10)
    store.close()
    assert probes() == before


def test_a_certificate_of_an_unknown_authority_is_refused(
    rgw: Rgw, s3_settings: S3Settings, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    settings = replace(s3_settings, endpoint=rgw.tls_endpoint, secure=True)
    store = S3Store(settings, ca_certs=str(tmp_path / "other.pem"))
    with pytest.raises(StorageError, match="certificate is not valid") as caught:
        get(store, KEY)
    assert not caught.value.retryable
    store.close()


def write_until_killed(folder: Path, seed: int) -> None:
    store = local_home(folder).store
    numbers = random.Random(seed)  # noqa: S311
    while True:
        body = numbers.randbytes(200_000)
        put(store, f"results/a/{numbers.randrange(4)}", body, digest(body))


def digest(body: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(body).hexdigest()}


def test_a_writer_killed_at_any_moment_leaves_each_key_absent_or_whole(tmp_path: Path) -> None:
    numbers = random.Random(7)  # noqa: S311
    whole = 0
    for seed in range(25):
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(tmp_path, seed)
            finally:
                os._exit(1)
        time.sleep(numbers.uniform(0.005, 0.08))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        store = local_home(tmp_path).store
        for key in range(4):
            found = store.get(f"results/a/{key}", max_bytes=1 << 20, timeout_s=1)
            assert found is None or found.metadata == digest(found.body)
            whole += found is not None
    assert whole > 25
