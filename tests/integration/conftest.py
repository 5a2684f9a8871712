"""What the integration tests are built on."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.servers.ceph_rgw import Rgw

from retouch.images import decode, sandbox
from retouch.storage.s3 import S3Settings

Spawn = Callable[[list[str]], sandbox.Child]


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
def build() -> Iterator[Callable[..., sandbox.Decoder]]:
    made: list[sandbox.Decoder] = []

    def build(*, spawn: Spawn = sandbox.start_child, **settings: Any) -> sandbox.Decoder:
        limits = decode.Limits()
        made.append(sandbox.Decoder(limits, sandbox.DecoderSettings(**settings), spawn=spawn))
        return made[-1]

    yield build
    for each in made:
        each.close()


@pytest.fixture
def decoding(build: Callable[..., sandbox.Decoder]) -> sandbox.Decoder:
    return build()
