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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("package")
    source = shutil.copytree(
        ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "requirements.txt", folder)
    subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "retouch"],  # noqa: S607
        cwd=ROOT / "src",
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert set(tracked) <= set(wheel.namelist())


def test_the_extra_service_has_the_pins_of_the_requirements(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    metadata = wheel.read(name).decode()
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for line in lines:
        pin = line.partition(";")[0]
        assert not pin or pin.startswith("#") or f"Requires-Dist: {pin}; " in metadata


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
