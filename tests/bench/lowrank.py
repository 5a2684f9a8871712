"""Time ways to add a LoRA's low-rank term to the products of one block, in eager PyTorch.

    PYTHONPATH=src:tests python tests/bench/lowrank.py [--rank 64] [--device cuda]

Each line is one group of layers of one stream: milliseconds of the plain products and of each way. The
last lines add up a block: what each way costs beyond the plain products, where one way is used for all
groups, as the engine does it, and where each group has its fastest, as a share of the plain products and of `--block-ms`, the
time of a whole compiled block of one guidance branch. A minute on a GPU.

The ways, for y = x W^T + b + (x A^T) B^T:
  in_place     the product, then the term added to it: a read and a write of y
  first        the term and the bias, then the product added to them in the same call (beta = 1)
  wide_copied  [x, x A^T] [W, B]^T, where x and W are copied each time; with the GELU fused
  wide_kept    the same, with [W, B] kept
  wide_free    the same, with x written to its place by whoever made it: the least that a way can cost
  rows         x [W; A]^T, with [W; A] kept: one product gives x A^T too; then the term added in place
Queries, keys and values share x; `_joint` makes their three x A^T in one product.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from expansion import time_ms
from torch.nn import functional

BLOCK_MS = 5.28
"""One branch of 8192 image tokens and 1440 text tokens, bfloat16, FA3, on an H100 at 700 W."""
GROUPS = {
    "qkv": (3072, 3072, 3, False),
    "out": (3072, 3072, 1, False),
    "up": (3072, 12288, 1, True),
    "down": (12288, 3072, 1, False),
}
"""Layers that read one stream: in and out features, how many, whether a GELU follows."""


@dataclass
class Group:
    """Layers that share their input `x` (token, in). Each `layers` has weight, bias, down and up."""

    x: torch.Tensor
    layers: list[tuple[torch.Tensor, ...]]
    gelu: bool

    def __post_init__(self) -> None:
        self.downs = torch.cat([down for _, _, down, _ in self.layers])
        lows = self.x @ self.downs.t()
        self.wide_x = torch.cat([self.x, lows], 1)
        rank = len(self.layers[0][2])
        self.wide, self.tall = [], []
        for at, (weight, bias, down, up) in enumerate(self.layers):
            padded = weight.new_zeros(len(weight), len(self.downs))
            padded[:, at * rank : (at + 1) * rank] = up
            self.wide.append(torch.cat([weight, padded], 1))
            below = bias.new_zeros(rank)
            self.tall.append((torch.cat([weight, down]), torch.cat([bias, below])))

    def finish(self, product: torch.Tensor) -> torch.Tensor:
        return functional.gelu(product, approximate="tanh") if self.gelu else product

    def multiply(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        if self.gelu and x.is_cuda:
            return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)  # noqa: SLF001 - it has no public name
        return self.finish(torch.addmm(bias, x, weight.t()))

    def split_lows(self, joint: bool) -> list[torch.Tensor]:
        if joint:
            return list((self.x @ self.downs.t()).chunk(len(self.layers), 1))
        return [self.x @ down.t() for _, _, down, _ in self.layers]


def plain(group: Group) -> None:
    for weight, bias, _, _ in group.layers:
        group.multiply(group.x, weight, bias)


def in_place(group: Group, *, joint: bool) -> None:
    for (weight, bias, _, up), low in zip(group.layers, group.split_lows(joint), strict=True):
        group.finish(torch.addmm(bias, group.x, weight.t()).addmm_(low, up.t()))


def first(group: Group, *, joint: bool) -> None:
    for (weight, bias, _, up), low in zip(group.layers, group.split_lows(joint), strict=True):
        group.finish(torch.addmm(bias, low, up.t()).addmm_(group.x, weight.t()))


def wide_copied(group: Group) -> None:
    for weight, bias, down, up in group.layers:
        wide_x = torch.cat([group.x, group.x @ down.t()], 1)
        group.multiply(wide_x, torch.cat([weight, up], 1), bias)


def wide_kept(group: Group) -> None:
    wide_x = torch.cat([group.x, group.x @ group.downs.t()], 1)
    for wide, (_, bias, _, _) in zip(group.wide, group.layers, strict=True):
        group.multiply(wide_x, wide, bias)


def wide_free(group: Group) -> None:
    inner = group.x.shape[1]
    torch.mm(group.wide_x[:, :inner], group.downs.t(), out=group.wide_x[:, inner:])
    for wide, (_, bias, _, _) in zip(group.wide, group.layers, strict=True):
        group.multiply(group.wide_x, wide, bias)


def rows(group: Group) -> None:
    for (tall, bias), (weight, _, _, up) in zip(group.tall, group.layers, strict=True):
        product = torch.addmm(bias, group.x, tall.t())
        count = len(weight)
        group.finish(product[:, :count].addmm_(product[:, count:], up.t()))


WAYS: dict[str, Callable[[Group], None]] = {
    "plain": plain,
    "in_place": partial(in_place, joint=False),
    "in_place_joint": partial(in_place, joint=True),
    "first": partial(first, joint=False),
    "first_joint": partial(first, joint=True),
    "wide_copied": wide_copied,
    "wide_kept": wide_kept,
    "wide_free": wide_free,
    "rows": rows,
}
ENGINE = {"down": "in_place"}
"""What src/retouch/engine/linear.py does, where that is not `first_joint`."""
FASTEST = {
    "fastest": {"plain", "wide_free"},
    "fastest_without_kept": {"plain", "wide_free", "wide_kept", "rows"},
}
"""What the fastest is not chosen from: the others need weights with room beside or below them."""


def draw(name: str, tokens: int, rank: int, device: torch.device, dtype: torch.dtype) -> Group:
    """Draw a group of random weights of 0.02 and terms of a tenth of that."""
    inner, outer, count, gelu = GROUPS[name]

    def normal(*shape: int, of: float) -> torch.Tensor:
        return torch.randn(*shape, device=device, dtype=dtype) * of

    layers = [
        (
            normal(outer, inner, of=0.02),
            normal(outer, of=0.02),
            normal(rank, inner, of=0.02),
            normal(outer, rank, of=0.002),
        )
        for _ in range(count)
    ]
    return Group(normal(tokens, inner, of=1.0), layers, gelu)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--image-tokens", type=int, default=8192)
    parser.add_argument("--text-tokens", type=int, default=1440)
    parser.add_argument("--block-ms", type=float, default=BLOCK_MS)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    sums = dict.fromkeys((*WAYS, "engine", *FASTEST), 0.0)
    for stream, tokens in (("image", options.image_tokens), ("text", options.text_tokens)):
        for name in GROUPS:
            group = draw(name, tokens, options.rank, device, dtype)
            times = {way: time_ms(partial(run, group), device) for way, run in WAYS.items()}
            say(stream=stream, group=name, **{way: round(ms, 4) for way, ms in times.items()})
            for way, ms in times.items():
                sums[way] += ms
            sums["engine"] += times[ENGINE.get(name, "first_joint")]
            for which, left_out in FASTEST.items():
                sums[which] += min(ms for way, ms in times.items() if way not in left_out)
    for way, ms in sums.items():
        more = ms - sums["plain"]
        say(
            way=way,
            ms=round(ms, 3),
            of_products=round(ms / sums["plain"], 3),
            of_block=round(1 + more / options.block_ms, 3),
        )


def say(**row: object) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    with torch.no_grad():
        main()
