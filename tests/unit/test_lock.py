"""The lock file of the image, and the package's extra, against requirements.txt."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "src/requirements.lock").read_text()
ENTRY = re.compile(r"^(\S+==\S+)(?: \\\n    --hash=sha256:[0-9a-f]{64})+$", re.MULTILINE)


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_lock_has_every_requirement() -> None:
    wanted = {line.partition(";")[0] for line in requirements()}
    assert wanted <= set(ENTRY.findall(LOCK))


def test_the_extra_service_has_the_pins_of_the_requirements() -> None:
    project = tomllib.loads((ROOT / "src/pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["service"] == requirements()


def test_lock_has_nothing_without_a_hash() -> None:
    rest = ENTRY.sub("", LOCK).splitlines()
    assert [line for line in rest if line and not line.startswith("#")] == []
