"""Fixtures of the integration tests; servers listen on 127.0.0.1 and live for the session."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rgw import PACKAGES, Rgw, missing_binaries

from retouch import decoder, images
from retouch.storage.s3 import S3Settings


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rgw]:
    if missing := missing_binaries():
        if os.environ.get("RETOUCH_SKIP_RGW") == "1":
            pytest.skip(f"RETOUCH_SKIP_RGW=1 and {', '.join(missing)} missing")
        pytest.fail(
            f"{', '.join(missing)} missing: apt-get install --no-install-recommends {PACKAGES}"
            " (or set RETOUCH_SKIP_RGW=1)",
            pytrace=False,
        )
    gateway = Rgw(tmp_path_factory.mktemp("rgw"))
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.stop()


@pytest.fixture
def s3_settings(rgw: Rgw) -> S3Settings:
    """The gateway over http; the region is made up, so that whoever drops it is found out."""
    return S3Settings(
        endpoint=rgw.endpoint,
        access_key=rgw.access_key,
        secret_key=rgw.secret_key,
        bucket=rgw.bucket,
        region="us-west-000",
        secure=False,
        prefix="retouch/",
    )


@pytest.fixture
def build() -> Iterator[Callable[..., decoder.Decoder]]:
    made: list[decoder.Decoder] = []

    def build(**settings: Any) -> decoder.Decoder:
        made.append(decoder.Decoder(images.Limits(), decoder.DecoderSettings(**settings)))
        return made[-1]

    yield build
    for each in made:
        each.close()


@pytest.fixture
def decoding(build: Callable[..., decoder.Decoder]) -> decoder.Decoder:
    return build()
