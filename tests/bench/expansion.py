"""Time the expansion of packed weights to 16 bits, beside a copy of as many bytes.

PYTHONPATH=src:tests python tests/bench/expansion.py [--device cuda] [NAME ...]

Each encoding expands the largest matrix of a block (12288 x 3072), compiled as the engine does it. A
line says milliseconds, bytes read and written a second, their share of what a copy on the device
reaches (the bar is 0.5), and the difference to the same expansion on the CPU. Two minutes for all.
With `--block` a line is of all twelve matrices of a block: `ms` expands one after the other, each by its
own compiled call as the engine does, `joint_ms` all in one compiled function.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import gguf
import torch
from support.models.gguf_blocks import make_blocks

from retouch.engine.packing.encoding import Encoding, Packer
from retouch.engine.packing.gguf import TYPES
from retouch.engine.packing.nf4 import NF4
from retouch.engine.packing.rows import FP8, INT8

SHAPE = 12288, 3072
BLOCK = ((3072, 3072),) * 8 + ((12288, 3072),) * 2 + ((3072, 12288),) * 2
PACKERS: tuple[Packer, ...] = (INT8, FP8, NF4)
RUNS = 20


def pack(encoding: Encoding, shape: tuple[int, int] = SHAPE) -> torch.Tensor:
    """Return a random weight of `shape` as bytes."""
    for packer in PACKERS:
        if packer == encoding:
            generator = torch.Generator().manual_seed(0)
            return packer.pack(torch.randn(shape, generator=generator) * 0.02)
    number = next(number for number, one in TYPES.items() if one == encoding)
    return torch.from_numpy(make_blocks(gguf.GGMLQuantizationType(number), shape)).view(-1)


def time_ms(run: Callable[[], object], device: torch.device) -> float:
    """Return the median time of `run`; on a device of its kernels alone, launched as one graph.

    In an edit the CPU is ahead, so that launches take no time of their own.
    """
    run()
    if device.type == "cpu":
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(RUNS)]
    for begin, end in pairs:
        begin.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def expand_block(encoding: Encoding, device: torch.device, copied: float) -> None:
    """Time a whole block's expansion; `copied` is what a copy reaches, in bytes a millisecond."""
    pairs = [
        (pack(encoding, shape).to(device), torch.empty(shape, dtype=torch.bfloat16, device=device))
        for shape in BLOCK
    ]
    one = torch.compile(encoding.expand, dynamic=False, fullgraph=True)

    def expand_all(matrices: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for packed, out in matrices:
            encoding.expand(packed, out)

    joint = torch.compile(expand_all, dynamic=False, fullgraph=True)
    times_ms = [
        time_ms(lambda: [one(packed, out) for packed, out in pairs], device),
        time_ms(lambda: joint(pairs), device),
    ]
    moved = sum(packed.nbytes + out.nbytes for packed, out in pairs)
    shares = [round(moved / ms / copied, 2) for ms in times_ms]
    say(
        encoding=encoding.name,
        ms=round(times_ms[0], 3),
        of_copy=shares[0],
        joint_ms=round(times_ms[1], 3),
        joint_of_copy=shares[1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="encodings such as int8, nf4 and Q4_K; default all"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--block", action="store_true", help="whole blocks")
    options = parser.parse_args()
    device = torch.device(options.device)
    out = torch.empty(SHAPE, dtype=torch.bfloat16, device=device)
    source = torch.empty_like(out)
    copy_ms = time_ms(lambda: out.copy_(source), device)
    copied = 2 * out.nbytes / copy_ms
    say(copy_ms=round(copy_ms, 3), gb_s=round(copied / 1e6))
    for encoding in (*PACKERS, *TYPES.values()):
        if options.names and encoding.name not in options.names:
            continue
        if options.block:
            expand_block(encoding, device, copied)
            torch.compiler.reset()
            continue
        packed = pack(encoding)
        wanted = torch.empty(SHAPE, dtype=torch.bfloat16)
        encoding.expand(packed, wanted)
        there = packed.to(device)
        expand = torch.compile(encoding.expand, dynamic=False, fullgraph=True)
        expand_ms = time_ms(lambda: expand(there, out), device)  # noqa: B023 - called at once
        moved = (packed.nbytes + out.nbytes) / expand_ms
        difference = (out.cpu().float() - wanted.float()).norm() / wanted.float().norm()
        say(
            encoding=encoding.name,
            bits=round(8 * packed.nbytes / wanted.numel(), 2),
            ms=round(expand_ms, 3),
            gb_s=round(moved / 1e6),
            of_copy=round(moved / copied, 2),
            difference=float(difference),
        )
        torch.compiler.reset()  # or the limit of recompilations is reached


def say(**row: object) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
