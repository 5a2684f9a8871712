"""What a checkpoint's files hold: each weight with its place in a file and its encoding."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path

import torch

from retouch.engine.checkpoint.files import WEIGHTED, list_weights
from retouch.engine.packing.encoding import Encoding, Plain
from retouch.engine.packing.gguf import GgufBlocks
from retouch.engine.packing.rows import FP8, RowScaled
from retouch.errors import ModelError

PLAIN: dict[str, Encoding] = {
    "F64": Plain(torch.float64),
    "F32": Plain(torch.float32),
    "F16": Plain(torch.float16),
    "BF16": Plain(torch.bfloat16),
}
"""Encodings of weights that are not packed, by safetensors' names."""
_FP8_VALUES = Plain(torch.float8_e4m3fn)
_OLD_NAMES = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
"""Qwen2.5-VL's checkpoints keep the names of transformers before 4.52 (see its conversion_mapping.py)."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A weight in a file, there called `name`; `kind` is the file format's name of its type.

    `encoding` is None where the type is not known. `scales` (1,) or (row,), float32, multiply the
    values of the encoding.
    """

    path: Path
    name: str
    offset: int
    size_bytes: int
    shape: tuple[int, ...]
    kind: str
    encoding: Encoding | None
    scales: torch.Tensor | None = None

    @property
    def file(self) -> str:
        """The file's name with its directory's, for messages."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype in which the weight is stored, or None if it is packed.

        Raises:
            ModelError: not a type of this family's weights.
        """
        if self.encoding is None:
            raise ModelError(f"{self.file}: {self.name} is {self.kind}, not in 16 or 32 bits")
        return self.encoding.dtype if self.encoding in PLAIN.values() else None  # type: ignore[attr-defined]

    @property
    def unit_values(self) -> int:
        """Values that are decoded together: one, or a row where the weight is packed."""
        return 1 if self.dtype else prod(self.shape[1:] if len(self.shape) > 1 else self.shape)

    @property
    def unit_bytes(self) -> int:
        """Bytes of so many values."""
        return self.size_bytes * self.unit_values // max(1, prod(self.shape))

    def decode(
        self, stored: torch.Tensor, dtype: torch.dtype, *, unit: int, factor: float
    ) -> torch.Tensor:
        """Return the values of whole units from the number `unit` on, times `factor`: (value,).

        `stored` (byte,) are their bytes, which are overwritten. A weight that is not packed is
        multiplied as it is stored: the factor is a power of two.

        Raises:
            ModelError: a packed weight is NaN or infinite, as from damaged scales.
        """
        if self.dtype:
            return stored.view(self.dtype).mul_(factor).to(dtype)
        count = len(stored) // self.unit_bytes
        values = torch.empty(count, self.unit_values, dtype=torch.float32, device=stored.device)
        self.encoding.expand(stored, values, factor)  # type: ignore[union-attr]
        if self.scales is not None:
            scales = self.scales if len(self.scales) == 1 else self.scales[unit : unit + count]
            values *= scales.to(values.device)[:, None]
        if not bool(values.isfinite().all()):
            raise ModelError(f"{self.file} is damaged: {self.name} has values that are not finite")
        return values.view(-1).to(dtype)

    def kept_as(self, factor: float) -> Encoding | None:
        """Return the encoding in which memory can hold the weight's bytes, times `factor`, or None."""
        if isinstance(self.encoding, GgufBlocks):
            return replace(self.encoding, factor=factor)
        return FP8 if self.encoding == _FP8_VALUES else None

    def is_kept_in(self, encoding: Encoding) -> bool:
        """Whether memory in this encoding holds the weight's bytes as they are in the file."""
        kept = self.kept_as(encoding.factor if isinstance(encoding, GgufBlocks) else 1.0)
        return kept is not None and kept == encoding

    def prepare(self, storage: torch.Tensor, factor: float) -> torch.Tensor:
        """Return the part of `storage` (size_bytes,) that takes the file's bytes as they are.

        An fp8 weight's scales are written before them, times `factor`; GGUF blocks have theirs inside,
        and the factor in their encoding.
        """
        if self.encoding != _FP8_VALUES:
            return storage
        values, scales = FP8.split(storage, self.shape)
        scales.copy_((torch.ones(1) if self.scales is None else self.scales) * factor)
        return values.view(-1).view(torch.uint8)

    def require_plain_finite(self, stored: torch.Tensor) -> None:
        """Check values as they are in the file, on the host. Of packed ones `decode` checks.

        Raises:
            ModelError: a value is NaN or infinite.
        """
        # `aminmax` gives NaN where there is one, 20 times as fast as `isfinite`.
        if self.dtype and not all(map(isfinite, map(float, stored.view(self.dtype).aminmax()))):
            raise ModelError(f"{self.file} is damaged: {self.name} has values that are not finite")

    def require_finite(self, stored: torch.Tensor) -> None:
        """Check the bytes of whole units, where memory keeps them as they are.

        Raises:
            ModelError: a value is NaN or infinite.
        """
        kept = self.kept_as(1.0)
        if isinstance(kept, GgufBlocks | RowScaled) and not kept.is_finite(stored):
            raise ModelError(f"{self.file} is damaged: {self.name} has values that are not finite")


def read_headers(folder: Path, parts: Iterable[str] = WEIGHTED) -> dict[str, TensorEntry]:
    """Return every weight in a checkpoint's files by its path, such as `vae.encoder.conv_in.weight`.

    Raises:
        ModelError: a file is missing or damaged.
    """
    return {
        f"{part}.{name}": stored
        for part in parts
        for name, stored in read_part(folder / part).items()
    }


def read_part(folder: Path) -> dict[str, TensorEntry]:
    """Return every weight in the files of one part by its current name.

    Raises:
        ModelError: a file is missing or damaged.
    """
    return {
        rename(entry.name): entry
        for path in list_weights(folder)
        for entry in read_safetensors(path)[0]
    }


def read_safetensors(path: Path) -> tuple[list[TensorEntry], dict[str, str]]:
    """Return the weights in one file, and its metadata. The header is that of a complete file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    entries = []
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind, shape = entry["dtype"], tuple(entry["shape"])
        entries.append(
            TensorEntry(path, name, 8 + length + begin, end - begin, shape, kind, PLAIN.get(kind))
        )
    return entries, metadata


def rename(name: str) -> str:
    """Return the current name of a weight of the text encoder; other names stay.

    >>> rename("model.norm.weight"), rename("visual.merger.ln_q.weight")
    ('model.language_model.norm.weight', 'model.visual.merger.ln_q.weight')
    """
    for pattern, replacement in _OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name
