"""The bento that the image is built from; `.ci/image` builds the image itself."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.runpod_image import compose

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]


def test_the_bento_holds_the_package_and_no_tests_and_is_what_runpod_builds(tmp_path: Path) -> None:
    run = subprocess.run(  # noqa: S603 - our own interpreter and options
        [sys.executable, "-m", "bentoml", "build", str(ROOT)],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "BENTOML_HOME": str(tmp_path / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (bento,) = (tmp_path / "home/bentos/retouch").glob("*/")
    shipped = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*.py")}
    assert "service.py" in shipped
    assert "retouch/worker/__main__.py" in shipped
    assert not [path for path in shipped if path.startswith("tests")]
    installed = (bento / "env/python/requirements.txt").read_text()
    lock = (ROOT / "src/requirements.lock").read_text()
    assert installed.count("--hash=sha256:") == lock.count("--hash=sha256:") > 0
    generated = (bento / "env/docker/Dockerfile").read_text()
    composed = compose(generated, (ROOT / "Dockerfile").read_text())
    assert (ROOT / ".runpod/Dockerfile").read_text() == composed
