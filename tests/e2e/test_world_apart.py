"""The whole service beside hosts it must not reach, which are there: tests/support/attacks/network_namespace.py in a network of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APART = ["unshare", "--net", "--mount"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="network namespaces need root on Linux"
    ),
]


def test_nothing_inside_is_reached_though_it_is_there() -> None:
    run = subprocess.run(  # noqa: S603 - our own interpreter and program
        [*APART, sys.executable, "tests/support/attacks/network_namespace.py", "--every", "9"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "src:tests"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["reached"] == found["edited"] == []
    assert found["asked"] > 400
    assert found["hosts"] > found["of"] / 2, "most of them were there"
    assert found["redirected"] > 0.9 * found["of"], "and the redirects were followed as far as that"
    assert found["public_edited"] == found["public"], "and what is public is open"
