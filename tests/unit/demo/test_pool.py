import torch

from retouch.demo.flow import Pairs
from retouch.demo.pool import PairPool
from retouch.demo.prompts import PromptBatch


def make_pairs(value: int, count: int = 4) -> Pairs:
    latents = torch.full((count, 6, 64), float(value)).half()
    ids = torch.full((count, 9), value)
    return Pairs(latents, latents, latents, PromptBatch(ids, ids, ids[:, 0]))


def test_a_pool_replaces_the_oldest_pairs_and_draws_from_all() -> None:
    values = iter(range(10))
    pool = PairPool(lambda: make_pairs(next(values)), capacity=13)
    for _ in range(5):
        pool.refill()
    assert (pool.capacity, pool.filled) == (12, 12)
    torch.manual_seed(0)
    drawn = pool.draw(200)
    assert set(drawn.prompts.lengths.tolist()) == {2, 3, 4}
    assert torch.equal(drawn.source[:, 0, 0], drawn.prompts.lengths.float())
    assert drawn.source.dtype == torch.float32
