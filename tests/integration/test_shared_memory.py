"""Memory that this process shares with real ones beside it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.models.host_share import SIZES, open_memory

from retouch.engine.memory.shared_memory import HostShare

pytestmark = pytest.mark.integration

SIZE = SIZES[0]

OPEN = """
import sys
from retouch.engine.memory.shared_memory import HostShare
memory = HostShare.find().open("model", [4 << 20, 3])
def say(text):
    print(text, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def beside(share: HostShare, program: str) -> Iterator[subprocess.Popen[str]]:
    """Run `program` after `OPEN` in a process that inherits the share, until it says something."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
        [sys.executable, "-c", OPEN + program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        pass_fds=[share.descriptor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_processes_have_the_same_bytes_and_each_counts_its_part_of_them(share: HostShare) -> None:
    memory = open_memory(share)
    memory.unit(0)[:] = b"w" * SIZE
    with beside(
        share, 'say("ready" if bytes(memory.unit(0)) == b"w" * (4 << 20) else "other")'
    ) as process:
        smaps = Path(f"/proc/{process.pid}/smaps").read_text()
    part = re.search(r"memfd:retouch-weights.*\n(?:\w+:.*\n)*?Pss: +(\d+) kB", smaps)
    assert part
    assert int(part[1]) << 10 < SIZE
    assert SIZE <= share.used_bytes < 2 * SIZE


def test_a_process_waits_for_the_one_that_fills(share: HostShare) -> None:
    program = """
with memory.locked():
    say("ready")
    memory.unit(1)[:] = b"abc"
    memory.filled[1] = 1
say("done")
"""
    memory = open_memory(share)

    def look() -> tuple[bool, bytes]:
        with memory.locked():
            return bool(memory.filled[1]), bytes(memory.unit(1))

    with beside(share, program) as process, ThreadPoolExecutor(1) as pool:
        found = pool.submit(look)
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        assert found.result() == (True, b"abc")


def test_what_a_killed_process_was_filling_is_not_filled(share: HostShare) -> None:
    program = """
with memory.locked():
    memory.filled[0] = 1
    memory.unit(1)[:2] = b"ab"
    say("ready")
"""
    with beside(share, program) as process:
        process.kill()
        process.wait()
        memory = open_memory(share)
        with memory.locked():
            assert memory.filled.tolist() == [1, 0]
