"""Ulysses: each process has a share of an edit's tokens, and while attending a share of the heads.

All but attention works on each token alone. Before attention an exchange gives each process every token
of its heads, and another gives each its own tokens back: https://arxiv.org/abs/2309.14509.
"""

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from retouch.engine.attention import Attend

_HOST = "127.0.0.1"
_JOIN_S = 60
_NCCL = {
    "NCCL_SOCKET_IFNAME": "lo",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "NCCL_GRAPH_REGISTER": "0",
}
"""NCCL listens to this host only, and torch does not end the process with a peer: the team says what died.

Registering the memory of what is recorded takes longer than it saves in an edit.
"""
_WORD = torch.int64
"""What is exchanged is copied as: four half-precision channels at once."""
_c10d: Any = distributed  # most of its names are not exported explicitly
Group = Any
"""A backend of torch.distributed: NCCL between GPUs, Gloo on the CPU."""
Store = Any
"""A store of torch.distributed, which processes meet at."""


@dataclass(frozen=True)
class Share:
    """The `rank`-th of `size` shares of the tokens; the processes of `group` have one each, by rank.

    `is_resident` where no process streams weights.
    """

    rank: int = 0
    size: int = 1
    group: Group = None
    is_resident: bool = False

    def take(self, tokens: torch.Tensor, dim: int, counts: Sequence[int] = ()) -> torch.Tensor:
        """Return this share of `tokens` along `dim`; of each of the streams that `counts` divide them in."""
        if self.size == 1:
            return tokens
        shares = []
        for stream in torch.split(tokens, list(counts) or tokens.shape[dim], dim):
            begin, end = self._bounds(stream.shape[dim], self.rank)
            shares.append(stream.narrow(dim, begin, end - begin))
        return torch.cat(shares, dim)

    def spread(self, tokens: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return this share of the first process's `tokens` (1, token, c); there are `counts` in the shares."""
        return self._swap_with_first(tokens, counts, from_first=True)

    def gather(self, tokens: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the tokens of all shares (1, token, c) in the first process, and none in the others."""
        return self._swap_with_first(tokens, counts, from_first=False)

    def _swap_with_first(
        self, tokens: torch.Tensor, counts: Sequence[int], *, from_first: bool
    ) -> torch.Tensor:
        if self.size == 1:
            return tokens
        none = [0] * self.size
        of_first = list(counts) if self.rank == 0 else none
        mine = [counts[self.rank], *none[1:]]
        given, got = (of_first, mine) if from_first else (mine, of_first)
        sent = tokens[0, : sum(given)].contiguous()
        into = sent.new_empty(sum(got), sent.shape[1])
        self.swap(into, sent, got, given).wait()
        return into[None]

    def swap(
        self, into: torch.Tensor, sent: torch.Tensor, got: Sequence[int], given: Sequence[int]
    ) -> Any:
        """Begin to send each process its `given` rows of `sent`; `got` rows of each come into `into`.

        Wait for what is returned before `into` is read.
        """
        return self.group.alltoall_base(into, sent, list(got), list(given))

    def count(self, counts: Sequence[int]) -> list[int]:
        """Return how many tokens each share has, of streams of `counts` tokens.

        >>> Share(0, 2).count([7, 4])
        [5, 6]
        """
        bounds = [[self._bounds(count, rank) for count in counts] for rank in range(self.size)]
        return [sum(end - begin for begin, end in streams) for streams in bounds]

    def _bounds(self, count: int, rank: int) -> tuple[int, int]:
        return count * rank // self.size, count * (rank + 1) // self.size


WHOLE = Share()


@dataclass(frozen=True)
class Exchange:
    """Attends over the tokens of all shares: `counts` in each, of which `outputs` are the result's."""

    share: Share
    counts: Sequence[int]
    outputs: Sequence[int]

    def attend(
        self,
        attend: Attend,
        query: torch.Tensor,
        key: torch.Tensor,
        make_value: Callable[[], torch.Tensor],
    ) -> torch.Tensor:
        """Call `attend` on a share of the heads, and return this share's tokens of what it returns.

        Query, key and value are (size, own token, h / size, c). The queries are of all tokens, or of the
        result's. Queries and keys are on their way while `make_value` is called.
        """
        asked = self.counts if query.shape[1] == key.shape[1] else self.outputs
        heads = [
            self._gather_tokens(query, asked),
            self._gather_tokens(key, self.counts),
            self._gather_tokens(make_value(), self.counts),
        ]
        return self._gather_heads(attend(*(receive() for receive in heads)), asked)

    def _gather_tokens(
        self, mine: torch.Tensor, counts: Sequence[int]
    ) -> Callable[[], torch.Tensor]:
        """(size, own token, h / size, c), a piece for each, to (1, every token, h / size, c).

        The tokens are in the order of the shares. The exchange has begun; what is returned waits for it.
        """
        size, tokens = mine.shape[:2]
        sent = mine.view(_WORD).flatten(0, 1)
        every = sent.new_empty(sum(counts), *sent.shape[1:])
        exchanged = self.share.swap(every, sent, counts, [tokens] * size)

        def receive() -> torch.Tensor:
            exchanged.wait()
            return every.view(mine.dtype)[None]

        return receive

    def _gather_heads(self, mine: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """(1, every token, h / size, c) to (1, own token, h, c)."""
        size, tokens = self.share.size, counts[self.share.rank]
        sent = mine[0].contiguous().view(_WORD)
        got = sent.new_empty(size * tokens, *sent.shape[1:])
        self.share.swap(got, sent, [tokens] * size, counts).wait()
        # (size x own token, h / size, c) -> (1, own token, h, c)
        heads = got.view(size, tokens, *sent.shape[1:]).transpose(0, 1).flatten(1, 2)
        return heads.view(mine.dtype)[None]


def split_heads(heads: torch.Tensor, dtype: torch.dtype, size: int) -> torch.Tensor:
    """Return (1, token, h, c) in `dtype`, as (size, token, h / size, c) to be exchanged: one pass for both."""
    if size == 1:
        return heads.to(dtype)
    parts = torch.unflatten(heads[0], 1, (size, -1)).transpose(0, 1)
    return torch.empty(parts.shape, dtype=dtype, device=parts.device).copy_(parts)


def open_store() -> tuple[Store, int]:
    """Return a store that processes of this host meet at, and its port."""
    listener = socket.create_server((_HOST, 0))  # by default the store listens to every host
    port = listener.getsockname()[1]
    return _connect(port, is_master=True, master_listen_fd=listener.detach()), port


def join(
    port: int, rank: int, size: int, device: torch.device, *, is_resident: bool
) -> Mapping[int, Share]:
    """Meet the other processes; return the shares that the one at `rank` of `size` can take, by their size.

    All are in one group, and each half of four in another.

    Raises:
        RuntimeError: they did not come.
    """
    store, shares = _connect(port), {}
    for count in sorted({size, max(2, size // 2)}):
        first = rank - rank % count
        within = _c10d.PrefixStore(f"{first} of {count}", store)
        group = _build_group(within, rank - first, count, device)
        mine = torch.full([count], is_resident, dtype=torch.uint8, device=device)
        each = torch.empty_like(mine)
        # The first exchange connects them.
        group.alltoall_base(each, mine, [1] * count, [1] * count).wait()
        shares[count] = Share(rank - first, count, group, bool(each.all()))
    return shares


def _connect(port: int, **options: Any) -> Store:
    return _c10d.TCPStore(
        _HOST, port, wait_for_workers=False, timeout=timedelta(seconds=_JOIN_S), **options
    )


def _build_group(store: Store, rank: int, size: int, device: torch.device) -> Group:
    if device.type == "cuda":  # pragma: no cover - needs GPUs
        for name, value in _NCCL.items():
            os.environ.setdefault(name, value)
        return _c10d.ProcessGroupNCCL(store, rank, size, _c10d.ProcessGroupNCCL.Options())
    gloo = _c10d.ProcessGroupGloo
    options = gloo._Options()  # noqa: SLF001 - the only way to say that no other host may connect
    options._devices = [gloo.create_device(hostname=_HOST)]  # noqa: SLF001
    return gloo(store, rank, size, options)
