import os
import threading
from pathlib import Path

import pytest

from retouch.engine.checkpoint import read_ahead
from retouch.engine.checkpoint.read_ahead import reading_ahead

Asked = list[tuple[int, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(read_ahead, "STEP_BYTES", 4)
    ranges: Asked = []

    def posix_fadvise(_: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        ranges.append((offset, length))

    monkeypatch.setattr(os, "posix_fadvise", posix_fadvise)
    return ranges


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"0123456789")
    return paths


def read(paths: list[Path], max_bytes: int = 100) -> None:
    with reading_ahead(paths, max_bytes=max_bytes):
        for thread in threading.enumerate():
            if thread.name == "read-ahead":
                thread.join(10)


def test_files_are_asked_for_whole_and_in_order(asked: Asked, files: list[Path]) -> None:
    read(files)
    assert asked == 2 * [(0, 4), (4, 4), (8, 2)]


def test_no_more_is_asked_for_than_the_limit(asked: Asked, files: list[Path]) -> None:
    read(files, max_bytes=13)
    assert asked == [(0, 4), (4, 4), (8, 2), (0, 3)]


def test_a_file_that_cannot_be_opened_is_left_out(asked: Asked, files: list[Path]) -> None:
    files[0].unlink()
    read(files)
    assert asked == [(0, 4), (4, 4), (8, 2)]


def test_it_ends_with_the_block(monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> None:
    first, go_on = threading.Event(), threading.Event()
    calls = list[int]()

    def posix_fadvise(*_: int) -> None:
        calls.append(1)
        first.set()
        go_on.wait(10)

    monkeypatch.setattr(read_ahead, "STEP_BYTES", 1)
    monkeypatch.setattr(os, "posix_fadvise", posix_fadvise)
    with reading_ahead(files, max_bytes=100):
        first.wait(10)
        (thread,) = [one for one in threading.enumerate() if one.name == "read-ahead"]
    go_on.set()
    thread.join(10)
    assert calls == [1]
