"""The alpha that a LoRA file gives in its header, for layers without a key for it.

diffusers and SimpleTuner keep peft's configuration there (diffusers' `loaders/lora_base.py`), others
the number by itself; peft writes a file beside its own. Loaded without it, a file is too strong or weak.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.source import PEFT_CONFIG, PEFT_FILE

_CONFIG = "lora_adapter_metadata"
_NAMES = ("lora_alpha", "network_alpha", "alpha")
_MODULE = re.compile(r"\^?[\w.]+")
"""A name in `alpha_pattern`, or its end. diffusers writes `^` before a full one."""
_CHANGING = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Values of peft's `init_lora_weights` that change the model's own weights before the training."""


@dataclass(frozen=True, slots=True)
class HeaderAlphas:
    """`default` is None where the header gives none; `by_module` has the ends of modules' names."""

    default: float | None
    by_module: Mapping[str, float]
    is_rank_stabilized: bool

    def of(self, module: str, rank: int) -> float:
        """Return the alpha of a layer: its rank where the header gives none.

        By peft's `use_rslora` the update is scaled by alpha / sqrt(rank), not alpha / rank
        (https://arxiv.org/abs/2312.03732).
        """
        parts = module.split(".")
        ends = (".".join(parts[at:]) for at in range(len(parts)))
        alpha = next((self.by_module[end] for end in ends if end in self.by_module), self.default)
        if alpha is None:
            return float(rank)
        return alpha * math.sqrt(rank) if self.is_rank_stabilized else alpha


def read_header_alphas(metadata: Mapping[str, str] | None, path: Path) -> HeaderAlphas:
    """Return what the metadata of a safetensors file at `path`, or peft's file beside it, says.

    Raises:
        AdapterRefused: it is damaged, names layers by a pattern, or was trained on changed weights.
        OSError: peft's file cannot be read.

    >>> given = read_header_alphas({"lora_adapter_metadata": '{"transformer.lora_alpha": 4}'}, Path())
    >>> given.of("img_in", 16), read_header_alphas(None, Path()).of("img_in", 16)
    (4.0, 16.0)
    """
    given: dict[str, object] = {**(metadata or {})}
    if path.name == PEFT_FILE and (beside := path.with_name(PEFT_CONFIG)).is_file():
        given[_CONFIG] = beside.read_text(errors="replace")
    try:
        given |= json.loads(str(given.pop(_CONFIG, "{}")))
        config = {name.removeprefix("transformer."): value for name, value in given.items()}
        default = next((_read(config[key]) for key in _NAMES if config.get(key) is not None), None)
        by_module = {name: _read(one) for name, one in _read_patterns(config).items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise AdapterRefused("the alpha in the file's metadata cannot be read") from error
    if str(init := config.get("init_lora_weights")).lower().startswith(_CHANGING):
        raise AdapterRefused(f"trained on weights that {init} changed: convert it to a plain LoRA")
    return HeaderAlphas(default, by_module, config.get("use_rslora") is True)


def _read_patterns(config: Mapping[str, object]) -> dict[str, object]:
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(_MODULE.fullmatch, patterns)):
        raise ValueError("not names of layers")
    return {name.removeprefix("^"): alpha for name, alpha in patterns.items()}


def _read(alpha: object) -> float:
    number = float(alpha) if isinstance(alpha, str | int | float) else math.nan
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number
