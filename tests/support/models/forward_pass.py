"""One forward pass of a tiny transformer, by this package and by the stock model."""

import torch

from retouch.engine import block, transformer
from retouch.engine.modulation import ModulationCache, ModulationTable
from support.models.no_compiler import no_compiler
from support.models.tiny import build_tiny_pipeline, keep_resident

GRIDS = ((4, 3), (2, 5))
TIMESTEP = torch.tensor([600.0])
TEXT_TOKENS = 7


class Case:
    """The inputs of a pass; `predict` and `stock` make the same velocity of them."""

    def __init__(self, *, zero_cond_t: bool = False) -> None:
        pipe = build_tiny_pipeline()
        self.transformer = pipe.transformer
        self.transformer.register_to_config(zero_cond_t=zero_cond_t)
        for module in (self.transformer, *self.transformer.transformer_blocks):
            module.zero_cond_t = zero_cond_t
        self.weights = keep_resident(
            transformer=pipe.transformer, vae=pipe.vae, text_encoder=pipe.text_encoder
        )
        draw = torch.Generator().manual_seed(1)
        self.sample = torch.randn(1, 12, 16, generator=draw)
        self.condition = torch.randn(1, 10, 16, generator=draw)
        self.text = torch.randn(1, TEXT_TOKENS, 32, generator=draw)

    def prepare_conditioning(self) -> transformer.Conditioning:
        return self.over(block.run_block).prepare_conditioning(
            conditions=[self.condition], texts=[self.text], grids=GRIDS
        )

    def over(self, run_block: block.BlockCall) -> transformer.Transformer:
        return transformer.Transformer(self.weights, run_block)

    def table(self) -> ModulationTable:
        return ModulationCache(self.weights).get(TIMESTEP)

    def predict(self, run_block: block.BlockCall = block.run_block) -> torch.Tensor:
        with torch.no_grad():
            (velocity,) = self.over(run_block).forward(
                self.sample, self.prepare_conditioning(), self.table().of_step(0)
            )
        return velocity

    def stock(self) -> torch.Tensor:
        dtype = self.transformer.dtype
        with torch.no_grad(), no_compiler():
            velocity: torch.Tensor = self.transformer(
                hidden_states=torch.cat([self.sample, self.condition], dim=1).to(dtype),
                encoder_hidden_states=self.text.to(dtype),
                timestep=TIMESTEP / 1000,
                img_shapes=[[(1, *grid) for grid in GRIDS]],
                return_dict=False,
            )[0]
        return velocity[:, :12]
