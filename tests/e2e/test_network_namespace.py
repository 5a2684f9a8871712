"""The whole service in a network where every forbidden address answers; see tests/support/attacks/network_namespace.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--net", "--mount"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="network namespaces need root on Linux"
    ),
]


def test_no_internal_host_is_reached_although_it_answers() -> None:
    run = subprocess.run(  # noqa: S603 - our own interpreter and program
        [*NAMESPACE, sys.executable, "tests/support/attacks/network_namespace.py", "--every", "9"],
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
    assert found["hosts"] > found["of"] / 2, "most of them answer"
    assert found["redirected"] > 0.9 * found["of"], (
        "redirects were followed up to the forbidden address"
    )
    assert found["public_edited"] == found["public"], "public addresses are still reached"
