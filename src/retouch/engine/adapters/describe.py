"""Say in words what a LoRA file is: for `retouch adapter`."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.read import Adapter, read_adapter
from retouch.engine.adapters.shapes import BLOCK, layer_shapes


def describe_adapter(
    path: Path,
    bases: Mapping[str, Mapping[str, Any]],
    describe_losses: Callable[[str, Adapter], Iterable[str]] = lambda _base, _adapter: (),
) -> list[str]:
    """Describe a LoRA file, a fact a line, for the first of `bases` that it fits.

    `bases` are transformer configurations by name. `describe_losses` adds what merging it would lose.

    Raises:
        AdapterRefused: the file fits none; the reason is why it does not fit the first.
    """
    reasons = []
    for name, config in bases.items():
        try:
            adapter = read_adapter(path, layer_shapes(config))
        except AdapterRefused as error:
            reasons.append(error)
        else:
            facts = _describe(adapter, name, config["num_layers"])
            return [*facts, *describe_losses(name, adapter)]
    raise reasons[0]


def _describe(adapter: Adapter, base: str, blocks: int) -> Iterator[str]:
    layers = adapter.layers.values()
    ranks = sorted({layer.rank for layer in layers})
    alphas = sorted({layer.alpha for layer in layers})
    kinds = Counter(_kind(name) for name in adapter.layers)
    changed = {name.split(".")[1] for name in adapter.layers if name.startswith(BLOCK)}
    size_bytes = 2 * sum(layer.down.numel() + layer.up.numel() for layer in layers)
    yield f"style: {adapter.style}"
    yield f"sha256: {adapter.sha256}"
    yield f"fits: {base}"
    yield f"rank: {', '.join(map(str, ranks))}"
    yield f"alpha: {', '.join(f'{alpha:g}' for alpha in alphas)}"
    yield f"layers: {len(adapter.layers)}, in {len(changed)} of {blocks} blocks"
    yield from (f"  {count} {kind}" for kind, count in sorted(kinds.items()))
    yield f"memory while not merged: {size_bytes / (1 << 20):.1f} MiB in 16 bits"


def _kind(name: str) -> str:
    """Name the group of a layer.

    >>> _kind("transformer_blocks.3.attn.to_q"), _kind("proj_out")
    ('attention', 'outside the blocks')
    """
    if not name.startswith(BLOCK):
        return "outside the blocks"
    groups = {"attn": "attention", "img_mlp": "feed-forward", "txt_mlp": "feed-forward"}
    return groups.get(name.split(".")[2], "modulation")
