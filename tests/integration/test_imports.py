"""What an import of the package leaves out, in an interpreter of its own."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration


def modules_after(program: str) -> set[str]:
    """Return the top-level names that are imported after a program."""
    command = f"import sys\n{program}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(  # noqa: S603 - our own interpreter and program
        [sys.executable, "-c", command],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_no_model_library() -> None:
    imported = modules_after("import retouch.engine.checkpoint")
    assert "retouch" in imported
    assert not imported & {"torch", "diffusers", "transformers", "huggingface_hub"}


def test_without_a_trace_the_client_imports_no_opentelemetry() -> None:
    imported = modules_after(
        "from retouch import client, tracing\n"
        "with tracing.span('a'), tracing.continued(None): assert not tracing.headers()"
    )
    assert "retouch" in imported
    assert "opentelemetry" not in imported
