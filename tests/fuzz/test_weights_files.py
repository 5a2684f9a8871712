"""Any file of weights is read in full or refused by one line that names the fault."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Quantization
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save
from support.models.adapters import SHAPES, draw
from support.models.lora_files import build_tensors
from support.models.packed_files import SAFETENSORS, save_gguf

from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.read import read_adapter
from retouch.engine.checkpoint import packed_file, safetensors_reader
from retouch.errors import ModelError

pytestmark = [pytest.mark.fuzz]

WEIGHTS = {
    "img_in.weight": torch.linspace(-1, 1, 64 * 32).view(64, 32),
    "transformer_blocks.0.attn.to_q.weight": torch.linspace(-1, 1, 32 * 64).view(32, 64),
    "transformer_blocks.0.attn.to_q.bias": torch.linspace(-1, 1, 32),
}
LORA = save(build_tensors(draw(only="attn"), "kohya", alpha=2.0))
NUMBERS = [0, 1, 8, 9, 1 << 31, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
FIELDS = [b"null", b"-1", b"1.5", b"true", b"[]", b"{}", b'"U8"', b"1e400", b"[[[", b'"\\ud800"']


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[bytes]:
    path, files = folder / "sample", []
    for kind in (Quantization.Q8_0, Quantization.F16):
        save_gguf(WEIGHTS, path, kind)
        files.append(path.read_bytes())
    return files + [make(WEIGHTS).save(path).read_bytes() for make in SAFETENSORS.values()]


def mutate(data: st.DataObject, body: bytes) -> bytes:
    """Change numbers, fields and bytes, most of them in the header."""
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([min(32, len(changed)), min(1500, len(changed))]))
        at = data.draw(st.integers(0, end))
        part = data.draw(
            st.binary(max_size=4)
            | st.sampled_from(FIELDS)
            | st.sampled_from(NUMBERS).map(lambda number: struct.pack("<Q", number))
        )
        changed[at : at + data.draw(st.integers(0, 8))] = part
    return bytes(changed)


def load(path: Path) -> None:
    entries = packed_file.read_transformer(path).entries
    wanted = {name: torch.full_like(one, torch.nan) for name, one in WEIGHTS.items()}
    named = {f"t.{name}": one for name, one in entries.items()}
    packed_file.require_used(named, {"t"}, {f"t.{name}" for name in wanted})
    safetensors_reader.read_weights(entries, wanted)
    assert all(weight.isfinite().all() for weight in wanted.values())


def refusal_of(read: Callable[[Path], object], path: Path) -> str:
    """Return why a file is refused, or nothing where it is read."""
    try:
        read(path)
    except ModelError as refusal:
        return refusal.message or "refused without a message"
    return ""


def is_one_line(text: str) -> bool:
    return text.isprintable() and len(text) <= 1001 and "without a message" not in text


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_file_of_a_transformer_is_refused_by_a_line_or_read_in_full(
    folder: Path, samples: list[bytes], data: st.DataObject
) -> None:
    path = folder / "changed"
    path.write_bytes(mutate(data, data.draw(st.sampled_from(samples))))
    assert is_one_line(refusal_of(load, path))


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_lora_file_is_refused_or_read_in_full(folder: Path, data: st.DataObject) -> None:
    def read(path: Path) -> None:
        try:
            layers = read_adapter(path, SHAPES).layers.values()
        except AdapterRefused as refusal:
            raise ModelError(str(refusal)) from refusal
        assert all(one.down.isfinite().all() and one.up.isfinite().all() for one in layers)

    path = folder / "adapter"
    path.write_bytes(mutate(data, LORA))
    assert is_one_line(refusal_of(read, path))
