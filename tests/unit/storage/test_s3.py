import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import trustme
from minio.error import InvalidResponseError, MinioException, S3Error
from tenacity import Future, RetryCallState, Retrying
from urllib3 import HTTPResponse
from urllib3.exceptions import LocationParseError, ProtocolError, SSLError

from retouch.errors import StorageError, StoreDenied, StoreUnavailable
from retouch.storage.s3 import S3Settings, S3Store, wait_s
from retouch.storage.s3_errors import is_transient, translate
from retouch.storage.s3_transport import Connections, TransientStatus

SETTINGS = S3Settings(
    endpoint="s3.us-west-004.backblazeb2.com",
    access_key="KEYIDCANARY",
    secret_key="SECRETCANARY",  # noqa: S106
    bucket="pictures",
    region="us-west-004",
)


def test_a_private_authority_is_trusted_beside_the_public_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA(organization_name="In the house")
    authority.cert_pem.write_to_path(str(tmp_path / "house.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "house.pem"))
    connections = Connections(
        max_connections=1, connect_timeout_s=1, read_timeout_s=1, ca_certs=None
    )
    trusted = connections.connection_pool_kw["ssl_context"].get_ca_certs()
    assert len(trusted) > 50
    assert "In the house" in str(trusted)


def status(number: int, retry_after: str = "") -> TransientStatus:
    return TransientStatus(HTTPResponse(status=number, headers={"Retry-After": retry_after}))


def refusal(code: str) -> S3Error:
    return S3Error(HTTPResponse(status=400), code, "MESSAGECANARY", "", "", "")


def test_settings_keep_their_keys_out_of_their_text() -> None:
    assert "CANARY" not in repr(SETTINGS)


@pytest.mark.parametrize(
    "fault",
    [
        *(status(number) for number in (408, 429, 500, 502, 503, 504)),
        refusal("RequestTimeout"),
        refusal("BadDigest"),
        ProtocolError("Connection aborted."),
        SSLError(ssl.SSLEOFError("EOF occurred in violation of protocol")),
        ConnectionResetError(),
        TimeoutError(),
    ],
)
def test_a_transient_fault_is_unavailable_and_worth_a_retry(fault: Exception) -> None:
    assert is_transient(fault)
    error = translate(fault, "get")
    assert isinstance(error, StoreUnavailable)
    assert error.context["operation"] == "get"


@pytest.mark.parametrize(
    "fault",
    [
        *(refusal(code) for code in ("AccessDenied", "NoSuchBucket", "PermanentRedirect", "")),
        InvalidResponseError(404, "text/html", "MESSAGECANARY"),
        MinioException("the response has no ETag"),
        SSLError(ssl.SSLCertVerificationError("self-signed certificate")),
        LocationParseError("http://[::"),
        ValueError("invalid bucket name"),
    ],
)
def test_a_permanent_fault_is_denied_and_never_retried(fault: Exception) -> None:
    assert not is_transient(fault)
    error = translate(fault, "get")
    assert isinstance(error, StoreDenied)
    assert "CANARY" not in error.message + repr(error.context)


def test_a_code_that_could_hold_a_key_id_is_not_logged() -> None:
    assert translate(refusal("AccessDenied"), "get").context["s3_code"] == "AccessDenied"
    assert "s3_code" not in translate(refusal("K0012"), "get").context


def after(fault: Exception) -> RetryCallState:
    state = RetryCallState(Retrying(), None, (), {})
    state.outcome = Future.construct(1, fault, has_exception=True)
    return state


@pytest.mark.parametrize(
    ("asked", "least_s", "most_s"), [("", 0, 8), ("soon", 0, 8), ("9", 9, 9), ("3600", 30, 30)]
)
def test_the_server_may_ask_for_a_longer_wait_up_to_a_limit(
    asked: str, least_s: float, most_s: float
) -> None:
    assert least_s <= wait_s(after(status(503, asked))) <= most_s


def test_waits_without_advice_differ() -> None:
    state = after(ConnectionResetError())
    assert len({wait_s(state) for _ in range(20)}) > 1


def test_a_link_is_signed_for_the_region_without_a_request() -> None:
    store = S3Store(SETTINGS)
    url = urlsplit(store.link("a/b.png", expires_in_s=77))
    query = parse_qs(url.query)
    assert (url.scheme, url.netloc, url.path) == ("https", SETTINGS.endpoint, "/pictures/a/b.png")
    assert query["X-Amz-Credential"][0].split("/")[2:] == ["us-west-004", "s3", "aws4_request"]
    assert query["X-Amz-Expires"] == ["77"]
    assert "SECRETCANARY" not in url.query


def test_a_link_is_signed_for_the_public_endpoint() -> None:
    store = S3Store(
        replace(SETTINGS, endpoint="minio:9000", secure=False, public_endpoint="files.example")
    )
    url = urlsplit(store.link("a/b.png", expires_in_s=77))
    assert (url.scheme, url.netloc, url.path) == ("https", "files.example", "/pictures/a/b.png")
    assert parse_qs(url.query)["X-Amz-SignedHeaders"] == ["host"]


@pytest.mark.parametrize("change", [{"endpoint": "https://a/b"}, {"region": "no region"}])
def test_a_malformed_endpoint_or_region_is_refused_at_once(change: dict[str, str]) -> None:
    with pytest.raises(StoreDenied, match="S3_ENDPOINT"):
        S3Store(replace(SETTINGS, **change))  # type: ignore[arg-type] # all are strings


def test_a_malformed_bucket_is_refused_without_a_request() -> None:
    store = S3Store(replace(SETTINGS, bucket="x"))
    calls: list[Callable[[], object]] = [
        lambda: store.get("a", max_bytes=1, timeout_s=1),
        lambda: store.put("a", b"", content_type="image/png", metadata={}, timeout_s=1),
        lambda: store.link("a", expires_in_s=1),
        lambda: store.check(timeout_s=1),
    ]
    for call in calls:
        with pytest.raises(StoreDenied, match="S3_BUCKET"):
            call()


def test_no_time_is_an_error_without_a_request() -> None:
    with pytest.raises(StoreUnavailable):
        S3Store(SETTINGS).get("a", max_bytes=1, timeout_s=0)


def test_metadata_that_is_not_ascii_is_an_error() -> None:
    with pytest.raises(StorageError):
        S3Store(SETTINGS).put(
            "a", b"", content_type="image/png", metadata={"name": "é"}, timeout_s=1
        )
