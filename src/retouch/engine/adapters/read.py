"""Read a LoRA file: header first, every key matched with its shape, finite values only."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from retouch.engine.adapters.header_alphas import HeaderAlphas, read_header_alphas
from retouch.engine.adapters.keys import (
    AdapterKey,
    AdapterRefused,
    Part,
    describe_style,
    parse_keys,
)
from retouch.engine.adapters.source import SHARD
from retouch.engine.header_limit import MAX_HEADER_BYTES, has_long_header

MAX_RANK = 256
_OTHERS = {
    b"version https://git-lfs": "it is a Git LFS pointer, which `git lfs pull` replaces by the file",
    b"<": "it is a web page",
}
_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
_ALPHA_DTYPES = _DTYPES | {"I64", "I32", "I16", "U8"}
Shape = tuple[int, int]
"""Of a linear layer's weight: (out features, in features)."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update of one layer's weight: `factor * up @ down`, in the file's own dtype.

    `down` is (rank, in), `up` (out, rank); see Hu et al. 2021, https://arxiv.org/abs/2106.09685,
    section 4.1. A file without alpha, in its keys or its header, has alpha = rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return len(self.down)

    @property
    def shape(self) -> Shape:
        """That of the layer's weight."""
        return len(self.up), self.down.shape[1]

    @property
    def factor(self) -> float:
        """What the product is multiplied by: alpha / rank."""
        return self.alpha / self.rank


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA file in full: its updates by layer, the style of its keys, the file's SHA-256."""

    layers: Mapping[str, LowRank]
    style: str
    sha256: str

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def size_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(layer.down.nbytes + layer.up.nbytes for layer in self.layers.values())


def read_adapter(path: Path, shapes: Mapping[str, Shape]) -> Adapter:
    """Read a LoRA file for a transformer whose linear layers have these `shapes`.

    Nothing is read before the header's keys, types and shapes are right.

    Raises:
        AdapterRefused: the file is not safetensors, or cannot be applied in full.
    """
    if SHARD.search(path.name):
        raise AdapterRefused("it is one of several shards: join them in one file")
    head = b""
    try:
        with path.open("rb") as opened:
            head = opened.read(32).lstrip()
        if has_long_header(path):
            raise AdapterRefused(f"the header is over {MAX_HEADER_BYTES} bytes")
        with safe_open(path, framework="pt") as file:
            keys = parse_keys(file.keys(), shapes)
            parts = _group(keys)
            for module, names in parts.items():
                _check_layer(file, module, names, shapes[module])
            alphas = read_header_alphas(file.metadata(), path)
            layers = {
                module: _read_layer(file, names, module, alphas) for module, names in parts.items()
            }
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        raise AdapterRefused(f"there is no file {path}") from None
    except (SafetensorError, OSError) as error:
        reason = next((text for start, text in _OTHERS.items() if head.startswith(start)), error)
        raise AdapterRefused(
            f"not a readable safetensors file (pickles are never opened): {reason}"
        ) from error
    return Adapter(layers, describe_style(keys.values()), digest)


def _group(keys: Mapping[str, AdapterKey]) -> dict[str, dict[Part, str]]:
    """Gather each module's keys by part.

    Raises:
        AdapterRefused: a module has a part twice, or lacks one.
    """
    if not keys:
        raise AdapterRefused("the file has no tensors")
    parts: dict[str, dict[Part, str]] = defaultdict(dict)
    for key, parsed in keys.items():
        if parsed.part in parts[parsed.module]:
            raise AdapterRefused(f"two keys for the same part of a layer: {key}")
        parts[parsed.module][parsed.part] = key
    for names in parts.values():
        if not {"down", "up"} <= names.keys():
            raise AdapterRefused(
                f"one half of an update is missing beside {next(iter(names.values()))}"
            )
    return parts


def _check_layer(file: Any, module: str, names: Mapping[Part, str], shape: Shape) -> None:
    found: dict[Part, list[int]] = {}
    for part, key in names.items():
        entry = file.get_slice(key)
        if entry.get_dtype() not in (_ALPHA_DTYPES if part == "alpha" else _DTYPES):
            raise AdapterRefused(
                f"the type {entry.get_dtype()} is not supported for LoRA weights (key {key})"
            )
        found[part] = entry.get_shape()
    rank = found["down"][0] if found["down"] else 0
    if not 0 < rank <= MAX_RANK:
        raise AdapterRefused(f"rank {rank} is not from 1 to {MAX_RANK} (key {names['down']})")
    wanted: dict[Part, list[int]] = {"down": [rank, shape[1]], "up": [shape[0], rank]}
    for part, sizes in wanted.items():
        if found[part] != sizes:
            raise AdapterRefused(
                f"{names[part]} is {found[part]}, but {module} needs {sizes}: made for another model"
            )
    if math.prod(found.get("alpha", [])) != 1:
        raise AdapterRefused(f"alpha must be one number (key {names['alpha']})")


def _read_layer(file: Any, names: Mapping[Part, str], module: str, alphas: HeaderAlphas) -> LowRank:
    tensors = {part: file.get_tensor(key) for part, key in names.items()}
    for part, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AdapterRefused(f"non-finite values (NaN or infinity) in {names[part]}")
    down, up = tensors["down"].clone(), tensors["up"].clone()  # not the file's mapped pages
    alpha = float(tensors["alpha"]) if "alpha" in tensors else alphas.of(module, len(down))
    return LowRank(down, up, alpha)
