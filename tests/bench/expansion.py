"""Time the expansion of packed weights to 16 bits, beside a copy of as many bytes.

PYTHONPATH=src:. python tests/bench/expansion.py [--device cuda] [NAME ...]

Each encoding expands the largest matrix of a block (12288 x 3072), compiled as the engine does it. A
line says milliseconds, bytes read and written a second, their share of what a copy on the device
reaches (the bar is 0.5), and the difference to the same expansion on the CPU. Two minutes for all.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import gguf
import torch

from retouch.engine.packing.encoding import Encoding, Packer
from retouch.engine.packing.gguf import TYPES
from retouch.engine.packing.nf4 import NF4
from retouch.engine.packing.rows import FP8, INT8
from tests.support.models.gguf_blocks import make_blocks

SHAPE = 12288, 3072
PACKERS: tuple[Packer, ...] = (INT8, FP8, NF4)
RUNS = 20


def pack(encoding: Encoding) -> torch.Tensor:
    """Return a random weight of `SHAPE` as bytes."""
    for packer in PACKERS:
        if packer == encoding:
            generator = torch.Generator().manual_seed(0)
            return packer.pack(torch.randn(SHAPE, generator=generator) * 0.02)
    number = next(number for number, one in TYPES.items() if one == encoding)
    return torch.from_numpy(make_blocks(gguf.GGMLQuantizationType(number), SHAPE)).view(-1)


def time_ms(run: Callable[[], object], device: torch.device) -> float:
    """Return the median time of `run`, by the device's clock where it has one."""
    run()
    if device.type == "cpu":
        times = []
        for _ in range(3):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(RUNS)]
    for begin, end in pairs:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="encodings such as int8, nf4 and Q4_K; default all"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
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
