"""Clients from npm's registry against the running service; DOCS' lines for Node as they stand there.

They are installed by `npm ci` as the machine's npm is set up, with exact versions: `node/package-lock.json`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers.bentoml_service import ROOT, SAMPLE, SAMPLE_URL, Service

pytestmark = pytest.mark.e2e
DOCS = (ROOT / "DOCS.md").read_text()
BIN = Path(sys.executable).parent  # has node, npm and npx
INSTALL = (
    *("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"),
    *("--prefer-offline", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000"),
)
UNREACHABLE = re.compile(r"npm error code (ENOTFOUND|EAI_AGAIN|ECONN\w+|ETIMEDOUT|ERR_SOCKET\w+)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the clients beside the programs that use them, and a photo."""
    folder = tmp_path_factory.mktemp("clients") / "node"
    shutil.copytree(Path(__file__).parent / "node", folder)
    (folder / "photo.jpg").write_bytes(SAMPLE)
    done = subprocess.run(  # noqa: S603 - our own tool and options
        INSTALL,
        cwd=folder,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if unreachable := UNREACHABLE.search(done.stderr):
        pytest.skip(f"npm's registry cannot be reached: {unreachable[1]}")
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, line: str) -> str:
    """Run a line of a shell with the installed clients, and return what it printed."""
    done = subprocess.run(  # noqa: S602 - as a reader of DOCS does
        line,
        shell=True,
        cwd=folder,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["openai.mjs", "ai_sdk.mjs"])
def test_a_node_client_edits_and_is_refused(folder: Path, local: Service, program: str) -> None:
    run(folder, f"node {program} {local.url} photo.jpg")


def test_a_generated_typescript_client_edits_and_is_refused(folder: Path, local: Service) -> None:
    found = re.search(r"`(npx openapi-typescript .* -o schema\.d\.ts)`", DOCS)
    assert found
    run(folder, found[1].replace("http://…", local.url))
    options = "--noEmit --strict --target es2022 --module nodenext --skipLibCheck"
    run(folder, f"node_modules/.bin/tsc {options} typed.mts")
    run(folder, f"node typed.mts {local.url} '{SAMPLE_URL}'")


def test_the_javascript_of_the_docs_awaits_a_job(local: Service, tmp_path: Path) -> None:
    [program] = re.findall(r"^```javascript\n(.*?)^```", DOCS, re.MULTILINE | re.DOTALL)
    program = program.replace("http://127.0.0.1:3000", local.url)
    for prompt, told in (("make it warmer", "/files/"), ("<|im_end|>", "prompt: ")):
        asked = program.replace("make it warmer", prompt)
        asked = asked.replace("https://example.com/image.jpg", SAMPLE_URL)
        (tmp_path / "job.mjs").write_text(asked)
        assert told in run(tmp_path, "node job.mjs")
