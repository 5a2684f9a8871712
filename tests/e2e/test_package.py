"""The package that `pip install "git+…#subdirectory=src"` builds."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-c", program, *arguments],
        env={"PYTHONPATH": str(ROOT / "src")},
        check=True,
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    source = shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__")
    )
    subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    expected = {str(path.relative_to(source)) for path in source.rglob("retouch/**/*")}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("retouch/")}
    assert packed == {name for name in expected if (source / name).is_file()}


def test_the_client_imports_nothing_of_the_service() -> None:
    program = "import sys, retouch.client; print(*{name.split('.')[0] for name in sys.modules})"
    imported = run_python(program).stdout.split()
    assert {"httpx", "pydantic"} <= set(imported)
    assert not {"bentoml", "minio", "numpy", "pydantic_settings", "runpod", "torch", "tqdm"} & set(
        imported
    )


def test_the_command_says_which_package_it_lacks() -> None:
    program = "import sys; sys.modules['tqdm'] = None; from retouch.command import main; main()"
    done = run_python(program, "--help")
    assert done.stderr.startswith("retouch: tqdm is not installed.")
    assert "[service]" in done.stderr


def test_the_command_runs_where_its_packages_are() -> None:
    program = "from retouch.command import main; main()"
    done = run_python(program, "--help")
    assert "edit" in done.stdout
