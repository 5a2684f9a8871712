"""Two or four GPUs of one host: twice the edits with a process on each, and one edit over all.

PYTHONPATH=src:tests python tests/bench/two_gpus.py [ROW ...] [--folder FOLDER --write] [--tiny]

Row `workers`: edits an hour and host memory taken of `bentoml serve` with GPUS=2 beside GPUS=1, for each
of --steps. Row `guidance`: seconds of denoising and host memory taken with PARALLEL=guidance beside none,
and whether the pixels are equal. Memory of the checkpoint's own files under /dev/shm does not count. Row `ulysses`: the same without guidance and PARALLEL=ulysses, and row `four` with
guidance and PARALLEL=guidance,ulysses, which needs four GPUs: how far the pixels differ. Row `killed`:
what an edit ends with when the other process of `ulysses` is ended by SIGKILL, and after how long.
`--write` writes a checkpoint of the full size with random weights to FOLDER first, for example under
/dev/shm, and removes it at the end. `--tiny` is a tiny model on the CPU. One line of JSON a measurement.
"""

import argparse
import gc
import json
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cold_start import write
from PIL import Image
from support.models.tiny_folder import tiny_folder
from support.servers.bentoml_service import Service, serving

from retouch.editing.ports import EditParams, run_edit
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.engine.memory.plan import GIB
from retouch.engine.memory.probe import measure_cpus, measure_host
from retouch.errors import EditError
from retouch.settings.gpus import Parallel

ROOT = Path(__file__).parents[2]
PASSED_ON = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")


def measure_workers(options: argparse.Namespace) -> None:
    """Print the edits an hour of one and of two workers."""
    for steps in options.steps:
        rates, taken_gib = {}, {}
        for gpus in (1, 2):
            free_bytes = measure_host()
            with (
                TemporaryDirectory() as folder,
                serving(Path(folder), build_settings(options, gpus)) as service,
            ):
                service.wait_for(lambda service=service, gpus=gpus: count_ready(service) == gpus)  # type: ignore[misc]
                taken_gib[gpus] = (free_bytes - measure_host()) / GIB
                rates[gpus] = measure_rate(service, options, gpus=gpus, steps=steps)
            say(row="workers", gpus=gpus, steps=steps, edits_an_hour=round(rates[gpus]),
                host_gib=round(taken_gib[gpus], 1))  # fmt: skip
        say(row="workers", steps=steps, of_one=round(rates[2] / rates[1], 3), bar=1.9,
            host_of_one=round(taken_gib[2] / taken_gib[1], 2), host_bar=1.25)  # fmt: skip


def build_settings(options: argparse.Namespace, gpus: int) -> dict[str, str]:
    """Return the settings of the service."""
    return {
        **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        "OMP_NUM_THREADS": str(max(1, measure_cpus() // 2)),
        "MODEL_ID": str(options.folder),
        "DTYPE": options.dtype,
        "GPU_MEMORY_GIB": str(options.gpu_memory_gib),
        "QUANTIZATION": "none",
        "COMPILE": "false",
        "GPUS": str(gpus),
    }


def count_ready(service: Service) -> float:
    """Return how many workers can edit."""
    lines = service.client.get("/metrics").text.splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("retouch_ready "))


def measure_rate(service: Service, options: argparse.Namespace, *, gpus: int, steps: int) -> float:
    """Return the edits an hour of callers that always have four edits a worker in progress."""

    def ask(seed: int) -> None:
        service.edit(seed=seed, num_inference_steps=steps, guidance_scale=1.0 if steps < 10 else 4.0,
                     width=options.side, height=options.side)  # fmt: skip

    with ThreadPoolExecutor(4 * gpus) as callers:
        list(callers.map(ask, range(2 * gpus)))  # a size and a schedule seen for the first time
        count = options.edits * gpus
        began_s = time.monotonic()
        list(callers.map(ask, range(100, 100 + count)))
        return 3600 * count / (time.monotonic() - began_s)


def measure_guidance(options: argparse.Namespace) -> None:
    """Print the time of a guided edit with a branch on each of two GPUs."""
    compare(options, row="guidance", parallel="guidance", scale=4.0, bar=0.54)


def measure_ulysses(options: argparse.Namespace) -> None:
    """Print the time of an edit without guidance whose tokens two GPUs share."""
    compare(options, row="ulysses", parallel="ulysses", scale=1.0, bar=0.62)


def measure_four(options: argparse.Namespace) -> None:
    """Print the time of a guided edit over four GPUs."""
    compare(options, row="four", parallel="guidance,ulysses", scale=4.0, bar=None)


def measure_killed(options: argparse.Namespace) -> None:
    """Print what an edit ends with whose other process is ended in the middle of a step."""
    engine = load(replace(build_alone(options), parallel="ulysses"))
    photo, params = read_photo(), build_params(options, scale=1.0)
    run_edit(engine, [photo], replace(params, steps=2))
    (child,) = find_children()
    killed_s: list[float] = []

    def kill() -> None:
        killed_s.append(time.monotonic())
        os.kill(child, signal.SIGKILL)

    threading.Timer(options.kill_after_s, kill).start()
    try:
        run_edit(engine, [photo], replace(params, steps=50, seed=8))
        say(row="killed", error=None)
    except EditError as error:
        took_s = time.monotonic() - killed_s[0]
        say(row="killed", error=error.code, after_s=round(took_s, 2))


def find_children() -> list[int]:
    """Return the processes that this one started to edit with."""
    tasks = Path("/proc/self/task").glob("*/children")
    found = [int(pid) for task in tasks for pid in task.read_text().split()]
    return [pid for pid in found if b"rank_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def build_alone(options: argparse.Namespace) -> CheckpointSettings:
    return CheckpointSettings(
        model_id=str(options.folder),
        dtype=options.dtype,
        gpu_memory_gib=options.gpu_memory_gib,
        compile=options.compile,
    )


def read_photo() -> Image.Image:
    return Image.open(ROOT / "src/retouch/web/static/sample.jpg").convert("RGB")


def build_params(options: argparse.Namespace, *, scale: float) -> EditParams:
    return EditParams(
        prompt="make it warmer",
        negative_prompt=" ",
        seed=7,
        steps=max(options.steps),
        guidance_scale=scale,
        scheduler="Euler",
        width_px=options.side,
        height_px=options.side,
    )


def compare(
    options: argparse.Namespace, *, row: str, parallel: Parallel, scale: float, bar: float | None
) -> None:
    """Print the time of an edit over one process and over several."""
    alone = build_alone(options)
    photo, params = read_photo(), build_params(options, scale=scale)
    found, taken_gib = [], []
    ways: tuple[Parallel, ...] = ("none", parallel)
    for way in ways:
        free_bytes = measure_host()
        engine = load(replace(alone, parallel=way))
        taken_gib.append((free_bytes - measure_host()) / GIB)
        run_edit(engine, [photo], params)
        image, output = run_edit(engine, [photo], params)
        found.append((output.denoise_ms, np.asarray(image).astype(int)))
        say(row=row, parallel=way, steps=params.steps, host_gib=round(taken_gib[-1], 1),
            denoise_s=round(output.denoise_ms / 1000, 2), plan=engine.info.memory_plan)  # fmt: skip
        del engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    (one_ms, one), (several_ms, several) = found
    differences = abs(one - several)
    say(row=row, of_one=round(several_ms / one_ms, 3), bar=bar, equal=not differences.any(),
        mean_difference=round(float(differences.mean()), 3), largest=int(differences.max()),
        host_of_one=round(taken_gib[1] / taken_gib[0], 2), host_bar=1.25)  # fmt: skip


def say(**fields: Any) -> None:
    sys.stdout.write(f"{json.dumps(fields)}\n")
    sys.stdout.flush()


ROWS = {
    "workers": measure_workers,
    "guidance": measure_guidance,
    "ulysses": measure_ulysses,
    "four": measure_four,
    "killed": measure_killed,
}
DEFAULT_ROWS = ("workers", "guidance", "ulysses")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", default=DEFAULT_ROWS)
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/retouch-full-size"))  # noqa: S108
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument(
        "--gpu-memory-gib", type=float, default=0.0, help="16 streams; default: all"
    )
    parser.add_argument("--steps", type=int, nargs="*", default=[4, 30])
    parser.add_argument(
        "--compile", action="store_true", help="the edits over several GPUs and one"
    )
    parser.add_argument("--edits", type=int, default=12, help="a worker; default: 12")
    parser.add_argument("--kill-after-s", type=float, default=3.0)
    parser.add_argument("--side", type=int, default=1024, help="of the results in pixels")
    options = parser.parse_args()
    if options.tiny:
        options.folder, options.side = tiny_folder(), 128
    if options.write:
        write(options.folder, options.dtype)
    try:
        for row in options.rows:
            ROWS[row](options)
    finally:
        if options.write:
            shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
