"""From the start of a process to the end of one edit: the command line beside a stock script.

PYTHONPATH=src:tests python tests/bench/cold_start.py [--folder FOLDER] [--write] [--runs 3]

Both edit the sample photograph in 4 steps without guidance, in turn, each in a process of its own. The
weights are in the page cache after the first pair, which does not count. `--write` writes a checkpoint
of the full size with random weights to FOLDER first, for example under /dev/shm, and removes it at the
end. Without FOLDER it is the demo checkpoint, for which a CPU is enough (`--width 384 --height 256
--dtype float32`); it encodes its source smaller than stock does. One line of JSON a run, then the medians; `phases` is what
a service logs of its start.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from retouch import demo

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "src/retouch/web/static/sample.jpg"
STEPS = 4
PROMPT = "make it warmer"
STOCK = """
import sys, torch
from diffusers import DiffusionPipeline
from PIL import Image
from retouch.demo.processor import build_processor  # stock's own needs torchvision
from transformers import Qwen2Tokenizer
folder, photo, prompt, steps, width, height, out, dtype = sys.argv[1:]
device = "cuda" if torch.cuda.is_available() else "cpu"
processor = build_processor(Qwen2Tokenizer.from_pretrained(folder + "/tokenizer"))
load = DiffusionPipeline.from_pretrained
pipe = load(folder, torch_dtype=getattr(torch, dtype), processor=processor).to(device)
size = {"width": int(width), "height": int(height), "num_inference_steps": int(steps)}
made = pipe(image=Image.open(photo), prompt=prompt, true_cfg_scale=1.0, **size)
made.images[0].save(out)
"""
PHASES = """
from retouch import logs
from retouch.lifecycle import ModelHost, prepare_process
from retouch.settings import load_settings
prepare_process()
logs.install("INFO")
ModelHost(load_settings()).load()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=demo.CHECKPOINT_DIR)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--width", type=int, default=1248)
    parser.add_argument("--height", type=int, default=832)
    options = parser.parse_args()
    if options.write:
        write(options.folder, options.dtype)
    try:
        measure(options)
    finally:
        if options.write:
            shutil.rmtree(options.folder, ignore_errors=True)


def measure(options: argparse.Namespace) -> None:
    """Run both in turn and print the medians."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "MODEL_ID": str(options.folder),
        "DTYPE": options.dtype,
        "COMPILE": "false",
    }
    times_s: dict[str, list[float]] = {"ours": [], "stock": []}
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "edited.png")
        ours = ["-m", "retouch", "edit", str(PHOTO), PROMPT, "--steps", str(STEPS)]
        width, height = str(options.width), str(options.height)
        ours += ["--guidance", "1", "--width", width, "--height", height, "-o", out]
        stock = ["-c", STOCK, str(options.folder), str(PHOTO), PROMPT, str(STEPS)]
        stock += [width, height, out, options.dtype]
        for number in range(options.runs + 1):
            for name, command in (("ours", ours), ("stock", stock)):
                took_s = run(command, environment, folder)[0]
                say(run=number, name=name, s=round(took_s, 2), counted=number > 0)
                times_s[name] += [took_s] if number else []
        _, lines = run(["-c", PHASES], environment, folder)
    medians_s = {name: statistics.median(times) for name, times in times_s.items()}
    (phases,) = [line for line in lines.splitlines() if '"start.phases"' in line]
    say(phases=json.loads(phases))
    say(medians_s=medians_s, of_stock=round(medians_s["ours"] / medians_s["stock"], 3))


def run(command: list[str], environment: dict[str, str], folder: str) -> tuple[float, str]:
    """Run Python; return its seconds and its output."""
    began_s = time.perf_counter()
    ended = subprocess.run(  # noqa: S603 - our own programs
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, check=False
    )
    took_s = time.perf_counter() - began_s
    output = (ended.stdout + ended.stderr).decode(errors="replace")
    if ended.returncode:
        sys.exit(output[-3000:])
    return took_s, output


def write(folder: Path, dtype: str) -> None:
    """Write random weights at full size, with the demo's tokenizer, processor and scheduler."""
    import torch
    from support.models import full_model

    from retouch.engine.checkpoint.build import build_modules

    kind = getattr(torch, dtype)
    modules = build_modules(
        full_model.make_configs(), dict.fromkeys(("transformer", "vae", "text_encoder"), kind)
    )
    text_encoder = json.loads((demo.CHECKPOINT_DIR / "text_encoder" / "config.json").read_bytes())
    for name, value in text_encoder.items():
        if name.endswith("_token_id"):
            setattr(modules["text_encoder"].config, name, value)
    full_model.write_modules(folder, modules)
    for part in ("tokenizer", "processor", "scheduler"):
        shutil.copytree(demo.CHECKPOINT_DIR / part, folder / part)
    shutil.copy(demo.CHECKPOINT_DIR / "model_index.json", folder)


def say(**fields: Any) -> None:
    sys.stdout.write(f"{json.dumps(fields)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
