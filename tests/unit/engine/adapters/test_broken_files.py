"""Thirty files that cannot be applied in full: each is refused in one line, and nothing of it is kept."""

import hashlib
import io
import json
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save
from support.models.adapters import SHAPES, draw
from support.models.lora_files import build_tensors, draw_pairs

from retouch.engine.adapters.kept import KeptAdapters
from retouch.engine.adapters.read import MAX_RANK
from retouch.errors import UnsupportedLora

Tensors = dict[str, torch.Tensor]
PAIRS = draw(only="attn")
NAME = "transformer_blocks.0.attn.to_q"
DOWN, UP = (f"transformer.{NAME}.lora_{part}.weight" for part in "AB")
WIDE = {"transformer_blocks.0.attn.to_q": (32, 32)}


def good() -> Tensors:
    return build_tensors(PAIRS, "diffusers", alpha=2.0)


def replaced(key: str, tensor: torch.Tensor) -> bytes:
    return save(good() | {key: tensor})


def spoiled(key: str, value: float) -> bytes:
    tensor = good()[key].clone()
    tensor.view(-1)[-1] = value
    return replaced(key, tensor)


def without(key: str) -> bytes:
    tensors = good()
    del tensors[key]
    return save(tensors)


def pickled() -> bytes:
    file = io.BytesIO()
    torch.save(good(), file)
    return file.getvalue()


def with_header(change: Callable[[dict[str, dict[str, object]]], None]) -> bytes:
    """Write the file with a header that its data does not agree with."""
    body = save(good())
    end = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:end])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body[end:]


def far_blocks() -> Tensors:
    """Half of the blocks do not exist here."""
    moved = {name.replace("blocks.1.", "blocks.31."): pair for name, pair in PAIRS.items()}
    return build_tensors(moved, "kohya")


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "not a readable safetensors file"),
    "a text": (lambda: b"<!doctype html><p>Sign in</p>" * 9, "not a readable safetensors file"),
    "a pickle": (pickled, "pickles are never opened"),
    "a GGUF file": (lambda: b"GGUF" + b"\0" * 200, "not a readable safetensors file"),
    "a truncated file": (lambda: save(good())[:-1], "not a readable safetensors file"),
    "a header alone": (lambda: save(good())[:40], "not a readable safetensors file"),
    "bytes left over": (lambda: save(good()) + b"x", "not a readable safetensors file"),
    "a header that lies about a shape": (
        lambda: with_header(lambda header: header[DOWN].update(shape=[4, 33])),
        "not a readable safetensors file",
    ),
    "a type that does not exist": (
        lambda: with_header(lambda header: header[DOWN].update(dtype="F12")),
        "not a readable safetensors file",
    ),
    "a header of a million names": (
        lambda: (5 << 20).to_bytes(8, "little") + b"{" + b" " * (5 << 20),
        "the header is over",
    ),
    "no tensors": (lambda: save({}), "no tensors"),
    "half of the blocks": (lambda: save(far_blocks()), "no layer for the key"),
    "another model's keys": (
        lambda: save({"unet.down_blocks.0.lora_A.weight": torch.ones(4, 32)}),
        "no layer for the key",
    ),
    "another model's width": (lambda: replaced(DOWN, torch.ones(4, 64)), "another model"),
    "up and down exchanged": (
        lambda: save({**good(), DOWN: torch.ones(32, 4), UP: torch.ones(4, 32)}),
        "transformer",
    ),
    "ranks that differ within a layer": (lambda: replaced(UP, torch.ones(32, 5)), UP),
    "a tensor of three dimensions": (lambda: replaced(DOWN, torch.ones(4, 32, 1)), DOWN),
    "NaN in down": (lambda: spoiled(DOWN, float("nan")), f"in {DOWN}"),
    "NaN in up": (lambda: spoiled(UP, float("nan")), f"in {UP}"),
    "infinity": (lambda: spoiled(UP, float("inf")), "infinity"),
    "an infinite alpha": (
        lambda: replaced(f"transformer.{NAME}.alpha", torch.tensor(float("-inf"))),
        "alpha",
    ),
    "two numbers as alpha": (
        lambda: replaced(f"transformer.{NAME}.alpha", torch.ones(2)),
        "alpha must be one number",
    ),
    "rank 257": (
        lambda: save(build_tensors(draw_pairs(WIDE, rank=MAX_RANK + 1), "bare")),
        "rank 257",
    ),
    "rank 1024": (
        lambda: save(build_tensors(draw_pairs(WIDE, rank=1024), "bare")),
        "rank 1024",
    ),
    "rank 0": (
        lambda: save({**good(), DOWN: torch.ones(0, 32), UP: torch.ones(32, 0)}),
        "rank 0",
    ),
    "down without up": (lambda: without(UP), "one half of an update is missing"),
    "up without down": (lambda: without(DOWN), "one half of an update is missing"),
    "the same layer in two styles": (
        lambda: save(good() | build_tensors(draw(only=NAME, seed=2), "comfy")),
        "two keys for the same part",
    ),
    "weights in int8": (
        lambda: replaced(DOWN, torch.ones(4, 32, dtype=torch.int8)),
        "is not supported for LoRA weights",
    ),
    "a key of many lines": (lambda: replaced("a\n" * 999, torch.ones(1)), "not a LoRA key"),
    "DoRA": (lambda: replaced(f"transformer.{NAME}.dora_scale", torch.ones(32)), "DoRA"),
    "LoKr": (lambda: replaced(f"lycoris_{NAME}.lokr_w1", torch.ones(4, 4)), "LoKr"),
    "LoHa": (lambda: replaced(f"lycoris_{NAME}.hada_w1_a", torch.ones(4, 4)), "LoHa"),
    "a bias's difference": (lambda: replaced(f"{NAME}.diff_b", torch.ones(32)), "differences"),
}


def test_there_are_thirty_files_and_their_model_is_a_good_one() -> None:
    assert len(BROKEN) >= 30
    body = save(good())
    kept = KeptAdapters(SHAPES, 1 << 20)
    assert kept.add(body, hashlib.sha256(body).hexdigest()).info.layers == len(PAIRS)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line_and_nothing_of_it_is_kept(name: str) -> None:
    build, text = BROKEN[name]
    body = build()
    sha256 = hashlib.sha256(body).hexdigest()
    kept = KeptAdapters(SHAPES, 1 << 20)
    with pytest.raises(UnsupportedLora) as caught:
        kept.add(body, sha256)
    assert text in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert "/proc" not in caught.value.message
    assert kept.find(sha256) is None
    assert kept.size_bytes == 0
