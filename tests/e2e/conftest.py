"""The services under test, each started once a session, with an origin and S3."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.models.tiny_folder import tiny_folder
from support.servers.bentoml_service import SAMPLE_URL, LiveOrigin, Service, serving
from support.servers.ceph_rgw import Rgw
from support.servers.trace_receiver import TraceReceiver

PAGE_ORIGIN = "https://app.example"
CORS = " ".join(
    f"services.retouch.http.cors.{name}={value}"
    for name, value in {
        "enabled": "true",
        "access_control_allow_origins": f'["{PAGE_ORIGIN}"]',
        "access_control_allow_methods": '["*"]',
        "access_control_allow_headers": '["*"]',
    }.items()
)
# Planted secrets; after all tests each service's log is checked for them.
API_KEY = "api-key-5d1f0c77"
LINK_SECRET = "link-secret-9b2e47"  # noqa: S105 - planted
ENGINE_KEY = "engine-key-31c9f0"


@pytest.fixture(scope="session")
def origin() -> Iterator[LiveOrigin]:
    with LiveOrigin() as live:
        yield live


def audited(folder: Path) -> dict[str, str]:
    """Record every file that the service opens for writing in `folder`."""
    hook = Path(__file__).parent / "audit"
    return {"PYTHONPATH": str(hook), "AUDIT_FILE": str(folder / "audit")}


@pytest.fixture(scope="session")
def traces() -> Iterator[TraceReceiver]:
    with TraceReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def local(
    tmp_path_factory: pytest.TempPathFactory, origin: LiveOrigin, traces: TraceReceiver
) -> Iterator[Service]:
    """Use the local store, no key, and small limits on images; record what callers have sampled."""
    folder = tmp_path_factory.mktemp("local")
    settings = {
        "BENTOML_CONFIG_OPTIONS": traces.settings,
        "OTEL_BSP_SCHEDULE_DELAY": "200",  # ms: spans are sent at once
        "ALLOWED_SOURCE_HOSTS": origin.address,
        "MAX_IMAGE_BYTES": "1048576",
        "MAX_IMAGE_PIXELS": "1000000",
        "PRESIGN_EXPIRY": "4",
        "LOG_LEVEL": "DEBUG",
    }
    with serving(folder, settings | audited(folder)) as service:
        yield service
    service.require_clean_log([SAMPLE_URL[:40]])


@pytest.fixture(scope="session")
def remote(
    tmp_path_factory: pytest.TempPathFactory, origin: LiveOrigin, local: Service
) -> Iterator[Service]:
    """Have `local` make the edits."""
    settings = {
        "ALLOWED_SOURCE_HOSTS": origin.address,
        "ENGINE_URL": local.url,
        "ENGINE_KEY": ENGINE_KEY,
        "PRESIGN_EXPIRY": "4",
        "LOG_LEVEL": "DEBUG",
    }
    with serving(tmp_path_factory.mktemp("remote"), settings) as service:
        yield service
    service.require_clean_log([SAMPLE_URL[:40], ENGINE_KEY])


@pytest.fixture(scope="session")
def strict(tmp_path_factory: pytest.TempPathFactory, origin: LiveOrigin) -> Iterator[Service]:
    """Require a key, let one edit wait, give an edit 6 s, let one web page call it; take several images."""
    settings = {
        "MODEL_ID": str(tiny_folder(plus=True)),
        "BENTOML_CONFIG_OPTIONS": CORS,
        "MALLOC_MMAP_THRESHOLD_": "1048576",  # as in the image
        "ALLOWED_SOURCE_HOSTS": origin.address,
        "API_KEYS": f"another-key-of-callers, {API_KEY}",
        "LINK_SECRET": LINK_SECRET,
        "MAX_QUEUE": "1",
        "JOB_TIMEOUT_SECONDS": "6",
        "LOG_LEVEL": "DEBUG",
    }
    with serving(tmp_path_factory.mktemp("strict"), settings) as service:
        service.client.headers["X-API-Key"] = API_KEY
        yield service
    service.require_clean_log([API_KEY, LINK_SECRET])


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory, origin: LiveOrigin, rgw: Rgw) -> Iterator[Service]:
    """Use a real S3 server, with 4 s for each of its operations."""
    folder = tmp_path_factory.mktemp("s3")
    settings = {
        "ALLOWED_SOURCE_HOSTS": origin.address,
        **rgw.settings(),
        "TIMEOUT_SECONDS": "4",
        "JOB_TIMEOUT_SECONDS": "30",
        "PRESIGN_EXPIRY": "4",
        "LOG_LEVEL": "DEBUG",
    }
    with serving(folder, settings | audited(folder)) as service:
        yield service
    service.require_clean_log([rgw.access_key, rgw.secret_key, "X-Amz-Signature"])


@pytest.fixture(params=["local", "s3", "remote"])
def either(request: pytest.FixtureRequest) -> Service:
    """Run the test with the local store, with S3, and with the engine in another service."""
    service: Service = request.getfixturevalue(request.param)
    return service
