"""What tests of several folders need: the object store, on 127.0.0.1, and memory that processes share."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.servers.ceph_rgw import Rgw

    from retouch.engine.memory.shared_memory import HostShare


@pytest.fixture(scope="session")
def rgw(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Rgw]":
    from support.servers.ceph_rgw import PACKAGES, Rgw, missing_binaries

    if missing := missing_binaries():
        if os.environ.get("RETOUCH_SKIP_RGW") == "1":
            pytest.skip(f"RETOUCH_SKIP_RGW=1 and {', '.join(missing)} missing")
        pytest.fail(
            f"{', '.join(missing)} missing: apt-get install --no-install-recommends {PACKAGES}"
            " (or set RETOUCH_SKIP_RGW=1)",
            pytrace=False,
        )
    with Rgw(tmp_path_factory.mktemp("rgw")) as gateway:
        yield gateway


@pytest.fixture
def share() -> "Iterator[HostShare]":
    from retouch.engine.memory.shared_memory import HostShare, sharing

    with sharing(2):
        made = HostShare.find()
        assert made
        yield made
