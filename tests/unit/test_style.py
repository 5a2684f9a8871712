"""Rules of the tests that no tool states."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
# Private names of libraries that have no public form: what may be read, in tests, of others than src.
FOREIGN = re.compile(
    r"torch\._dynamo|torch\._addmm_activation|\._pack_latents|\._unpack_latents"
    r"|\._compile_fx_inner|\._is_inductor_static"
)

STARTS = re.compile(
    r"^import subprocess|Popen\(|create_subprocess|start_(process|child)\(|torch\.compile\("
)


def test_no_test_reads_a_private_attribute_of_the_package() -> None:
    found = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in TESTS.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "noqa: SLF001" in line and path != Path(__file__) and not FOREIGN.search(line)
    ]
    assert found == []


def test_no_unit_test_starts_a_process_or_compiles() -> None:
    found = [
        f"{path.relative_to(TESTS)}: {line.strip()}"
        for path in (TESTS / "unit").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if STARTS.search(line) and path != Path(__file__)
    ]
    assert found == []
