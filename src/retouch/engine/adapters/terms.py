"""The low-rank terms of one edit: what its adapters add to each layer's product.

Terms of several adapters are stacked along the rank, and all blocks have the same layers and rank, so
that they run the same compiled code.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
    blocks: dict[str, dict[str, Term]] = {}
    others: dict[str, Term] = {}
    for name, shape in shapes.items():
        _, _, path = name.removeprefix(BLOCK).partition(".")
        if name.startswith(BLOCK) and path in inside:
            block = blocks.setdefault(name.removesuffix(path), {})
            block[path] = _stack(updates, name, shape, rank, weight_factor(name), like)
        elif name in named:
            own = sum(adapter[name].rank for adapter, _ in updates if name in adapter)
            others[name] = _stack(updates, name, shape, own, weight_factor(name), like)
    return Terms(key, list(blocks.values()), others)


def largest_rank(layers: Iterable[LowRank]) -> int:
    """Return the largest rank of an adapter's layers."""
    return max(layer.rank for layer in layers)


def _stack(
    updates: Updates, name: str, shape: Shape, rank: int, factor: float, like: torch.Tensor
) -> Term:
    """Stack the updates of one layer along the rank: (rank, in) and (out, rank)."""
    down, up = like.new_zeros(rank, shape[1]), like.new_zeros(shape[0], rank)
    at = 0
    for adapter, scale in updates:
        if layer := adapter.get(name):
            part = slice(at, at + layer.rank)
            at += layer.rank
            down[part], up[:, part] = _scale(layer, scale * layer.factor * factor, like)
    return down, up


def _scale(layer: LowRank, total: float, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return down and up in float32 with `total` multiplied in.

    For float16 both get values of the same size: 1/512, which some layers' weights were multiplied by,
    would push one factor alone below the format's normal numbers, or the product between over its end.
    """
    # Moved in the file's own type, which is half the bytes, and without waiting for the device.
    down, up = (part.to(like.device).float() for part in (layer.down, layer.up))
    if like.dtype != torch.float16:
        return down, up * total
    share = (abs(total) * up.abs().max() / down.abs().max()).sqrt()
    share = torch.where(share.isfinite() & (share > 0), share, 1.0)
    return down * share, up * (total / share)
