"""Memory that processes share, in one process."""

import os
from pathlib import Path

import pytest
from support.models.host_share import SIZES, open_memory

from retouch.engine.memory.shared_memory import HostShare, sharing


def test_other_weights_get_no_part_of_the_memory(share: HostShare) -> None:
    memory = open_memory(share)
    assert share.open("another model", SIZES) is None
    assert share.open("model", [*SIZES, 1]) is None
    memory.unit(1)[:] = b"abc"
    assert bytes(open_memory(share).unit(1)) == b"abc"


def test_one_process_alone_shares_nothing() -> None:
    with sharing(1):
        assert HostShare.find() is None


def test_a_system_without_such_files_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert HostShare.create(2) is None


@pytest.mark.parametrize("value", ["", "x,2", "99999,2", "{},2"])
def test_a_variable_that_names_no_such_file_is_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str
) -> None:
    with (tmp_path / "other").open("w") as other:
        monkeypatch.setenv("RETOUCH_WEIGHTS", value.format(other.fileno()))
        assert HostShare.find() is None


def test_a_file_that_is_inherited_is_used_whatever_else_loads(share: HostShare) -> None:
    with sharing(4):
        assert HostShare.find() == share
    assert HostShare.find() == share  # still open


def test_a_load_leaves_no_file_to_the_next() -> None:
    with sharing(2):
        made = HostShare.find()
        assert made
        memory = open_memory(made)
    assert HostShare.find() is None
    assert "RETOUCH_WEIGHTS" not in os.environ
    memory.unit(1)[:] = b"abc"  # what uses it keeps it
