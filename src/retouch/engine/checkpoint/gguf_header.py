"""Read the header of a GGUF file, versions 2 and 3 (ggml-org/ggml: docs/gguf.md)."""

import mmap
import struct
from math import prod
from pathlib import Path
from typing import Any

from retouch.engine.checkpoint.entries import TensorEntry
from retouch.engine.packing.gguf import TYPES
from retouch.errors import ModelError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_ALIGNMENT = 32
_MAX_ENTRIES = 1 << 14
"""Weights and metadata: the largest files of this family have 2,000."""
_MAX_TEXTS = 1 << 18
"""In arrays of the metadata: a tokenizer has 150,000 words."""
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_NAMES = {0: "F32", 1: "F16", 30: "BF16"}


def read_gguf(path: Path) -> tuple[list[TensorEntry], dict[str, Any]]:
    """Return the weights in a GGUF file, and its metadata without the arrays.

    Raises:
        ModelError: it is damaged or truncated; names the weight where there is one.
    """
    file = f"{path.parent.name}/{path.name}"
    try:
        with (
            path.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _read(path, _Cursor(data))
    except (struct.error, ValueError, OverflowError, _Damaged) as error:
        raise ModelError(f"{file} is damaged or truncated: {error}") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read") from error


class _Damaged(Exception):
    """What is wrong with the file."""


class _Cursor:
    """Reads a header's values one after the other."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, len(MAGIC)
        self._texts_left = _MAX_TEXTS

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def text(self) -> str:
        end = self.number("Q") + self.at
        if end > len(self.data):
            raise _Damaged("the header ends too early")
        self.at, start = end, self.at
        return self.data[start:end].decode()

    def value(self, kind: int) -> Any:
        """Read a metadata value; of an array only its end is found."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _Damaged(f"it has a metadata value of type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if inner in _NUMBERS:
            self.at += count * struct.calcsize("<" + _NUMBERS[inner])
        elif inner == _STRING:
            self._texts_left -= count
            if self._texts_left < 0:
                raise _Damaged(f"its arrays have over {_MAX_TEXTS} texts")
            for _ in range(count):
                self.text()
        else:
            raise _Damaged(f"it has an array of type {inner}")
        return None


def _read(path: Path, cursor: _Cursor) -> tuple[list[TensorEntry], dict[str, Any]]:
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise _Damaged(f"GGUF version {version} is not known")
    weights, values = cursor.number("Q"), cursor.number("Q")
    if weights + values > _MAX_ENTRIES:
        raise _Damaged(f"it has {weights} weights and {values} metadata values")
    metadata = {}
    for _ in range(values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    infos = [_read_info(cursor) for _ in range(weights)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise _Damaged(f"the alignment is {alignment}")
    start = -(-cursor.at // alignment) * alignment
    entries = []
    for name, shape, number, offset in infos:
        encoding = TYPES.get(number)
        kind = _NAMES.get(number) or (encoding.name if encoding else f"GGUF type {number}")
        try:
            size_bytes = encoding.size_bytes(shape) if encoding else 0
        except ValueError as error:
            raise _Damaged(f"{name}: {error}") from error
        if start + offset + size_bytes > len(cursor.data):
            raise _Damaged(f"{name} ends after the file does")
        entries.append(TensorEntry(path, name, start + offset, size_bytes, shape, kind, encoding))
    return entries, metadata


def _read_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Read name, shape, type and offset of a weight. The file has the last dimension first."""
    name, dimensions = cursor.text(), cursor.number("I")
    if dimensions > _MAX_DIMENSIONS:
        raise _Damaged(f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    number, offset = cursor.number("I"), cursor.number("Q")
    if prod(shape) > len(cursor.data) * 8:
        raise _Damaged(f"{name} is larger than the file")
    return name, shape, number, offset
