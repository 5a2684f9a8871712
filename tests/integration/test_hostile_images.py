"""The first inputs of tests/bench/hostile_images.py, and a check that its judge detects faults."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.attacks import images
from support.images import decoding_costs
from support.images.decoding import COSTLY, PHOTO

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


def test_hostile_images_decode_or_are_refused_at_a_bounded_cost() -> None:
    turns = 4 * len(images.TURNS)
    program = [sys.executable, "tests/bench/hostile_images.py", "--count", str(turns)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(("src", "tests"))}
    ended = subprocess.run(  # noqa: S603  # our own program
        program, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tried = {line.split("  ")[0] for line in ended.stdout.splitlines()}
    assert tried >= set(images.ATTACKS)


async def test_a_child_that_crashes_or_costs_too_much_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with decoding_costs.metered(count=1) as (decoding,):
        # What this process has used counts for its children too.
        monkeypatch.setattr(decoding_costs, "MAX_RSS_BYTES", 1 << 40)
        assert (await decoding_costs.judge(decoding, 0, "", PHOTO)).faults == ()
        monkeypatch.setattr(decoding_costs, "MAX_CPU_S", 0.1)
        monkeypatch.setattr(decoding_costs, "MAX_RSS_BYTES", 500 << 20)
        costly = await decoding_costs.judge(decoding, 1, "", COSTLY)
    assert [fault.split(" ", 1)[1] for fault in costly.faults] == [
        "s of processor time",
        "MiB of memory",
    ]
    crash = f"import os; os.read(0, 8); os.read(0, 1); os.kill(os.getpid(), {signal.SIGSEGV:d})"
    with decoding_costs.metered(count=1, script=crash) as (decoding,):
        crashed = await decoding_costs.judge(decoding, 2, "", PHOTO)
    assert crashed.faults[:1] == (f"the child died with {-signal.SIGSEGV}",)
