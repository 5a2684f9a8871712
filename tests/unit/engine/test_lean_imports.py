import importlib.metadata
import importlib.util
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


def test_the_map_of_distributions_is_built_after_the_block_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "pictures-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: pictures")
    (installed / "top_level.txt").write_text("pictures")
    with lean_imports(attention="auto"), monkeypatch.context() as patches:
        patches.setattr(sys, "path", [str(tmp_path)])
        assert importlib.metadata.packages_distributions() == {}
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert importlib.metadata.packages_distributions() == {"pictures": ["pictures"]}
