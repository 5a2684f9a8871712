"""Every product of the transformer with a weight: the one place that reads a layer's weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

Term = tuple[torch.Tensor, torch.Tensor]
"""What adapters add to a layer's product: `down` (rank, in), then `up` (out, rank)."""


def linear(
    layer: Any, stream: torch.Tensor, term: Term | None = None, *, gelu: bool = False
) -> torch.Tensor:
    """Apply a linear layer, its low-rank term and the model's GELU: (1, token, in) -> (1, token, out).

    Every product of the transformer is made here or in `linear_joined`.
    """
    weight, bias = weights_of(layer)
    if term is None and gelu and stream.is_cuda:  # pragma: no cover - needs a GPU
        # Fused into the product. On a CPU this operator has the exact GELU, not the model's.
        fused: torch.Tensor = torch._addmm_activation(bias, stream[0], weight.t(), use_gelu=True)  # noqa: SLF001 - it has no public name
        return fused[None]
    if term is None:
        product = functional.linear(stream, weight, bias)
    else:
        project: Any = _low_rank_linear if torch.compiler.is_compiling() else low_rank_linear
        product = project(stream[0], weight, bias, *term)[None]
    return functional.gelu(product, approximate="tanh") if gelu else product


def linear_joined(
    layers: Sequence[Any],
    streams: Sequence[torch.Tensor],
    terms: Sequence[Term | None] = (None, None),
) -> torch.Tensor:
    """Apply each of two layers to its stream, (1, t, in) and (1, i, in), into one (1, t + i, out)."""
    (text_layer, image_layer), (text, image) = layers, streams
    text_term, image_term = (term or (None, None) for term in terms)
    # Only the compiler needs an operator; a call of one would import the compiler, which takes seconds.
    project: Any = _project_joined if torch.compiler.is_compiling() else project_joined
    joined: torch.Tensor = project(
        text, image, *weights_of(text_layer), *weights_of(image_layer), *text_term, *image_term
    )
    return joined


def weights_of(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weight (out, in) and bias (out,) of a linear layer as they are multiplied."""
    return layer.weight, layer.bias


def low_rank_linear(
    stream: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
) -> torch.Tensor:
    """Apply a linear layer and its low-rank term: (token, in) -> (token, out).

    The term is added where the product lies; the compiler would copy the product first.
    """
    product = torch.addmm(bias, stream, weight.t())
    _add_term(product, stream, down, up)
    return product


def project_joined(  # noqa: PLR0913, PLR0917 - an operator takes tensors, not tuples
    text: torch.Tensor,
    image: torch.Tensor,
    text_weight: torch.Tensor,
    text_bias: torch.Tensor,
    image_weight: torch.Tensor,
    image_bias: torch.Tensor,
    text_down: torch.Tensor | None,
    text_up: torch.Tensor | None,
    image_down: torch.Tensor | None,
    image_up: torch.Tensor | None,
) -> torch.Tensor:
    """Apply a linear layer to each stream, (1, t, dim) and (1, i, dim), into one (1, t + i, dim).

    Each product is written to its place, which the compiler has no way to do: `torch.cat` would copy
    both, which for queries, keys and values takes a thirtieth of a block's time.
    """
    count = text.shape[1]
    joined = text.new_empty(1, count + image.shape[1], len(text_bias))
    torch.addmm(text_bias, text[0], text_weight.t(), out=joined[0, :count])
    torch.addmm(image_bias, image[0], image_weight.t(), out=joined[0, count:])
    _add_term(joined[0, :count], text[0], text_down, text_up)
    _add_term(joined[0, count:], image[0], image_down, image_up)
    return joined


def _add_term(
    product: torch.Tensor,
    stream: torch.Tensor,
    down: torch.Tensor | None,
    up: torch.Tensor | None,
) -> None:
    """Add a low-rank term to a product in place: (token, in) -> (token, rank) -> (token, out)."""
    if down is not None and up is not None:
        product.addmm_(stream @ down.t(), up.t())


_low_rank_linear: Any = torch.library.custom_op(
    "retouch::low_rank_linear", low_rank_linear, mutates_args=()
)
_project_joined: Any = torch.library.custom_op(
    "retouch::project_joined", project_joined, mutates_args=()
)


_low_rank_linear.register_fake(
    lambda stream, _weight, bias, *_: stream.new_empty(len(stream), len(bias))
)
_project_joined.register_fake(
    lambda text, image, _weight, bias, *_: text.new_empty(
        1, text.shape[1] + image.shape[1], len(bias)
    )
)
