"""Compile the block's code into the cache, in a process of its own: `python -m retouch.engine.fill_code_cache`.

Reads a `BlockCode` as JSON. The model has two blocks, as the last has code of its own, and no values.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import QwenImageTransformer2DModel

from retouch.engine import precision
from retouch.engine.adapters.terms import NO_TERMS, Terms
from retouch.engine.attention import Attention, AttentionShape, choose_attention
from retouch.engine.block import run_block
from retouch.engine.compilation import FILL_GPU_BYTES, BlockCode, compile_block
from retouch.engine.inputs import fit
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.param_view import view_operand
from retouch.engine.memory.quantization import Quantization
from retouch.engine.modulation import ModulationCache
from retouch.engine.packing.rows import Fp8Operand
from retouch.engine.parent import watch_parent
from retouch.engine.rotary import Grid
from retouch.engine.transformer import Transformer

_BLOCKS = 2
_TEXT_TOKENS = 1024
_TOKEN_PX = 16
_WIDER_PX = 32
_LOWEST_PRIORITY = 19


class EmptyWeights:
    """A transformer of `config` with two blocks of zeros, in place of `Weights`."""

    def __init__(
        self,
        config: dict[str, Any],
        *,
        dtype: torch.dtype,
        device: torch.device,
        fp8: bool = False,
    ) -> None:
        self.device = device
        with init_empty_weights(include_buffers=False):
            build: Any = QwenImageTransformer2DModel.from_config
            self.transformer: Any = build({**config, "num_layers": _BLOCKS})
        self.transformer.eval().requires_grad_(False)
        for module in self.transformer.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                zeros = torch.zeros(parameter.shape, dtype=dtype, device=device)
                setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
        if fp8:
            self._pack()
        if dtype == torch.float16:
            precision.scale_norms(self.transformer)

    def _pack(self) -> None:
        """Give the layers that are packed fp8 operands in place of their weights."""
        encode = encode_as(Quantization("fp8"), fp8_products=True)
        for path, module in self.transformer.named_modules(prefix="transformer"):
            if not (".transformer_blocks." in path and isinstance(module, torch.nn.Linear)):
                continue
            weight = module.weight
            encoding = encode(f"{path}.weight", tuple(weight.shape))
            if isinstance(encoding, Fp8Operand):
                packed = encoding.pack(weight)
                operand: Any = view_operand(encoding, packed, tuple(weight.shape))
                module.weight = operand
                module.scales = operand.scales

    def make_terms(self, rank: int, layers: Sequence[str]) -> Terms:
        """Return terms of zeros of `rank` for these layers of both blocks; none for 0."""
        like = self.transformer.proj_out.weight
        shapes = {
            name: (module.out_features, module.in_features)
            for name, module in self.transformer.transformer_blocks[0].named_modules()
            if name in layers
        }
        terms = {
            name: (like.new_zeros(rank, inner), like.new_zeros(outer, rank))
            for name, (outer, inner) in shapes.items()
        }
        return Terms(("zeros", rank), [terms] * _BLOCKS) if rank and terms else NO_TERMS

    def blocks(self) -> Iterator[Any]:
        """Yield the blocks."""
        yield from self.transformer.transformer_blocks

    def modulations(self) -> Iterator[tuple[Any, Any]]:
        """Yield each block's `img_mod` and `txt_mod`."""
        for block in self.blocks():
            yield block.img_mod, block.txt_mod


def fill(code: BlockCode, attention: Attention, device: torch.device) -> None:
    """Run both blocks with each rank in two sizes, as the warm-up does, and record that the code is cached."""
    config = json.loads(code.config)
    dtype = getattr(torch, code.dtype)
    stand_in: Any = EmptyWeights(config, dtype=dtype, device=device, fp8=code.fp8)
    transformer = Transformer(stand_in, compile_block(partial(run_block, attend=attention.attend)))
    modulation = ModulationCache(stand_in).get(torch.tensor([1000.0]))
    side_px = round(code.area_px**0.5) // 32 * 32
    text = torch.zeros(1, _TEXT_TOKENS, config["joint_attention_dim"], device=device)
    with torch.no_grad():
        for rank, width_px in product(code.ranks, (side_px, side_px + _WIDER_PX)):
            condition_px = fit(code.condition_area_px, width_px / side_px)
            result, condition = to_grid(width_px, side_px), to_grid(*condition_px)
            conditioning = transformer.prepare_conditioning(
                conditions=[empty_tokens(condition, config["in_channels"], device)],
                texts=[text],
                grids=(result, condition),
                terms=stand_in.make_terms(rank, code.term_layers),
            )
            latents = empty_tokens(result, config["in_channels"], device)
            transformer.forward(latents, conditioning, modulation.of_step(0))
    code.mark_cached()


def to_grid(width_px: int, height_px: int) -> Grid:
    """Return rows and columns of an image's tokens.

    >>> to_grid(1056, 1024)
    (64, 66)
    """
    return height_px // _TOKEN_PX, width_px // _TOKEN_PX


def empty_tokens(grid: Grid, channels: int, device: torch.device) -> torch.Tensor:
    """Return tokens of zeros: (1, rows x columns, channel)."""
    return torch.zeros(1, grid[0] * grid[1], channels, device=device)


def main() -> None:  # pragma: no cover - needs a GPU
    """Fill the cache for the `BlockCode` on standard input."""
    watch_parent()
    os.nice(_LOWEST_PRIORITY)
    code = BlockCode(**json.load(sys.stdin))
    device = torch.device("cuda")
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, FILL_GPU_BYTES / torch.cuda.mem_get_info()[1])
    )
    dtype = getattr(torch, code.dtype)
    attention, _ = choose_attention(
        code.attention, device=device, dtype=dtype, shape=AttentionShape()
    )
    fill(code, attention, device)


if __name__ == "__main__":  # pragma: no cover - needs a GPU
    main()
