"""What the image installs from: every requirement, and every package by the hashes of its files."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "src/requirements.lock").read_text()
ENTRY = re.compile(r"^(\S+==\S+)(?: \\\n    --hash=sha256:[0-9a-f]{64})+$", re.MULTILINE)


def test_lock_has_every_requirement() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = {line.partition(";")[0] for line in lines if line and not line.startswith("#")}
    assert wanted <= set(ENTRY.findall(LOCK))


def test_lock_has_nothing_without_a_hash() -> None:
    rest = ENTRY.sub("", LOCK).splitlines()
    assert [line for line in rest if line and not line.startswith("#")] == []
