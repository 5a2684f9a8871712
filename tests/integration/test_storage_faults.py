"""Faults of an S3 server end in a success by retry or in one typed error, in time."""

import gc
import logging
import operator
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import httpx
import pytest
from support.fakes import PATIENCE_S
from support.servers.backblaze import Backblaze, reason_to_refuse
from support.servers.ceph_rgw import Rgw
from support.servers.fault_proxy import FaultProxy, answered, cut, flipped, lost, passed, s3_error
from support.servers.store_faults import DENIALS, HTML, TRANSIENT

from retouch.errors import StorageError, StoreDenied, StoreUnavailable
from retouch.storage.port import StoredObject
from retouch.storage.s3 import S3Settings, S3Store

pytestmark = pytest.mark.integration
KEY = "retouch/results/0f/job-1.png"
BODY = b"picture" * 1000
TIMEOUT_S = 0.4
MARGIN_S = 0.5


@pytest.fixture
def proxy(rgw: Rgw) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=("127.0.0.1", rgw.port)) as listening:
        yield listening


@pytest.fixture
def settings(s3_settings: S3Settings, proxy: FaultProxy) -> S3Settings:
    """Short time limits, and through the proxy."""
    return replace(
        s3_settings, endpoint=proxy.endpoint, connect_timeout_s=0.15, read_timeout_s=0.15
    )


@pytest.fixture
def store(settings: S3Settings) -> Iterator[S3Store]:
    opened = S3Store(settings)
    yield opened
    opened.close()


def put(store: S3Store, timeout_s: float = 10.0, body: bytes = BODY) -> None:
    store.put(KEY, body, content_type="image/png", metadata={"n": "1"}, timeout_s=timeout_s)


def get(store: S3Store, timeout_s: float = 10.0) -> StoredObject | None:
    return store.get(KEY, max_bytes=1 << 20, timeout_s=timeout_s)


def check(store: S3Store, timeout_s: float = 10.0) -> None:
    store.check(timeout_s=timeout_s)


CALLS: list[Callable[[S3Store, float], object]] = [put, get, check]


@pytest.mark.parametrize("name", TRANSIENT)
def test_a_transient_fault_is_retried(store: S3Store, proxy: FaultProxy, name: str) -> None:
    put(store)
    proxy.plan = deque([TRANSIENT[name]])
    found = get(store)
    assert found is not None
    assert found.body == BODY
    proxy.plan = deque([TRANSIENT[name]])
    put(store)
    assert not proxy.plan


@pytest.mark.parametrize("call", [put, get])
@pytest.mark.parametrize("name", TRANSIENT)
def test_a_lasting_fault_ends_in_one_error_within_the_time(
    store: S3Store, proxy: FaultProxy, name: str, call: Callable[[S3Store, float], object]
) -> None:
    proxy.otherwise = TRANSIENT[name]
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        call(store, TIMEOUT_S)
    assert time.monotonic() - started_s < TIMEOUT_S + MARGIN_S
    assert caught.value.retryable


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", DENIALS)
def test_a_denial_is_not_retried_and_names_the_setting(
    store: S3Store, proxy: FaultProxy, name: str, call: Callable[[S3Store, float], object]
) -> None:
    if (name, call) == ("rights", get):
        pytest.skip("a missing object looks the same to a key that may not list the bucket")
    step, setting = DENIALS[name]
    proxy.otherwise = step
    with pytest.raises(StoreDenied, match=setting) as caught:
        call(store, 10.0)
    assert not caught.value.retryable
    assert len(proxy.seen) == 1


def test_a_refused_connection_ends_in_one_error_within_the_time(settings: S3Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    store = S3Store(replace(settings, endpoint=f"127.0.0.1:{port}", timeout_s=TIMEOUT_S))
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable):
        put(store, timeout_s=60.0)
    assert time.monotonic() - started_s < TIMEOUT_S + MARGIN_S


def test_a_truncated_body_is_fetched_again(store: S3Store, proxy: FaultProxy) -> None:
    put(store)
    proxy.plan = deque([cut(10), cut(len(BODY))])
    found = get(store)
    assert found is not None
    assert found.body == BODY


def test_a_put_whose_answer_is_lost_is_sent_again_with_the_same_bytes(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.plan = deque([lost])
    put(store)
    assert [exchange.body for exchange in proxy.seen] == [BODY, BODY]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_upload_that_is_damaged_on_its_way_is_sent_again(
    rgw: Rgw, settings: S3Settings, scheme: str
) -> None:
    tls = rgw.server_tls() if scheme == "https" else None
    with FaultProxy(("127.0.0.1", rgw.port), deque([flipped]), tls=tls) as proxy:
        settings = replace(settings, endpoint=proxy.endpoint, secure=tls is not None)
        store = S3Store(settings, ca_certs=rgw.ca_file)
        put(store)
        found = get(store)
        assert found is not None
        assert found.body == BODY
        assert [exchange.method for exchange in proxy.seen] == ["PUT", "PUT", "GET"]
        store.close()


def test_a_web_page_with_status_200_is_not_taken_for_a_store(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.otherwise = answered(200, HTML, {"Content-Type": "text/html"})
    with pytest.raises(StoreDenied, match="S3_ENDPOINT"):
        put(store)
    assert len(proxy.seen) == 1


def test_retry_after_is_kept(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = deque([s3_error(503, "SlowDown", {"Retry-After": "1"})])
    started_s = time.monotonic()
    put(store)
    assert time.monotonic() - started_s >= 1.0


def test_a_retry_after_past_the_deadline_is_not_waited_for(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.otherwise = s3_error(503, "SlowDown", {"Retry-After": "86400"})
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable):
        put(store, TIMEOUT_S)
    assert time.monotonic() - started_s < MARGIN_S
    assert len(proxy.seen) == 1


def test_an_object_of_12_mb_is_one_put(settings: S3Settings, proxy: FaultProxy) -> None:
    store = S3Store(replace(settings, read_timeout_s=10.0))  # a busy machine is no fault here
    put(store, body=bytes(12_000_000))
    store.close()
    assert [exchange.method for exchange in proxy.seen] == ["PUT"]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nothing_is_sent_that_backblaze_refuses(
    rgw: Rgw, settings: S3Settings, scheme: str
) -> None:
    backblaze = Backblaze()
    tls = rgw.server_tls() if scheme == "https" else None
    with FaultProxy(("127.0.0.1", rgw.port), otherwise=backblaze, tls=tls) as proxy:
        settings = replace(settings, endpoint=proxy.endpoint, secure=tls is not None)
        store = S3Store(settings, ca_certs=rgw.ca_file)
        put(store)
        assert get(store) is not None
        store.check(timeout_s=10)
        url = store.link(KEY, expires_in_s=60)
        trust = ssl.create_default_context(cafile=rgw.ca_file)
        assert httpx.get(url, verify=trust, trust_env=False).content == BODY
        store.close()
    assert backblaze.refused == []
    methods = [exchange.method for exchange in proxy.seen]
    assert methods == [
        "PUT",
        "GET",
        "PUT",
        "GET",
        "DELETE",
        "GET",
        "GET",
    ]  # no location, HEAD or list


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("If-None-Match: *", "conditional write"),
        ("x-amz-checksum-crc32: AAAAAA==", "header"),
        ("x-amz-sdk-checksum-algorithm: CRC32", "header"),
        ("x-amz-tagging: a=b", "header"),
        ("x-amz-acl: private", "header"),
        ("Content-Encoding: aws-chunked", "header"),
        ("x-amz-content-sha256: STREAMING-UNSIGNED-PAYLOAD-TRAILER", "streaming"),
        ("Authorization: AWS key:signature", "signature"),
    ],
)
def test_the_strict_proxy_refuses_what_backblaze_does(
    store: S3Store, proxy: FaultProxy, line: str, reason: str
) -> None:
    put(store)
    sent = proxy.seen[0]
    assert reason_to_refuse(sent) == ""
    sent.head = sent.head.replace(b"\r\n\r\n", f"\r\n{line}\r\n\r\n".encode())
    assert reason in reason_to_refuse(sent)


def test_a_store_that_forgets_fails_its_check(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = deque([passed, s3_error(404, "NoSuchKey"), passed])
    with pytest.raises(StorageError, match="does not return what was stored"):
        store.check(timeout_s=10)


def test_a_missing_object_is_none_to_a_key_that_may_not_list_the_bucket(
    store: S3Store, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    denied = s3_error(403, "AccessDenied")
    proxy.plan = deque([denied, passed, passed, passed, denied])
    assert get(store) is None
    store.check(timeout_s=10)
    assert not proxy.plan
    warnings = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert warnings == ["store.list_denied"]


def test_a_key_that_may_not_read_fails_the_check(store: S3Store, proxy: FaultProxy) -> None:
    proxy.plan = deque([passed, s3_error(403, "AccessDenied")])
    with pytest.raises(StoreDenied, match="lacks a permission"):
        store.check(timeout_s=10)


def test_https_to_a_plain_port_names_s3_secure(settings: S3Settings) -> None:
    def answer_in_plain_text() -> None:
        accepted, _ = listener.accept()
        with accepted:
            accepted.recv(1024)
            accepted.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=answer_in_plain_text)
        answering.start()
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        store = S3Store(replace(settings, endpoint=endpoint, secure=True, read_timeout_s=5))
        with pytest.raises(StoreDenied, match="S3_SECURE=false") as caught:
            get(store)
        answering.join()
    assert not caught.value.retryable
    store.close()


def test_faults_leave_no_thread_and_no_socket(rgw: Rgw, settings: S3Settings) -> None:
    def count_threads_and_files() -> tuple[int, int]:
        gc.collect()  # what earlier tests left must not hide a leak of this one
        return threading.active_count(), len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = count_threads_and_files()
    for name in ("503 SlowDown", "reset", "silence", "short answer"):
        with FaultProxy(upstream=("127.0.0.1", rgw.port), otherwise=TRANSIENT[name]) as proxy:
            # One connection: a leak of one would block the next call for ever.
            store = S3Store(replace(settings, endpoint=proxy.endpoint, max_connections=1))
            for _ in range(3):
                with pytest.raises(StorageError):
                    get(store, 0.2)
            proxy.otherwise = passed
            for _ in range(2):  # a body left half read holds its connection, too
                put(store)
                with pytest.raises(StorageError, match="over 1 bytes"):
                    store.get(KEY, max_bytes=1, timeout_s=10)
            store.close()
    deadline_s = time.monotonic() + PATIENCE_S
    while not all(map(operator.le, count_threads_and_files(), before)):  # earlier ones may end, too
        assert time.monotonic() < deadline_s, (count_threads_and_files(), before)
        time.sleep(0.05)


def test_no_secret_gets_into_an_error_or_a_log(
    settings: S3Settings, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    access_key, secret_key = "KEYIDCANARY", "SECRETCANARY"
    echo = f"<Error><Code>{access_key}x1</Code><Message>{access_key} {secret_key}</Message></Error>"
    store = S3Store(replace(settings, access_key=access_key, secret_key=secret_key))
    said = repr(store) + repr(settings)
    for status in (403, 503):
        proxy.otherwise = answered(
            status,
            echo.encode(),
            {"Content-Type": "application/xml", "X-Amz-Request-Id": secret_key},
        )
        for call in CALLS:
            with pytest.raises(StorageError) as caught:
                call(store, 0.5)
            error = caught.value
            said += repr((error.message, error.details, error.context))
    proxy.otherwise = passed
    with pytest.raises(StoreDenied, match="S3_ACCESS_KEY"):
        put(store)
    said += caplog.text + "".join(repr(vars(record)) for record in caplog.records)
    assert "store.retried" in said
    assert "CANARY" not in said
    store.close()
