"""Host memory that the full model takes, by packing and cap on the GPU's memory.

PYTHONPATH=src:tests python tests/bench/host_memory.py [int8:16 nf4:10 ...] [--folder FOLDER --write]

`--write` writes a checkpoint of the full size (54 GiB) to FOLDER first, which is to be on a local disk:
what streams from its files is mapped and not counted, while files in memory would be. Counted is the
anonymous and shared memory of the container, or without one of the process, after an edit of two steps.
One line of JSON a plan, each in a process of its own. `--tiny` is a tiny model on the CPU.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from support.models.full_rig import measure_host_taken

PLANS = ("int8:16", "int8:14.9", "int8:24", "nf4:10", "none:16")


def measure(plan: str, folder: Path, dtype: str) -> None:
    """Load, edit, and print what that took."""
    before_bytes = measure_host_taken()
    from two_gpus import build_alone, build_params, read_photo

    from retouch.editing.ports import run_edit
    from retouch.engine.checkpoint.load import load
    from retouch.engine.memory.plan import GIB

    quantization, _, cap_gib = plan.partition(":")
    options = argparse.Namespace(
        folder=folder,
        dtype=dtype,
        gpu_memory_gib=float(cap_gib),
        compile=False,
        steps=[2],
        side=1024,
    )
    engine = load(replace(build_alone(options), quantization=quantization))
    run_edit(engine, [read_photo()], build_params(options, scale=4.0))
    taken_gib = round((measure_host_taken() - before_bytes) / GIB, 1)
    sys.stdout.write(
        json.dumps({"plan": plan, "host_gib": taken_gib, "memory_plan": engine.info.memory_plan})
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plans", nargs="*", metavar="PLAN", default=PLANS)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/retouch-full-size"))  # noqa: S108
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        measure(options.plans[0], options.folder, options.dtype)
        return
    if options.tiny:
        from support.models.tiny_folder import tiny_folder

        options.folder = tiny_folder()
    if options.write:
        from cold_start import write

        write(options.folder, options.dtype)
    again = ["--folder", str(options.folder), "--dtype", options.dtype, "--in-this-process"]
    for plan in options.plans:
        subprocess.run([sys.executable, __file__, plan, *again], check=False)  # noqa: S603 - this file


if __name__ == "__main__":
    main()
