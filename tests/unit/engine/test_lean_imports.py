import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from retouch.engine.lean_imports import lean_imports


@pytest.fixture(autouse=True)
def nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("boto3", "diffusers", "gguf", "xformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_optional_packages_are_hidden_within_the_block_only() -> None:
    with lean_imports(attention="auto"):
        assert importlib.util.find_spec("boto3") is None
        with pytest.raises(ModuleNotFoundError):
            __import__("xformers")
    assert importlib.util.find_spec("boto3")
    assert importlib.util.find_spec("xformers")


def test_xformers_is_found_where_it_is_asked_for() -> None:
    with lean_imports(attention="xformers"):
        assert importlib.util.find_spec("xformers")
        assert importlib.util.find_spec("boto3") is None


def test_what_is_imported_already_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", sys)
    with lean_imports(attention="auto"):
        assert sys.modules["gguf"] is sys
    assert sys.modules["gguf"] is sys


def test_a_diffusers_that_is_imported_already_keeps_what_it_has_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", sys)
    with lean_imports(attention="auto"):
        assert importlib.util.find_spec("gguf")


def test_torch_is_distributed_again_even_after_a_fault() -> None:
    def fail() -> None:
        with lean_imports(attention="auto"):
            assert not torch.distributed.is_available()
            raise ZeroDivisionError

    available = torch.distributed.is_available()
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.distributed.is_available() == available


def test_the_map_of_distributions_is_built_after_the_block_only() -> None:
    with lean_imports(attention="auto"):
        assert importlib.metadata.packages_distributions() == {}
    assert importlib.metadata.packages_distributions()


PROGRAM = """
import sys
from retouch.engine.lean_imports import lean_imports
with lean_imports(attention="auto"):
    from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
    import transformers
    few = len(transformers.__all__)
    from transformers import BloomConfig
assert few < len(transformers.__all__) / 4
assert transformers.models.albert and not hasattr(transformers, "Missing")
assert len(transformers.__all__) > 5000
"""


def test_packages_beside_it_may_use_any_model_and_one_that_is_broken_is_not_imported(
    tmp_path: Path,
) -> None:
    for name in ("peft", "torchao", "bitsandbytes"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it wants another transformers')")
        (tmp_path / f"{name}-9.9.9.dist-info").mkdir()
        (tmp_path / f"{name}-9.9.9.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9.9\n"
        )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    run = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
