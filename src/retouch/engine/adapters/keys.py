"""Map the keys of LoRA files to module names: pure functions, no tensors.

A key is a prefix, a module name and a suffix. Trainers differ in all three: kohya and musubi write
`lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight`, peft
`base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight`. Styles as ComfyUI's
`comfy/lora.py` and diffusers' `loaders/lora_conversion_utils.py` know them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Part = Literal["down", "up", "alpha"]


class AdapterRefused(ValueError):
    """The file cannot be applied in full; the message says in one line why, and names the key."""


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """A key of a file: the module it changes, which part of the update it holds, and its style."""

    module: str
    part: Part
    style: str


_SUFFIXES: tuple[tuple[re.Pattern[str], Part, str], ...] = (
    (re.compile(r"\.lora_down\.weight\Z"), "down", "lora_down"),
    (re.compile(r"\.lora_up\.weight\Z"), "up", "lora_down"),
    (re.compile(r"\.lora_A\.weight\Z"), "down", "lora_A"),
    (re.compile(r"\.lora_B\.weight\Z"), "up", "lora_A"),
    (re.compile(r"\.lora_A\.[a-zA-Z0-9_-]+\.weight\Z"), "down", "lora_A.NAME"),
    (re.compile(r"\.lora_B\.[a-zA-Z0-9_-]+\.weight\Z"), "up", "lora_A.NAME"),
    (re.compile(r"\.lora\.down\.weight\Z"), "down", "lora.down"),
    (re.compile(r"\.lora\.up\.weight\Z"), "up", "lora.down"),
    (re.compile(r"\.alpha\Z"), "alpha", ""),
)
_DOTTED_PREFIXES = (
    "base_model.model.transformer.",
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "",
)
_JOINED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
_REFUSED_KINDS = (
    (re.compile(r"dora_scale|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.oft_|\.boft_"), "OFT"),
    (re.compile(r"\.(diff|diff_b|set_weight)\Z"), "full weight or bias differences"),
    (re.compile(r"lora_B(\.[a-zA-Z0-9_-]+)?\.bias\Z|lora_up\.bias\Z"), "LoRA with biases"),
    (re.compile(r"\.lora_mid\."), "LoCon with a middle factor"),
)


def parse_keys(keys: Iterable[str], modules: Iterable[str]) -> Mapping[str, AdapterKey]:
    """Map each key of a file to the module of the transformer that it changes.

    `modules` are the names of the transformer's linear layers.

    Raises:
        AdapterRefused: a key belongs to another kind of adapter, or to no module.

    >>> parse_keys(["lora_unet_img_in.alpha"], ["img_in"])["lora_unet_img_in.alpha"].module
    'img_in'
    """
    names = frozenset(modules)
    joined = {name.replace(".", "_"): name for name in names}
    listed = sorted(keys)
    for key in listed:
        for pattern, kind in _REFUSED_KINDS:
            if pattern.search(key):
                raise AdapterRefused(f"{kind} is not supported (key {key})")
    return {key: _parse_key(key, names, joined) for key in listed}


def describe_style(keys: Iterable[AdapterKey]) -> str:
    """Name the styles of a file's keys, such as `lora_unet_X.lora_down`."""
    return ", ".join(sorted({key.style for key in keys if key.part != "alpha"}))


def _parse_key(key: str, names: frozenset[str], joined: Mapping[str, str]) -> AdapterKey:
    for pattern, part, suffix in _SUFFIXES:
        if found := pattern.search(key):
            module, prefix = _find_module(key[: found.start()], names, joined)
            if not module:
                raise AdapterRefused(f"the model has no layer for the key {key}")
            return AdapterKey(module, part, f"{prefix}X.{suffix}")
    raise AdapterRefused(f"not a LoRA key: {key}")


def _find_module(stem: str, names: frozenset[str], joined: Mapping[str, str]) -> tuple[str, str]:
    """Return the module that a key's stem names, and the prefix before it; or two empty texts."""
    for prefix in _DOTTED_PREFIXES:
        if stem.startswith(prefix) and stem.removeprefix(prefix) in names:
            return stem.removeprefix(prefix), prefix
    for prefix in _JOINED_PREFIXES:
        if stem.startswith(prefix) and stem.removeprefix(prefix) in joined:
            return joined[stem.removeprefix(prefix)], prefix
    return "", ""
