"""Measure what packed weights cost the demo model: PSNR to its own unpacked output and to the exact edit.

    PYTHONPATH=src:tests python tests/bench/quantization.py [--photos N] [--only EDIT ...]

Every edit at its plain amount on photographs outside the training set, as `demo_quality.py` does. The
bounds were set before anything was measured: int8 as required, the others lower by as many dB as the
error of a weight is larger (for normal weights 0.9 per cent in int8, 2.7 in fp8, 9.2 in nf4; 0.5 in
Q8_0, 1.6 in Q6_K, 3.8 in Q5_0, 7.6 in Q4_0, which come from a GGUF file). The exit status is 1 if a
bound is missed.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from demo_prompts import PROMPTS
from demo_quality import EDGE_PX, SEED, SHIPPED, fetch_photos
from demo_tables import Table, as_markdown
from PIL import Image
from safetensors.torch import load_file
from support.demo import measures
from support.models.packed_files import Kind, save_gguf

from retouch.demo import edits
from retouch.demo.edits import Change
from retouch.editing.ports import EditParams, run_edit
from retouch.engine.checkpoint import find, load
from retouch.engine.engine import QwenEngine

PACKED_DB = {"int8": 45.0, "fp8": 35.0, "nf4": 25.0}
FILES_DB = {"Q8_0": 50.0, "Q6_K": 40.0, "Q5_0": 32.0, "Q4_0": 26.0}
BOUNDS_DB = PACKED_DB | FILES_DB
"""To the output of the unpacked weights, in the mean over edits and photographs."""
LOSS_DB = {"int8": 0.1}
"""What the mean PSNR to the exact edit may lose."""


def edit_all(
    quantization: str, photos: Sequence[measures.Pixels], names: Sequence[str]
) -> list[measures.Pixels]:
    """Edit each photo in each way."""
    engine = load_as(quantization)
    found = []
    for name in names:
        for photo in photos:
            height_px, width_px = photo.shape[:2]
            work = EditParams(
                prompt=PROMPTS[name],
                negative_prompt=" ",
                seed=SEED,
                steps=engine.info.preset.steps,
                guidance_scale=1.0,
                scheduler="Euler",
                width_px=width_px,
                height_px=height_px,
            )
            image = Image.fromarray((photo * 255).round().astype(np.uint8))
            found.append(measures.to_pixels(run_edit(engine, [image], work)[0]))
            sys.stderr.write(f"\r{quantization}: {len(found)} edits ")
    engine.weights.close()
    return found


def load_as(quantization: str) -> QwenEngine:
    """Load the demo model, for a GGUF type with its transformer in such a file."""
    settings = find.CheckpointSettings(model_id=str(SHIPPED), quantization=quantization)
    if quantization not in FILES_DB:
        return load.load(settings)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.gguf"
        weights = load_file(SHIPPED / "transformer" / "diffusion_pytorch_model.safetensors")
        save_gguf(weights, path, Kind[quantization])
        return load.load(
            replace(settings, quantization="auto", transformer_file=str(path), family="edit")
        )


def measure(photos: Sequence[measures.Pixels], names: Sequence[str]) -> Table:
    """Return the table: a row for each way of storing the weights."""
    table = Table(
        f"{len(names)} edits of {len(photos)} photographs, dB",
        ["QUANTIZATION", "to its own unpacked output", "the worst", "to the exact edit"],
    )
    torch.manual_seed(0)
    exact = [
        measures.from_tensor(edits.apply(measures.to_tensor(photo), [Change(name)]))
        for name in names
        for photo in photos
    ]
    plain = edit_all("none", photos, names)
    base = float(np.mean([measures.psnr_db(*pair) for pair in zip(plain, exact, strict=True)]))
    table.add("none", "", "", base, digits=2)
    for name, bound in BOUNDS_DB.items():
        gc.collect()
        packed = edit_all(name, photos, names)
        own = [measures.psnr_db(*pair) for pair in zip(packed, plain, strict=True)]
        true = float(np.mean([measures.psnr_db(*pair) for pair in zip(packed, exact, strict=True)]))
        table.add(name, float(np.mean(own)), min(own), true, digits=2)
        table.verdicts.append((bool(np.mean(own) >= bound), f"{name}: at least {bound} dB"))
        if name in LOSS_DB:
            lost = f"{name}: loses at most {LOSS_DB[name]} dB to the exact edit"
            table.verdicts.append((base - true <= LOSS_DB[name], lost))
    return table


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".demo/held-out"))
    parser.add_argument("--photos", type=int, default=len(measures.HELD_OUT), help="how many")
    parser.add_argument("--only", nargs="*", default=[], help="names of edits (default: all)")
    parser.add_argument("--edge-px", type=int, default=EDGE_PX)
    options = parser.parse_args()
    held_out = measures.held_out_photos(fetch_photos(options.folder), options.edge_px)
    photos = [measures.to_pixels(image) for image in held_out.values()][: options.photos]
    table = measure(photos, options.only or list(PROMPTS))
    sys.stdout.write(as_markdown({"quantization": table.as_json()}) + "\n")
    return 0 if all(met for met, _ in table.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
