"""Read one file with all weights of a part: GGUF, or safetensors as ComfyUI and others write it.

Every weight in it is understood or the file is refused with the first that is not: never half loaded.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retouch.engine.checkpoint.entries import TensorEntry, read_safetensors, rename
from retouch.engine.checkpoint.files import require_complete_weights
from retouch.engine.checkpoint.fp8_scales import METADATA, apply_scales
from retouch.engine.checkpoint.gguf_header import MAGIC, read_gguf
from retouch.errors import ModelError

ARCHITECTURE = "qwen_image"
_UNNAMED = {"", "pig"}
"""What stable-diffusion.cpp and another converter leave as the architecture: the keys tell it."""
ZERO_CONDITION = "__index_timestep_zero__"
"""A tensor without use of its own, by which ComfyUI's files mark the model 2511 (its `zero_cond_t`)."""
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_OTHER_PARTS = ("text_encoders.", "vae.")
"""Of files with a whole pipeline, whose transformer has the first prefix."""
_UNUSED = "lm_head.weight"
"""The text encoder's output layer."""


@dataclass(frozen=True, slots=True)
class TransformerFile:
    """The weights by the model's own names; `is_2511` says that the file is marked as that model's."""

    entries: dict[str, TensorEntry]
    is_2511: bool


def read_transformer(path: Path) -> TransformerFile:
    """Return what a file has of a transformer.

    Raises:
        ModelError: names the first key that is not understood, or the file if it is damaged.
    """
    entries, metadata, architecture = _read_file(path)
    if architecture not in {None, ARCHITECTURE, *_UNNAMED}:
        raise ModelError(f"{path.name} holds the architecture {architecture}, not {ARCHITECTURE}")
    prefix = next((one for one in _PREFIXES if any(e.name.startswith(one) for e in entries)), "")
    others = _OTHER_PARTS if prefix == _PREFIXES[0] else ()
    kept = _by_name(
        (entry.name.removeprefix(prefix), entry)
        for entry in entries
        if not entry.name.startswith(others)
    )
    is_2511 = kept.pop(ZERO_CONDITION, None) is not None
    declared = {
        name.removeprefix(prefix): form
        for name, form in _declared_formats(path, metadata).items()
        if not name.startswith(others)
    }
    return TransformerFile(_require_known(apply_scales(kept, declared)), is_2511)


def read_text_encoder(path: Path) -> dict[str, TensorEntry]:
    """Return what a safetensors file has of a text encoder, by the model's own names.

    Raises:
        ModelError: names the first key that is not understood, or the file if it is damaged.
    """
    entries, metadata, architecture = _read_file(path)
    if architecture is not None:
        raise ModelError(f"{path.name} is a GGUF file, which has no vision tower")
    named = _by_name((entry.name, entry) for entry in entries)
    scaled = _require_known(apply_scales(named, _declared_formats(path, metadata)))
    return _by_name((rename(name), entry) for name, entry in scaled.items() if name != _UNUSED)


def require_used(
    stored: Mapping[str, TensorEntry], parts: Collection[str], wanted: Collection[str]
) -> None:
    """Check that the model has a place, among the paths `wanted`, for every weight of these parts.

    Raises:
        ModelError: names the first weight that has none.
    """
    for path, entry in stored.items():
        if path.partition(".")[0] in parts and path not in wanted:
            raise ModelError(f"{entry.file}: the model has no weight {entry.name}")


def describe_format(entries: Mapping[str, TensorEntry]) -> str:
    """Name the format of most bytes that memory can keep as they are: `Q4_K (file)`; empty if none."""
    sizes: Counter[str] = Counter()
    for entry in entries.values():
        if encoding := entry.kept_as(1.0):
            sizes[encoding.name] += entry.size_bytes
    return f"{sizes.most_common(1)[0][0]} (file)" if sizes else ""


def _read_file(path: Path) -> tuple[list[TensorEntry], dict[str, str], str | None]:
    """Return weights, metadata and, of a GGUF file, the architecture."""
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read") from error
    if is_gguf:
        entries, metadata = read_gguf(path)
        return entries, {}, str(metadata.get("general.architecture", ""))
    require_complete_weights(path)
    return *read_safetensors(path), None


def _by_name(named: Iterable[tuple[str, TensorEntry]]) -> dict[str, TensorEntry]:
    by_name: dict[str, TensorEntry] = {}
    for name, entry in named:
        if name in by_name:
            raise ModelError(f"{entry.file}: {name} is there twice")
        by_name[name] = entry
    return by_name


def _declared_formats(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return each layer's format as the file's metadata declares it."""
    try:
        return dict(json.loads(metadata.get(METADATA, '{"layers": {}}'))["layers"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ModelError(f"{path.name}: {METADATA} cannot be read") from None


def _require_known(entries: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    for entry in entries.values():
        if entry.encoding is None:
            raise ModelError(f"{entry.file}: {entry.name} is {entry.kind}, which is not supported")
    return entries
