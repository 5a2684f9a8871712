"""Headers made to hang, to exhaust or to confuse a reader: each is refused by one line."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from retouch.engine.checkpoint import packed_file, safetensors_reader
from retouch.engine.checkpoint.files import read_json
from retouch.engine.header_limit import MAX_HEADER_BYTES
from retouch.errors import ModelError

ARRAY, STRING, U8, U64 = 9, 8, 0, 10
MARK = "a.comfy_quant"


def named(name: bytes, *numbers: Any, form: str) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<" + form, *numbers)


def gguf(rest: bytes, *, weights: int = 0, values: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, weights, values) + rest


def array(inner: int, count: int, items: bytes = b"") -> bytes:
    more = named(b"b", U8, 0, form="IB")
    return gguf(named(b"a", ARRAY, inner, count, form="IIQ") + items + more, values=2)


GGUF = {
    "an array that ends after memory does": (array(U64, 1 << 63), "damaged or truncated"),
    "an array of all that fits a number": (array(U8, (1 << 64) - 1), "damaged or truncated"),
    "arrays within arrays": (array(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 20_000), "type 9"),
    "a million empty texts": (array(STRING, 1 << 20, bytes(8 << 20)), "texts"),
    "a million weights": (gguf(bytes(1 << 20), weights=1 << 20), "1048576 weights"),
    "a name of many lines": (
        gguf(named(b"general.architecture", 8, 3000, form="IQ") + b"a\n\x1b" * 1000, values=1),
        "architecture a??a??",
    ),
}


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def declared(text: str) -> bytes:
    return safetensors({"__metadata__": {"_quantization_metadata": text}})


def marked(mark: bytes) -> bytes:
    header = {
        "a.weight": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]},
        MARK: {"dtype": "U8", "shape": [len(mark)], "data_offsets": [4, 4 + len(mark)]},
    }
    return safetensors(header, bytes(4) + mark)


SAFETENSORS = {
    "a header over the limit": (
        safetensors({"__metadata__": {"a": "b" * MAX_HEADER_BYTES}}),
        f"header of over {MAX_HEADER_BYTES} bytes",
    ),
    "metadata nested deep": (declared("[" * 100_000), "_quantization_metadata"),
    "a format for a layer that no weight has": (declared('{"layers": {"a": 1}}'), "a.weight"),
    "a mark nested deep": (marked(b"[" * 4000), MARK),
    "a mark larger than any is": (marked(b'"' + b"a" * 100_000 + b'"'), MARK),
    "a mark of many lines": (
        marked(json.dumps({"format": "a\u2028" * 500}, ensure_ascii=False).encode()),
        "a has",
    ),
}


@pytest.mark.parametrize("name", [*GGUF, *SAFETENSORS])
def test_a_hostile_header_is_refused_in_one_short_line(tmp_path: Path, name: str) -> None:
    body, text = {**GGUF, **SAFETENSORS}[name]
    path = tmp_path / "w.bin"
    path.write_bytes(body)
    with pytest.raises(ModelError) as caught:
        packed_file.read_transformer(path)
    assert text in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) <= 1001


def test_json_of_a_checkpoint_that_is_nested_deep_is_not_valid(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json is not valid JSON"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
def test_a_plain_weight_that_is_not_finite_is_refused_by_name(
    tmp_path: Path, bad: float, dtype: torch.dtype, wanted: torch.dtype
) -> None:
    weight = torch.full((64, 32), 6e4).to(dtype)
    weight[-1, -1] = bad
    save_file({"a.weight": weight, "b.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    entries = packed_file.read_transformer(tmp_path / "w.safetensors").entries
    into = {name: torch.empty(one.shape, dtype=wanted) for name, one in entries.items()}
    with pytest.raises(ModelError, match=r"a\.weight has values that are not finite"):
        safetensors_reader.read_weights(entries, into)
