from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.models.adapters import SHAPES, draw
from support.models.lora_files import build_tensors, write

from retouch.engine.adapters.load import load_adapters
from retouch.engine.adapters.source import hold_in_memory
from retouch.errors import ModelError
from retouch.settings.loras import LoraSetting

PAIRS = draw(only="attn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", build_tensors(PAIRS, "kohya", alpha=2.0))


@contextmanager
def take(source: str) -> Iterator[Path]:
    yield Path(source)


def test_an_adapter_is_loaded_with_its_name_scale_and_rule(path: Path) -> None:
    (one,) = load_adapters([LoraSetting("warm", str(path), scale=0.5, always=True)], SHAPES, take)
    assert (one.info.name, one.info.scale, one.info.always) == ("warm", 0.5, True)
    assert (one.info.layers, one.info.rank) == (len(PAIRS), 4)
    assert one.info.sha256 == one.adapter.sha256


def test_another_hash_than_the_one_given_is_refused(path: Path) -> None:
    (one,) = load_adapters([LoraSetting("warm", str(path))], SHAPES, take)
    given = LoraSetting("warm", str(path), sha256=one.adapter.sha256)
    assert load_adapters([given], SHAPES, take)
    wrong = LoraSetting("warm", str(path), sha256="0" * 64)
    with pytest.raises(ModelError, match=r"LORAS: warm: the file's SHA-256 is .*, not the one"):
        load_adapters([wrong], SHAPES, take)


def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    sources = [LoraSetting("warm", str(tmp_path / "none.safetensors"))]
    with pytest.raises(ModelError, match=r"^LORAS: warm: there is no file [^\n]*$"):
        load_adapters(sources, SHAPES, take)


def test_bytes_in_memory_are_a_file_until_the_end() -> None:
    with hold_in_memory(b"body") as held:
        assert held.read_bytes() == b"body"
    assert not held.exists()
