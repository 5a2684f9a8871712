"""Weights that memory keeps as their file has them."""

from pathlib import Path

import pytest
import torch
from support.models import packed_files
from support.models.packed_files import Kind, Packed, in_row_scaled_fp8, save_gguf
from support.models.streamed import CPU, plan_streaming
from support.models.tiny import build_tiny_pipeline
from support.models.tiny_folder import tiny_folder

from retouch.engine.checkpoint import build, packed_file, safetensors_reader
from retouch.engine.checkpoint.files import WEIGHTED
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.flat_params import PackedWeight
from retouch.engine.memory.plan import RESIDENT
from retouch.engine.memory.quantization import Quantization
from retouch.engine.memory.weights import Weights
from retouch.errors import ModelError

NAME = "transformer_blocks.0.attn.to_q.weight"


def tiny_weights() -> packed_files.Weights:
    return {k: v.detach() for k, v in build_tiny_pipeline().transformer.state_dict().items()}


def place(path: Path, *, streamed: bool) -> Weights:
    """Load the tiny model with the transformer of a file, kept as it is there."""
    parts = build.read_parts(tiny_folder(), {"transformer": path}, family="edit")
    modules = build.build_modules(parts.configs, dict.fromkeys(WEIGHTED, torch.float32))
    filed = build.list_filed(parts.packed, lambda _: 1.0)
    encode = encode_as(Quantization(**filed.formats), filed.encodings)
    plan = plan_streaming(modules, encode) if streamed else RESIDENT
    weights = Weights(**modules, plan=plan, device=CPU, encode=encode)
    weights.allocate()
    stored = build.list_entries(tiny_folder(), parts.packed)
    safetensors_reader.read_weights(stored, weights.destinations())
    return weights


def mixed(name: str) -> Kind:
    """Choose as files of Q4_K_M and the like do: other types in other blocks."""
    if "img_mlp.net.2" in name:
        return Kind.BF16
    return Kind.Q8_0 if ".0.attn" in name else Kind.Q4_0


@pytest.mark.parametrize("streamed", [False, True])
def test_blocks_of_mixed_types_have_their_files_weights_while_they_are_yielded(
    tmp_path: Path, streamed: bool
) -> None:
    rounded = save_gguf(tiny_weights(), tmp_path / "w.gguf", mixed)

    weights = place(tmp_path / "w.gguf", streamed=streamed)

    for _step in range(2):
        for number, block in enumerate(weights.blocks()):
            for name, found in block.state_dict().items():
                if "_mod." not in name:
                    wanted = rounded[f"transformer_blocks.{number}.{name}"]
                    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    for number, (image, text) in enumerate(weights.modulations()):
        for head, module in (("img_mod", image), ("txt_mod", text)):
            wanted = rounded[f"transformer_blocks.{number}.{head}.1.weight"]
            torch.testing.assert_close(module[1].weight.data, wanted, rtol=1e-6, atol=0)
    kinds = {view.encoding.name for p in weights.params for view in p.views if view.encoding}
    assert kinds == {"Q8_0", "Q4_0"}


@pytest.mark.parametrize("streamed", [False, True])
def test_scaled_fp8_keeps_its_bytes_and_what_is_not_fp8_stays_plain(
    tmp_path: Path, streamed: bool
) -> None:
    state = tiny_weights()
    packed = in_row_scaled_fp8(state)
    wide = "transformer_blocks.1.attn.to_k.weight"
    packed.tensors.pop(f"{wide.removesuffix('weight')}weight_scale")
    packed.tensors[wide] = packed.rounded[wide] = state[wide].bfloat16()

    weights = place(packed.save(tmp_path / "w.safetensors"), streamed=streamed)

    for number, block in enumerate(weights.blocks()):
        for name, found in block.state_dict().items():
            if "_mod." not in name:
                wanted = packed.rounded[f"transformer_blocks.{number}.{name}"].float()
                torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    assert f"transformer.{wide}" in weights.tensors()
    assert f"transformer.{NAME}" not in weights.tensors()


def keep(path: Path, factor: float) -> torch.Tensor:
    """Keep one weight of a file in memory, times a factor, and expand it."""
    entry = packed_file.read_transformer(path).entries[NAME]
    encoding = entry.kept_as(factor)
    assert encoding
    storage = torch.zeros(encoding.size_bytes(entry.shape), dtype=torch.uint8)
    kept = PackedWeight(encoding, storage, entry.shape)
    safetensors_reader.read_weights({NAME: entry}, {NAME: kept}, scale=lambda _: factor)
    out = torch.empty(entry.shape)
    encoding.expand(storage, out)
    return out


@pytest.mark.parametrize("chunk_bytes", [64, 1 << 24])
@pytest.mark.parametrize("factor", [1.0, 1 / 512])
def test_a_kept_weight_has_its_factor(
    tmp_path: Path, factor: float, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_reader, "CHUNK_BYTES", chunk_bytes)
    state = {NAME: torch.linspace(-1, 1, 48 * 64).view(48, 64)}
    packed = in_row_scaled_fp8(state)
    blocks = save_gguf(state, tmp_path / "w.gguf", Kind.Q5_1)

    fp8 = keep(packed.save(tmp_path / "w.safetensors"), factor)

    torch.testing.assert_close(fp8, packed.rounded[NAME] * factor, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        keep(tmp_path / "w.gguf", factor), blocks[NAME] * factor, rtol=1e-6, atol=0
    )


def test_kept_weights_that_are_not_finite_are_refused_with_their_key(tmp_path: Path) -> None:
    state = {NAME: torch.ones(48, 64)}
    save_gguf(state, tmp_path / "w.gguf", Kind.Q8_0)
    offset = packed_file.read_transformer(tmp_path / "w.gguf").entries[NAME].offset
    data = bytearray((tmp_path / "w.gguf").read_bytes())
    data[offset + 34 : offset + 36] = b"\x00\x7c"
    (tmp_path / "w.gguf").write_bytes(data)
    fp8 = in_row_scaled_fp8(state)
    fp8.tensors[NAME] = torch.full((48, 64), torch.nan).to(packed_files.FP8)

    for path in (tmp_path / "w.gguf", fp8.save(tmp_path / "w.safetensors")):
        with pytest.raises(ModelError, match=f"{NAME} has values that are not finite"):
            keep(path, 1.0)


def test_plain_weights_are_not_kept_as_they_are(tmp_path: Path) -> None:
    state = {NAME: torch.ones(4, 32)}
    path = Packed(state, None, {}).save(tmp_path / "w.safetensors")
    entries = packed_file.read_transformer(path).entries
    assert entries[NAME].kept_as(1.0) is None
    assert packed_file.describe_format(entries) == ""


def test_a_format_is_named_by_most_of_its_bytes(tmp_path: Path) -> None:
    save_gguf(tiny_weights(), tmp_path / "w.gguf", mixed)
    entries = packed_file.read_transformer(tmp_path / "w.gguf").entries
    assert packed_file.describe_format(entries) == "Q4_0 (file)"
    some = {name: entry for name, entry in entries.items() if ".0.attn" in name}
    assert packed_file.describe_format(some) == "Q8_0 (file)"
