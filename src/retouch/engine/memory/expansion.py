"""Expand packed weights just before they run, in one buffer for all blocks and layers."""

from typing import Any

import torch
from torch import nn

from retouch.engine.memory.flat_params import FlatParams
from retouch.engine.memory.param_view import Layout
from retouch.engine.packing.encoding import Encoding

_SHAPES = 64
"""More kernels than a model has pairs of encoding and shape."""


class ExpansionBuffer:
    """Holds the weights of one `FlatParams` at a time as they are computed with.

    Expanding is queued on the stream that computes: a block overwrites the one before it only after
    that has run, so nothing needs to be waited for, and one buffer is enough.
    """

    def __init__(self, device: torch.device, size_bytes: int) -> None:
        self._buffer = torch.empty(size_bytes, dtype=torch.uint8, device=device)
        self._views: dict[tuple[int, Layout], list[nn.Parameter]] = {}
        self._expand = _compile_expand() if device.type == "cuda" else _expand

    def bind(self, params: FlatParams, packed: torch.Tensor) -> None:
        """Expand the weights of `params` in `packed` (size_bytes,), and let the modules use them."""
        key = packed.data_ptr(), params.layout
        if (parameters := self._views.get(key)) is None:
            parameters = self._views[key] = params.view_in(packed, self._buffer)
        for view, parameter in zip(params.views, parameters, strict=True):
            if view.encoding and view.is_expanded:
                self._expand(view.encoding, view.bytes_in(packed), parameter.data)
        params.bind(parameters)


def _expand(encoding: Encoding, packed: torch.Tensor, out: torch.Tensor) -> None:
    encoding.expand(packed, out)


def _compile_expand() -> Any:  # pragma: no cover - needs a GPU
    """Compile `_expand`, to one kernel for each encoding and shape: plain, it takes six times as long."""
    from torch._dynamo import config  # takes seconds; only packed weights on a GPU need it

    config.recompile_limit = max(config.recompile_limit, _SHAPES)
    return torch.compile(_expand, dynamic=False)
