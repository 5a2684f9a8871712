from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support.models.adapters import SHAPES, draw
from support.models.lora_files import build_tensors, write
from support.models.tiny_folder import tiny_folder

from retouch.engine.adapters.load import load_adapters
from retouch.engine.adapters.source import AdapterSource, hold_in_memory
from retouch.engine.checkpoint import hub
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.engine.checkpoint.weights_file import open_adapter
from retouch.errors import ModelError

PAIRS = draw(only="attn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", build_tensors(PAIRS, "kohya", alpha=2.0))


@contextmanager
def take(adapter: AdapterSource) -> Iterator[Path]:
    yield Path(adapter.source)


def test_an_adapter_is_loaded_with_its_name_scale_and_rule(path: Path) -> None:
    (one,) = load_adapters([AdapterSource("warm", str(path), scale=0.5, always=True)], SHAPES, take)
    assert (one.info.name, one.info.scale, one.info.always) == ("warm", 0.5, True)
    assert (one.info.layers, one.info.rank) == (len(PAIRS), 4)
    assert one.info.sha256 == one.adapter.sha256


def test_another_hash_than_the_one_given_is_refused(path: Path) -> None:
    (one,) = load_adapters([AdapterSource("warm", str(path))], SHAPES, take)
    given = AdapterSource("warm", str(path), sha256=one.adapter.sha256)
    assert load_adapters([given], SHAPES, take)
    wrong = AdapterSource("warm", str(path), sha256="0" * 64)
    with pytest.raises(ModelError, match=r"LORAS: warm: the file's SHA-256 is .*, not the one"):
        load_adapters([wrong], SHAPES, take)


def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    sources = [AdapterSource("warm", str(tmp_path / "none.safetensors"))]
    with pytest.raises(ModelError, match=r"^LORAS: warm: there is no file [^\n]*$"):
        load_adapters(sources, SHAPES, take)


def test_a_url_is_fetched_into_memory(path: Path) -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return path.read_bytes()

    sources = [AdapterSource("warm", "https://a.example/b?c")]
    find = partial(open_adapter, settings=CheckpointSettings(fetch=fetch))
    (one,) = load_adapters(sources, SHAPES, find)
    assert asked == ["https://a.example/b?c"]
    assert one.info.layers == len(PAIRS)
    find = partial(open_adapter, settings=CheckpointSettings())
    with pytest.raises(ModelError, match="LORAS: warm: URLs are not fetched here"):
        load_adapters(sources, SHAPES, find)


def test_a_hub_name_is_taken_from_the_hub_and_a_path_from_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def download_file(repository: str, name: str, **_: object) -> Path:
        asked.append((repository, name))
        return path

    monkeypatch.setattr(hub, "download_file", download_file)
    for source in ("o/r/d/f.safetensors", str(path)):
        with open_adapter(AdapterSource("warm", source), CheckpointSettings()) as found:
            assert found == path
    assert asked == [("o/r", "d/f.safetensors")]


def test_bytes_in_memory_are_a_file_until_the_end() -> None:
    with hold_in_memory(b"body") as held:
        assert held.read_bytes() == b"body"
    assert not held.exists()


def test_a_checkpoint_is_loaded_with_its_adapters(path: Path) -> None:
    settings = CheckpointSettings(
        model_id=str(tiny_folder()), adapters=(AdapterSource("warm", str(path)),)
    )
    engine = load(settings)
    assert [one.name for one in engine.info.adapters] == ["warm"]
