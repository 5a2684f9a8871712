"""Shares of an edit's tokens, each computed in a thread of its own as in a process of its own."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from support.models.tiny import build_tiny_pipeline

from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationCache
from retouch.engine.transformer import Transformer, run_block
from retouch.engine.ulysses import WHOLE, Group, Share, join, open_store

CPU = torch.device("cpu")
TIMESTEP = torch.tensor([600.0])


def join_all(size: int) -> list[Group]:
    """The group of all of `size` processes, as each of them has it."""
    store, port = open_store()
    with ThreadPoolExecutor(size) as pool:
        joined = pool.map(lambda rank: join(port, rank, size, CPU), range(size))
        groups = [groups[size] for groups in joined]
    del store
    return groups


class Case:
    """A forward pass of a tiny transformer with four heads."""

    def __init__(self, *, zero_cond_t: bool, grids: Sequence[tuple[int, int]]) -> None:
        pipe = build_tiny_pipeline()
        config = {**pipe.transformer.config, "num_attention_heads": 4, "attention_head_dim": 8}
        config |= {"axes_dims_rope": (2, 2, 4), "zero_cond_t": zero_cond_t}
        torch.manual_seed(0)
        transformer = QwenImageTransformer2DModel.from_config(config)
        self.weights = Weights.resident(
            transformer=transformer, vae=pipe.vae, text_encoder=pipe.text_encoder
        )
        self.grids = grids
        result, condition = (rows * columns for rows, columns in grids)
        self.latents = torch.randn(1, result, 16)
        self.condition = torch.randn(1, condition, 16)

    def predict(self, texts: Sequence[torch.Tensor], share: Share) -> list[torch.Tensor]:
        with torch.no_grad():
            transformer = Transformer(self.weights, run_block)
            conditioning = transformer.prepare_conditioning(
                conditions=[self.condition], texts=texts, grids=self.grids, share=share
            )
            table = ModulationCache(self.weights).get(TIMESTEP)
            return transformer.forward(self.latents, conditioning, table, 0)


@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("grids", [((4, 3), (2, 5)), ((3, 3), (5, 1))])
@pytest.mark.parametrize("size", [2, 4])
def test_shares_make_the_velocity_of_the_whole(
    zero_cond_t: bool, grids: Sequence[tuple[int, int]], size: int
) -> None:
    case = Case(zero_cond_t=zero_cond_t, grids=grids)
    texts = [torch.randn(1, count, 32) for count in (7, 14)]  # neither divides, in any way
    shares = [Share(rank, size, group) for rank, group in enumerate(join_all(size))]
    with ThreadPoolExecutor(size) as pool:
        parts = list(pool.map(lambda share: case.predict(texts, share), shares))
    whole = case.predict(texts, WHOLE)
    for branch, expected in enumerate(whole):
        found = torch.cat([part[branch] for part in parts], dim=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert all(part[branch].shape[1] in {expected.shape[1] // size, expected.shape[1] // size + 1} for part in parts)  # fmt: skip
