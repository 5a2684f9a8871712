"""The model libraries, before a test module imports them whole, and memory that processes share."""

from collections.abc import Iterator

import pytest
import support.models.lean  # noqa: F401

from retouch.engine.memory.shared_memory import HostShare, sharing


@pytest.fixture
def share() -> Iterator[HostShare]:
    with sharing(2):
        made = HostShare.find()
        assert made
        yield made
