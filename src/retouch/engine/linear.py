"""Every product of the transformer with a weight: the one place that reads a layer's weights.

An adapter's term costs passes over memory and hardly any arithmetic (tests/bench/lowrank.py).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.nn import functional

from retouch.engine.fp8 import multiply_fp8, quantize
from retouch.engine.packing.rows import FP8

Term = tuple[torch.Tensor, torch.Tensor]
"""What adapters add to a layer's product: `down` (rank, in), then `up` (out, rank)."""


class Operands(NamedTuple):
    """What a product is made of: `rows` (token, in), and the layer's `weight` (out, in) and `bias` (out,).

    With adapters also `low` (token, rank), the rows times the term's `down`, and its `up` (out, rank).
    In fp8 also `row_scales` (token, 1) and `weight_scales` (out,).
    """

    rows: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    low: torch.Tensor | None = None
    up: torch.Tensor | None = None
    row_scales: torch.Tensor | None = None
    weight_scales: torch.Tensor | None = None


def linear(
    layer: Any, stream: torch.Tensor, term: Term | None = None, *, gelu: bool = False
) -> torch.Tensor:
    """Apply a linear layer, its low-rank term and the model's GELU: (1, token, in) -> (1, token, out).

    Every product of the transformer is made here or in `linear_joined`.
    """
    if term is not None or is_fp8(layer):
        product = _multiply(*gather_operands(stream, [layer], [term]))
        return functional.gelu(product, approximate="tanh") if gelu else product
    weight, bias = layer.weight, layer.bias
    if gelu and stream.is_cuda:  # pragma: no cover - needs a GPU
        # Fused into the product. On a CPU this operator has the exact GELU, not the model's.
        fused: torch.Tensor = torch._addmm_activation(bias, stream[0], weight.t(), use_gelu=True)  # noqa: SLF001 - it has no public name
        return fused[None]
    product = functional.linear(stream, weight, bias)
    return functional.gelu(product, approximate="tanh") if gelu else product


def is_fp8(layer: Any) -> bool:
    """Whether a layer's weight is an operand of fp8 products, with `scales` beside it."""
    return bool(layer.weight.dtype == FP8.dtype)


def linear_joined(text: Operands, image: Operands) -> torch.Tensor:
    """Make the product of each of two streams, into one (1, text token + image token, out)."""
    return _multiply(text, image)


def gather_operands(
    stream: torch.Tensor, layers: Sequence[Any], terms: Sequence[Term | None]
) -> list[Operands]:
    """Gather the operands of layers that read one stream (1, token, in), each with its term or None.

    One product applies the `down` of all terms, so that the stream is read once. For fp8 layers the
    stream is quantised once.
    """
    rows, lows, ups = stream[0], {}, {}
    present = [(at, term) for at, term in enumerate(terms) if term is not None]
    if present:
        downs = [down for _, (down, _) in present]
        parts = torch.split(rows @ torch.cat(downs).t(), [len(down) for down in downs], dim=1)
        for (at, (_, up)), low in zip(present, parts, strict=True):
            lows[at], ups[at] = low, up
    values, scales = quantize(rows) if any(map(is_fp8, layers)) else (None, None)
    # Each is made at once: the compiler of torch 2.11 does not follow a named tuple's `_replace`.
    return [
        Operands(values, layer.weight, layer.bias, lows.get(at), ups.get(at), scales, layer.scales)
        if values is not None and is_fp8(layer)
        else Operands(rows, layer.weight, layer.bias, lows.get(at), ups.get(at))
        for at, layer in enumerate(layers)
    ]


def multiply_operands(
    first: Sequence[torch.Tensor | None], second: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """Return the products of two `Operands`, the `second` of which may be empty: (token, out).

    Each product is written to its place, which the compiler has no way to do: `torch.cat` would copy
    both, which for queries, keys and values takes a thirtieth of a block's time.
    """
    product = _allocate(first, second)
    at = 0
    for operands in filter(None, (first, second)):
        rows, weight, bias, low, up, row_scales, weight_scales = Operands(*cast("Any", operands))
        part = product[at : at + len(rows)]
        at += len(rows)
        if row_scales is not None and weight_scales is not None:
            multiply_fp8(rows, row_scales, weight, weight_scales, bias, part)
            if low is not None and up is not None:
                part.addmm_(low, up.t())
        elif low is None or up is None:
            torch.addmm(bias, rows, weight.t(), out=part)
        elif rows.shape[1] > len(weight):  # the faster order for narrowing layers
            torch.addmm(bias, rows, weight.t(), out=part)
            part.addmm_(low, up.t())
        else:
            # The term first: the product is added to it while it is made, without another pass.
            torch.addmm(bias, low, up.t(), out=part)
            part.addmm_(rows, weight.t())
    return product


def _allocate(
    first: Sequence[torch.Tensor | None], second: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    _, weight, bias, *_ = Operands(*cast("Any", first))
    # Not by `len`, which is a plain number: the compiler would make code for each number of tokens.
    count = sum(operands[0].shape[0] for operands in cast("Any", (first, second)) if operands)
    return bias.new_empty(count, weight.shape[0])


# Not by `custom_op`, whose wrappers take as long as the launch of several kernels.
_library: Any = torch.library.Library("retouch", "DEF")  # type: ignore[no-untyped-call]
_library.define("multiply(Tensor?[] first, Tensor?[] second) -> Tensor")
_library.impl("multiply", multiply_operands, "CompositeExplicitAutograd")
torch.library.register_fake("retouch::multiply", _allocate)


def _multiply(first: Operands, second: Operands | tuple[()] = ()) -> torch.Tensor:
    # Only the compiler needs an operator; a call of one would import the compiler, which takes seconds.
    compiling = torch.compiler.is_compiling()
    multiply: Any = torch.ops.retouch.multiply.default if compiling else multiply_operands
    # As plain tuples: what the compiler traced is not cached with named ones in it.
    product: torch.Tensor = multiply(tuple(first), tuple(second))
    return product[None]
