"""Shares of an edit's tokens, each computed in a thread of its own as in a process of its own."""

from collections.abc import Sequence

import pytest
import torch
from support.models.shared_pass import SharedPass, join_all


def test_all_processes_know_whether_one_of_them_streams() -> None:
    assert [share.is_resident for share in join_all(4)] == [True] * 4
    assert [share.is_resident for share in join_all(2, streaming=1)] == [False] * 2


@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("grids", [((4, 3), (2, 5)), ((3, 3), (5, 1))])
@pytest.mark.parametrize("size", [2, 4])
def test_shares_make_the_velocity_of_the_whole(
    zero_cond_t: bool, grids: Sequence[tuple[int, int]], size: int
) -> None:
    case = SharedPass(zero_cond_t=zero_cond_t, grids=grids)
    texts = [torch.randn(1, count, 32) for count in (7, 14)]  # neither divides, in any way
    shared = case.join(texts, join_all(size))
    for parts, expected in zip(shared, case.predict(texts), strict=True):
        torch.testing.assert_close(parts[0], expected, rtol=0, atol=1e-5)
        assert not any(part.shape[1] for part in parts[1:])
