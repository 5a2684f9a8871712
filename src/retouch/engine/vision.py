"""Run Qwen2.5-VL's vision tower with all windows of one length in one attention call.

transformers' SDPA path calls attention once a window, 2,540 times for an image of 1 MP, and works out
the windows in every layer. Here there are three calls a layer at most, over an index built once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

_NAME = "retouch_flash_windows"
"""To a kernel with "flash" in its name transformers hands all windows at once, with their bounds."""

Windows = tuple[torch.Tensor, ...]
"""Patch indices (window, length), one tensor for each length."""


@dataclass(frozen=True, slots=True)
class VisionInputs:
    """Inputs of the vision tower for all images of an edit, on the host.

    `patches` is (patch, value), `grids` (image, 3): frames, rows and columns of patches, `positions`
    (patch, 2): row and column. `order` (patch / 4,) sorts the 2 x 2 merged patches by window;
    `windows` and `images` index the sorted patches that attend to each other.
    """

    patches: torch.Tensor
    grids: torch.Tensor
    positions: torch.Tensor
    order: torch.Tensor
    windows: Windows
    images: Windows


def prepare_vision(patches: torch.Tensor, grids: torch.Tensor, config: Any) -> VisionInputs:
    """Compute positions and windows of `patches` (patch, value) of images with these `grids`."""
    order, bounds = get_vision_window_index(
        grids,
        spatial_merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        patch_size=config.patch_size,
    )
    return VisionInputs(
        patches,
        grids,
        positions=get_vision_position_ids(grids, config.spatial_merge_size),
        order=order,
        windows=group_by_length(bounds.diff().tolist()),
        images=group_by_length(grids.prod(-1).tolist()),
    )


def group_by_length(lengths: Sequence[int]) -> Windows:
    """Index consecutive stretches of these lengths, those of one length together.

    >>> group_by_length([2, 1, 2])
    (tensor([[0, 1],
            [3, 4]]), tensor([[2]]))
    """
    starts: dict[int, list[int]] = {}
    begin = 0
    for length in lengths:
        starts.setdefault(length, []).append(begin)
        begin += length
    return tuple(
        torch.tensor(begins)[:, None] + torch.arange(length)  # (window, 1) + (length,)
        for length, begins in starts.items()
    )


def encode_vision(tower: Any, inputs: VisionInputs, device: torch.device) -> torch.Tensor:
    """Return the image tokens of all images, in order: (patch / 4, dim)."""
    windows, images = (
        tuple(index.to(device) for index in groups) for groups in (inputs.windows, inputs.images)
    )
    config, usual = tower.config, tower.config._attn_implementation  # noqa: SLF001 - the documented switch
    try:
        config._attn_implementation = _NAME  # noqa: SLF001 - as above
        encoded: torch.Tensor = tower(
            inputs.patches.to(device, tower.dtype),
            grid_thw=inputs.grids,
            position_ids=inputs.positions.to(device),
            window_index=inputs.order.to(device),
            cu_window_seqlens=windows,  # handed to `_attend` as they are
            cu_seqlens=images,
            max_window_seqlen=0,  # not used, but else it would be computed from the above
            max_seqlen=0,
        ).pooler_output
    finally:
        config._attn_implementation = usual  # noqa: SLF001 - as above
    return encoded


def _attend(
    _module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: None = None,
    *,
    scaling: float,
    cu_seq_lens_q: Windows,
    **_options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within windows: three (1, h, patch, c) -> (1, patch, h, c)."""
    attended = query.new_empty(query.shape[2], query.shape[1], query.shape[3])
    for index in cu_seq_lens_q:
        # (1, h, patch, c) -> (h, window, length, c) -> (window, h, length, c)
        q, k, v = (tensor[0][:, index].transpose(0, 1) for tensor in (query, key, value))
        found = functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        attended[index] = found.transpose(1, 2)  # (window, h, length, c) -> (window, length, h, c)
    return attended[None], None


AttentionInterface.register(_NAME, _attend)
