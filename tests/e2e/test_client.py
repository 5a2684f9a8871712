"""Clients of the service: the OpenAPI document, a generated client, BentoML's own client."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from support.servers.bentoml_service import ROOT, SAMPLE_URL, Service

pytestmark = pytest.mark.e2e

FIELDS: dict[str, Any] = {"image_url": SAMPLE_URL, "prompt": "make colors warmer", "seed": 5}


def test_the_openapi_document_is_valid_openapi_3_1(local: Service) -> None:
    document = local.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_lists_every_status_that_edits_returned(local: Service) -> None:
    known = local.client.get("/openapi.json").json()["paths"]["/edit"]["post"]["responses"]
    seen = {each["status"] for each in local.events("http.answered", method="POST")}
    seen.add(local.ask().status_code)
    assert {str(status) for status in seen} <= set(known)


@pytest.fixture(scope="module")
def generated(local: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Generate a client from the running service, and make it importable."""
    folder = tmp_path_factory.mktemp("client")
    tool = Path(sys.executable).parent / "openapi-python-client"
    url = f"{local.url}/openapi.json"
    done = subprocess.run(  # noqa: S603 - our own tool and address
        [tool, "generate", "--url", url, "--fail-on-warning"],
        cwd=folder,
        env={"PATH": f"{tool.parent}:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert not [word for word in ("warning", "error", "unable") if word in told.lower()], told
    project = folder / "retouch-client"
    sys.path.insert(0, str(project))
    yield project
    sys.path.remove(str(project))


def call(url: str, **fields: Any) -> Any:
    """Send an edit."""
    package = importlib.import_module("retouch_client")
    models = importlib.import_module("retouch_client.models")
    edit = importlib.import_module("retouch_client.api.default.edit")
    with package.Client(url, timeout=60) as client:
        return edit.sync_detailed(client=client, body=models.EditRequest(**fields))


@pytest.mark.usefixtures("generated")
def test_a_generated_client_parses_success_into_its_models(local: Service) -> None:
    answer = call(local.url, **FIELDS)
    assert answer.status_code == 200
    assert type(answer.parsed).__name__ == "EditResult"
    meta = answer.parsed.result.meta
    assert (meta.seed, meta.source.format_, type(meta.timings_ms).__name__) == (
        5,
        "jpeg",
        "Timings",
    )
    assert httpx.get(answer.parsed.result.presigned_url, trust_env=False).status_code == 200


@pytest.mark.usefixtures("generated")
@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"prompt": " ", "num_inference_steps": 0}, 400, "invalid_request"),
        ({"image_url": "http://no-such-name.invalid/a.jpg"}, 502, "source_unreachable"),
    ],
)
def test_a_generated_client_parses_failure_into_its_models(
    local: Service, fields: dict[str, Any], status: int, code: str
) -> None:
    answer = call(local.url, **{**FIELDS, **fields})
    assert answer.status_code == status
    assert type(answer.parsed).__name__ == "ErrorBody"
    assert answer.parsed.error.details.code == code


def test_the_program_of_the_docs_edits_with_a_key(strict: Service, generated: Path) -> None:
    docs = (ROOT / "DOCS.md").read_text()
    [program] = re.findall(
        r"^```python\n(from retouch_client .*?)^```", docs, re.MULTILINE | re.DOTALL
    )
    ours = {
        "http://127.0.0.1:3000": strict.url,
        "KEY": strict.client.headers["X-API-Key"],
        "https://example.com/image.jpg": SAMPLE_URL,
    }
    for theirs, value in ours.items():
        program = program.replace(theirs, value)
    done = subprocess.run(  # noqa: S603 - our own interpreter and text
        [sys.executable, "-c", f"{program}print(type(answer).__name__)"],
        env={"PYTHONPATH": str(generated)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "EditResult\n", done.stderr


@pytest.mark.usefixtures("generated")
def test_a_generated_client_without_a_key_is_refused(strict: Service) -> None:
    assert call(strict.url, **FIELDS).parsed.error.details.code == "unauthorized"


_WITH_BENTOML = """
import json, sys, bentoml
url, fields = sys.argv[1], json.loads(sys.argv[2])
with bentoml.SyncHTTPClient(url) as client:
    answer = client.edit(fields)
    try:
        client.edit({**fields, "seed": -2})
    except bentoml.exceptions.BentoMLException as error:
        refusal = [error.error_code, str(error)]
print(json.dumps([answer, refusal]))
"""


def test_bentomls_own_client_edits_and_raises_errors(local: Service) -> None:
    done = subprocess.run(  # noqa: S603 - in a process of its own, as it warns and leaves a folder
        [sys.executable, "-W", "ignore", "-c", _WITH_BENTOML, local.url, json.dumps(FIELDS)],
        env={"HOME": str(local.folder), "BENTOML_HOME": str(local.home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, (status, text) = json.loads(done.stdout)
    assert (answer["status"], answer["result"]["meta"]["seed"]) == ("success", 5)
    assert status == 400
    assert "invalid_request" in text
