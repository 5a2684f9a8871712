"""One forward pass of a tiny transformer whose tokens are shared, each share in a thread of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from diffusers import QwenImageTransformer2DModel

from retouch.engine.block import BlockCall, run_block
from retouch.engine.modulation import ModulationCache, StepModulation
from retouch.engine.transformer import Transformer
from retouch.engine.ulysses import WHOLE, Share, join, open_store
from support.models.tiny import build_tiny_pipeline, keep_resident

CPU = torch.device("cpu")
TIMESTEP = torch.tensor([600.0])


def join_all(size: int, streaming: int | None = None) -> list[Share]:
    """The shares of all of `size` processes, one of which may stream."""
    store, port = open_store()
    with ThreadPoolExecutor(size) as pool:
        joined = pool.map(
            lambda rank: join(port, rank, size, CPU, is_resident=rank != streaming), range(size)
        )
        found = [shares[size] for shares in joined]
    del store
    return found


class SharedPass:
    """A forward pass of a tiny transformer with four heads."""

    def __init__(self, *, zero_cond_t: bool, grids: Sequence[tuple[int, int]]) -> None:
        pipe = build_tiny_pipeline()
        config = {**pipe.transformer.config, "num_attention_heads": 4, "attention_head_dim": 8}
        config |= {"axes_dims_rope": (2, 2, 4), "zero_cond_t": zero_cond_t}
        torch.manual_seed(0)
        transformer = QwenImageTransformer2DModel.from_config(config)
        self.weights = keep_resident(
            transformer=transformer, vae=pipe.vae, text_encoder=pipe.text_encoder
        )
        self.grids = grids
        result, condition = (rows * columns for rows, columns in grids)
        self.latents = torch.randn(1, result, 16)
        self.condition = torch.randn(1, condition, 16)

    def predict(
        self,
        texts: Sequence[torch.Tensor],
        share: Share = WHOLE,
        run_block: BlockCall = run_block,
    ) -> list[torch.Tensor]:
        """Return the velocity of each branch, in the first share: the latents are there alone too.

        It is of a second step, over copies as a recording makes them.
        """
        with torch.no_grad():
            transformer = Transformer(self.weights, run_block)
            conditioning = transformer.prepare_conditioning(
                conditions=[self.condition], texts=texts, grids=self.grids, share=share
            )
            modulation = ModulationCache(self.weights).get(TIMESTEP).of_step(0)
            latents = self.latents if share.rank == 0 else self.latents[:, :0]
            transformer.forward(latents, conditioning, modulation)
            copied = StepModulation(*(part.clone() for part in modulation))
            return transformer.forward(latents.clone(), conditioning, copied)

    def join(
        self,
        texts: Sequence[torch.Tensor],
        shares: Sequence[Share],
        first: BlockCall = run_block,
    ) -> list[list[torch.Tensor]]:
        """Return the velocities of each branch, one of each share: `first` runs the first share's blocks."""
        with ThreadPoolExecutor(len(shares)) as pool:
            others = [pool.submit(self.predict, texts, share) for share in shares[1:]]
            parts = [self.predict(texts, shares[0], first), *(other.result() for other in others)]
        return [list(branch) for branch in zip(*parts, strict=True)]
