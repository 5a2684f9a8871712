"""Adapters that requests bring."""

import gc
import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support.models.adapters import SHAPES, draw, load, name_adapter
from support.models.lora_files import Pair, build_tensors, write

from retouch.editing.adapters import resolve_adapters
from retouch.editing.ports import MAX_ADAPTER_RANK, AdapterInfo
from retouch.engine.adapters.kept import KeptAdapters
from retouch.engine.adapters.terms import block_layers, count_bytes
from retouch.errors import InvalidRequest, UnsupportedLora
from retouch.schema import Lora, lora_key

PAIRS = draw(only="attn")
URL = "https://a.example/b"


def make(folder: Path, pairs: Mapping[str, Pair]) -> tuple[bytes, str]:
    body = write(folder / "a.safetensors", build_tensors(pairs, "kohya")).read_bytes()
    return body, hashlib.sha256(body).hexdigest()


def test_a_file_is_kept_by_its_hash(tmp_path: Path) -> None:
    kept, (body, sha256) = KeptAdapters(SHAPES, 1 << 20), make(tmp_path, PAIRS)
    assert kept.find(sha256) is None
    held = kept.add(body, sha256)
    assert kept.find(sha256) is held
    assert held.info.name == f"sha256:{sha256[:12]}"
    assert (held.info.layers, held.info.rank, held.info.scale) == (len(PAIRS), 4, 1.0)


def test_a_file_with_another_hash_or_of_another_kind_is_refused_in_one_line(tmp_path: Path) -> None:
    kept, (body, _) = KeptAdapters(SHAPES, 1 << 20), make(tmp_path, PAIRS)
    with pytest.raises(UnsupportedLora, match="SHA-256 is not the one given"):
        kept.add(body, "0" * 64)
    foreign = write(tmp_path / "b", {"unet.lora_A.weight": torch.ones(1, 1)}).read_bytes()
    with pytest.raises(UnsupportedLora, match="no layer for the key unet"):
        kept.add(foreign, hashlib.sha256(foreign).hexdigest())
    assert kept.size_bytes == 0


def test_the_oldest_goes_first_but_not_while_an_edit_holds_it(tmp_path: Path) -> None:
    files = [make(tmp_path, draw(only="attn", seed=seed)) for seed in range(3)]
    size = sum(tensor.nbytes for pair in PAIRS.values() for tensor in pair)
    kept = KeptAdapters(SHAPES, 2 * size)
    held = kept.add(*files[0])
    for body, sha256 in files[1:]:
        kept.add(body, sha256)
    assert kept.size_bytes == 2 * size
    assert kept.find(files[0][1]) is held
    del held
    gc.collect()
    assert kept.find(files[0][1]) is None
    assert kept.find(files[1][1])


def test_an_adapter_from_a_url_makes_the_same_terms_as_one_of_the_operator(tmp_path: Path) -> None:
    body, sha256 = make(tmp_path, PAIRS)
    named = load(name_adapter(tmp_path, "a", PAIRS))
    brought = load(url_bytes=1 << 20)
    assert brought.kept
    held = brought.kept.add(body, sha256)
    like = torch.ones(1)

    terms = brought.get_terms(
        resolve_adapters([Lora(url=URL, sha256=sha256, scale=0.5)], [held.info]), like
    )

    expected = named.get_terms(resolve_adapters([Lora(name="a", scale=0.5)], named.info), like)
    for found, wanted in zip(terms.blocks, expected.blocks, strict=True):
        assert found.keys() == wanted.keys()
        for name, pair in found.items():
            assert all(map(torch.equal, pair, wanted[name]))


def test_the_plan_has_room_for_files_and_for_the_ranks_that_requests_may_bring(
    tmp_path: Path,
) -> None:
    _, sha256 = make(tmp_path, PAIRS)
    assert load().max_rank == MAX_ADAPTER_RANK
    adapters = load(name_adapter(tmp_path, "a", PAIRS, always=True), url_bytes=1 << 20)
    assert adapters.host_bytes >= 1.5 * (1 << 20)
    assert adapters.max_rank == 256  # 4 and 128, padded
    assert adapters.terms_bytes == count_bytes(SHAPES, block_layers(SHAPES), 256)
    brought = AdapterInfo(lora_key(sha256), sha256, 1, 253)
    with pytest.raises(InvalidRequest, match="the ranks together are 257; at most 256 fit"):
        resolve_adapters(
            [Lora(url=URL, sha256=sha256)], [*adapters.info, brought], max_rank=adapters.max_rank
        )
