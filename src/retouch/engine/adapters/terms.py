"""The low-rank terms of one edit: what its adapters add to each layer's product.

Terms of several adapters are stacked along the rank, and all blocks have the same layers and rank, so
that they run the same compiled code.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from retouch.engine.adapters.read import LowRank, Shape
from retouch.engine.adapters.shapes import BLOCK
from retouch.engine.linear import Term
from retouch.engine.memory.flat_params import MODULATION

RANKS = (16, 32, 64, 128, 256, 512)
"""Ranks that blocks are compiled for; others are padded with zeros to the next."""
Updates = Sequence[tuple[Mapping[str, LowRank], float]]
"""The layers of adapters, each adapter with its scale."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms by layer: those of each block by the layer's name in it, and all others by full name.

    `key` is equal for equal terms. Without adapters all are empty.
    """

    key: tuple[object, ...] = ()
    blocks: Sequence[dict[str, Term]] = ()
    others: Mapping[str, Term] = field(default_factory=dict)

    def of_block(self, index: int) -> dict[str, Term]:
        """Return the terms of a block by the layer's name in it."""
        return self.blocks[index] if self.blocks else _NONE


NO_TERMS = Terms()
_NONE: dict[str, Term] = {}
_COPIED_BYTES = 1 << 25
"""Of float32, made into terms at once: more would need fewer launches and more memory."""


def pad_rank(rank: int) -> int:
    """Return the least of `RANKS` that is not below `rank`.

    >>> pad_rank(65), pad_rank(16)
    (128, 16)
    """
    return next(padded for padded in RANKS if rank <= padded)


def block_layers(names: Iterable[str]) -> list[str]:
    """Return the names within a block of the layers whose terms the blocks need, sorted.

    >>> block_layers(["transformer_blocks.7.attn.to_q", "transformer_blocks.0.img_mod.1", "img_in"])
    ['attn.to_q']
    """
    return sorted(
        {
            name.split(".", 2)[2]
            for name in names
            if name.startswith(BLOCK) and not is_modulation(name)
        }
    )


def is_modulation(layer: str) -> bool:
    """Whether a layer is of a block's modulation.

    >>> is_modulation("transformer_blocks.7.img_mod.1"), is_modulation("norm_out.linear")
    (True, False)
    """
    return layer.startswith(BLOCK) and layer.split(".")[2] in MODULATION


def count_bytes(shapes: Mapping[str, Shape], layers: Sequence[str], rank: int) -> int:
    """Count the bytes of the terms of these layers in all blocks, in 16 bits."""
    wanted = frozenset(layers)
    sizes = (
        sum(shape)
        for name, shape in shapes.items()
        if name.startswith(BLOCK) and name.split(".", 2)[2] in wanted
    )
    return 2 * pad_rank(rank) * sum(sizes) if layers else 0


def build_terms(
    updates: Updates,
    shapes: Mapping[str, Shape],
    layers: Sequence[str],
    *,
    weight_factor: Callable[[str], float],
    like: torch.Tensor,
    key: tuple[object, ...],
) -> Terms:
    """Build the terms of `updates` on the device and in the dtype of `like`.

    Where an adapter changes a block, in every block these `layers` get a term, of zeros where no
    adapter changes them. `weight_factor` is what the weight of a layer was multiplied by when it was read.
    """
    named = {name for adapter, _ in updates for name in adapter}
    rank = pad_rank(sum(largest_rank(adapter.values()) for adapter, _ in updates))
    inside = frozenset(layers) if block_layers(named) else frozenset()
    paths: dict[str, list[str]] = defaultdict(list)
    others: dict[str, Term] = {}
    for name, shape in shapes.items():
        _, _, path = name.removeprefix(BLOCK).partition(".")
        if name.startswith(BLOCK) and path in inside:
            paths[path].append(name)
        elif name in named:
            own = sum(adapter[name].rank for adapter, _ in updates if name in adapter)
            (others[name],) = _stack(updates, [name], shape, own, weight_factor, like)
    blocks: list[dict[str, Term]] = [{} for _ in next(iter(paths.values()), [])]
    for path, names in paths.items():
        shape = shapes[names[0]]
        count = max(1, _COPIED_BYTES // (4 * rank * sum(shape)))
        for at in range(0, len(names), count):
            terms = _stack(updates, names[at : at + count], shape, rank, weight_factor, like)
            for block, term in zip(blocks[at:], terms, strict=False):
                block[path] = term
    return Terms(key, blocks, others)


def largest_rank(layers: Iterable[LowRank]) -> int:
    """Return the largest rank of an adapter's layers."""
    return max(layer.rank for layer in layers)


def _stack(
    updates: Updates,
    names: Sequence[str],
    shape: Shape,
    rank: int,
    weight_factor: Callable[[str], float],
    like: torch.Tensor,
) -> list[Term]:
    """Stack the updates of each of the layers along the rank: (rank, in) and (out, rank)."""
    # (layer, rank, in) and (layer, out, rank)
    down = like.new_zeros(len(names), rank, shape[1])
    up = like.new_zeros(len(names), shape[0], rank)
    begin = 0
    for adapter, scale in updates:
        ranks = [adapter[name].rank if name in adapter else 0 for name in names]
        for own, run in groupby(range(len(names)), ranks.__getitem__):
            if own:
                equal = list(run)
                which, end = slice(equal[0], equal[-1] + 1), begin + own
                changed = [adapter[name] for name in names[which]]
                totals = [
                    scale * layer.factor * weight_factor(name)
                    for layer, name in zip(changed, names[which], strict=True)
                ]
                down[which, begin:end], up[which, :, begin:end] = _scale(changed, totals, like)
        begin += max(ranks)
    return list(zip(down, up, strict=True))


def _scale(
    layers: Sequence[LowRank], totals: Sequence[float], like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return down (layer, rank, in) and up (layer, out, rank) in float32, each layer's total multiplied in.

    For float16 both get values of the same size: 1/512, which some layers' weights were multiplied by,
    would push one factor alone below the format's normal numbers, or the product between over its end.
    """
    down = _copy([layer.down for layer in layers], like.device)
    up = _copy([layer.up for layer in layers], like.device)
    total = torch.tensor(totals, dtype=torch.float32, device=like.device)[:, None, None]
    if like.dtype != torch.float16:
        return down, up * total
    up_max, down_max = (part.abs().amax((1, 2), keepdim=True) for part in (up, down))
    share = (total.abs() * up_max / down_max).sqrt()
    share = torch.where(share.isfinite() & (share > 0), share, 1.0)
    return down * share, up * (total / share)


def _copy(parts: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Stack tensors of one shape on the device, in float32.

    They are moved in the file's own type, which is half the bytes, and without waiting for the device.
    The CPU does not gather them: its threads would wait for each other at each of hundreds of calls.
    """
    return torch.stack([part.to(device, non_blocking=True) for part in parts]).float()
