from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.models.streamed import stream_everything
from support.models.tiny import build_tiny_pipeline

from retouch.engine.checkpoint import mapped
from retouch.engine.checkpoint.entries import TensorEntry, read_safetensors

COUNT = 2 * 2 * 2
"""Blocks, streams, weight and bias."""


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, TensorEntry]:
    return write(tmp_path, build_tiny_pipeline().transformer.state_dict())


def write(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, TensorEntry]:
    path = folder / "model.safetensors"
    save_file(weights, path)
    return {f"transformer.{entry.name}": entry for entry in read_safetensors(path)[0]}


def mounts(folder: Path, kind: str) -> Path:
    """A mount table in which `folder` is a file system of this kind."""
    path = folder / "mountinfo"
    lines = ["21 1 8:1 / / rw - ext4 /dev/sda1 rw", f"22 21 0:5 / {folder} rw,x - {kind} any rw"]
    path.write_text("\n".join(lines))
    return path


def test_mapped_modulation_streams_with_the_same_bits(stored: dict[str, TensorEntry]) -> None:
    pipe = build_tiny_pipeline()
    maps = mapped.map_modulation(pipe.transformer, stored)
    assert len(maps) == COUNT
    weights = stream_everything(pipe, mapped=maps)
    stock = build_tiny_pipeline().transformer.transformer_blocks
    for number, pair in enumerate(weights.modulations()):
        theirs = stock[number].img_mod, stock[number].txt_mod
        for ours, other in zip(pair, theirs, strict=True):
            for key, tensor in ours.state_dict().items():
                assert torch.equal(tensor, other.state_dict()[key])


def test_mapped_weights_are_not_read_again(stored: dict[str, TensorEntry]) -> None:
    pipe = build_tiny_pipeline()
    weights = stream_everything(pipe, mapped=mapped.map_modulation(pipe.transformer, stored))
    assert not any("_mod." in path for path in weights.destinations())


def test_files_of_a_network_are_not_mapped(stored: dict[str, TensorEntry], tmp_path: Path) -> None:
    transformer = build_tiny_pipeline().transformer
    assert mapped.map_modulation(transformer, stored, mounts(tmp_path, "ext4"))
    for kind in ("nfs4", "fuse.s3fs", "9p", "ceph"):
        assert not mapped.map_modulation(transformer, stored, mounts(tmp_path, kind))
    assert not mapped.map_modulation(transformer, stored, tmp_path / "no such table")


def test_weights_that_would_have_to_be_converted_are_not_mapped(
    stored: dict[str, TensorEntry],
) -> None:
    assert not mapped.map_modulation(build_tiny_pipeline().transformer.half(), stored)


def test_where_one_is_missing_or_has_another_shape_none_is_mapped(tmp_path: Path) -> None:
    weights = build_tiny_pipeline().transformer.state_dict()
    name = "transformer_blocks.1.txt_mod.1.bias"
    weights[name] = weights[name][:-1].clone()
    assert not mapped.map_modulation(build_tiny_pipeline().transformer, write(tmp_path, weights))
    del weights[name]
    assert not mapped.map_modulation(build_tiny_pipeline().transformer, write(tmp_path, weights))
