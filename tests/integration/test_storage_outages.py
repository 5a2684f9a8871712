"""A real gateway that freezes, dies and comes back, and one that is configured wrongly."""

import socket
import threading
import time
from dataclasses import replace

import pytest
from support.servers.ceph_rgw import Rgw

from retouch.errors import StoreDenied, StoreUnavailable
from retouch.storage.port import StoredObject
from retouch.storage.s3 import S3Settings, S3Store

pytestmark = pytest.mark.integration
KEY = "retouch/results/0f/job-1.png"
BODY = b"picture" * 1000
TIMEOUT_S = 0.4
MARGIN_S = 0.5


def impatient(s3_settings: S3Settings) -> S3Settings:
    return replace(s3_settings, connect_timeout_s=0.15, read_timeout_s=0.15)


def put(store: S3Store, timeout_s: float = 10.0, body: bytes = BODY) -> None:
    store.put(KEY, body, content_type="image/png", metadata={}, timeout_s=timeout_s)


def get(store: S3Store, timeout_s: float = 10.0) -> StoredObject | None:
    return store.get(KEY, max_bytes=1 << 20, timeout_s=timeout_s)


@pytest.mark.parametrize("body", [BODY, bytes(12_000_000)], ids=["small", "large"])
def test_a_frozen_gateway_ends_in_one_error_and_heals(
    rgw: Rgw, s3_settings: S3Settings, body: bytes
) -> None:
    store = S3Store(impatient(s3_settings))
    put(store)
    rgw.pause_gateway()
    try:
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            put(store, TIMEOUT_S, body)
        with pytest.raises(StoreUnavailable):
            get(store, TIMEOUT_S)
        assert time.monotonic() - started_s < 2 * (TIMEOUT_S + MARGIN_S)
    finally:
        rgw.resume_gateway()
    put(store, body=body)
    store.close()


def test_a_killed_gateway_ends_in_one_error_and_heals(rgw: Rgw, s3_settings: S3Settings) -> None:
    store = S3Store(impatient(s3_settings))
    put(store)
    rgw.kill_gateway()
    try:
        with pytest.raises(StoreUnavailable):
            get(store, TIMEOUT_S)
    finally:
        rgw.start_gateway()
    assert get(store) is not None
    store.close()


def test_a_gateway_back_within_the_time_costs_no_error(rgw: Rgw, s3_settings: S3Settings) -> None:
    store = S3Store(impatient(s3_settings))
    put(store)
    rgw.kill_gateway()
    starter = threading.Timer(0.5, rgw.start_gateway)
    starter.start()
    assert get(store, 10.0) is not None
    starter.join()
    store.close()


def test_a_gateway_that_stalls_in_the_tls_handshake_ends_in_one_error(
    s3_settings: S3Settings,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        store = S3Store(replace(impatient(s3_settings), endpoint=endpoint, secure=True))
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable):
            get(store, TIMEOUT_S)
        assert time.monotonic() - started_s < TIMEOUT_S + MARGIN_S
        store.close()


@pytest.mark.parametrize(
    ("field", "value", "setting"),
    [
        ("access_key", "unknown", "S3_ACCESS_KEY"),
        ("secret_key", "wrong", "S3_SECRET_KEY"),
        ("bucket", "no-such-bucket", "S3_BUCKET"),
        ("bucket", "x", "S3_BUCKET"),
    ],
)
def test_a_wrong_setting_is_named_by_the_check(
    s3_settings: S3Settings, field: str, value: str, setting: str
) -> None:
    changed: dict[str, str] = {field: value}
    store = S3Store(replace(s3_settings, **changed))  # type: ignore[arg-type] # all are strings
    with pytest.raises(StoreDenied, match=setting):
        store.check(timeout_s=5)
    store.close()
