"""Time loading with the transformer in one GGUF file, beside the stock library loading 16 bits.

PYTHONPATH=src:tests python tests/bench/packed_load.py [--kind Q4_K] [--folder /dev/shm]

Writes a checkpoint of the full size (58 GB) and a GGUF file of random blocks (12 GB in Q4_K) to a
folder in memory, loads each twice, and prints one line of JSON. The bar for the second ratio is 0.4.
It takes about three minutes and 75 GiB in the folder. `--tiny` runs it on a CPU with a toy model.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from full_size import time_stock_load, write_once
from support.models.full_rig import Rig, peaks, reset_peaks, since
from support.models.gguf_blocks import make_blocks
from support.models.packed_files import is_matrix

from retouch.engine.checkpoint import build
from retouch.engine.checkpoint.packed_file import read_transformer
from retouch.engine.memory.plan import GIB, EditShape, FreeMemory
from retouch.engine.memory.probe import measure_host

ROWS = 1024
"""Rows of random blocks, which a matrix repeats; all of one shape share their bytes."""


def write_gguf(rig: Rig, kind: gguf.GGMLQuantizationType) -> Path:
    """Write the transformer's shapes, the blocks' matrices in random blocks of `kind`."""
    path = rig.folder / "transformer.gguf"
    writer = gguf.GGUFWriter(path, "qwen_image")
    kept: dict[tuple[int, ...], np.ndarray] = {}
    for name, weight in rig.build_modules(torch.bfloat16)["transformer"].named_parameters():
        shape = tuple(weight.shape)
        if not is_matrix(name, weight):
            zeros = np.broadcast_to(np.zeros(1, dtype=np.float32), shape)
            writer.add_tensor(name, np.ascontiguousarray(zeros))
            continue
        if shape not in kept:
            rows = make_blocks(kind, (ROWS, shape[1]))
            kept[shape] = np.resize(rows, (shape[0], rows.shape[1]))
        writer.add_tensor(name, kept[shape], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(rig: Rig, path: Path) -> dict[str, Any]:
    """Load the checkpoint with the file's transformer."""
    reset_peaks()
    began = time.perf_counter()
    weights = build.load_weights(
        rig.folder,
        build.read_configs(rig.folder),
        dtype=torch.float32 if rig.tiny else rig.dtype,
        device=rig.device,
        shape=EditShape(),
        memory=FreeMemory(80 * GIB, measure_host()),
        packed={"transformer": read_transformer(path).entries},
        quantization="auto",
        progress=lambda line: sys.stderr.write(f"{line}\n"),
    )
    found = {"s": since(began), "quantization": weights.plan.quantization, **peaks()}
    weights.close()
    del weights
    gc.collect()
    rig.drop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="", help="a GGUF type; default Q4_K, with --tiny Q8_0")
    parser.add_argument("--folder", default="/dev/shm", help="where to write")  # noqa: S108 - memory
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    kind = gguf.GGMLQuantizationType[options.kind or ("Q8_0" if options.tiny else "Q4_K")]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rig = Rig(
            tiny=options.tiny,
            dtype=torch.float16,
            folder=Path(folder),
            side_px=0,
            edits=0,
            attention="",
            compiled=False,
        )
        write_once(rig)
        path = write_gguf(rig, kind)
        ours = [load(rig, path) for _ in range(2)]
        stock_s = [time_stock_load(rig) for _ in range(2)]
        ratios = [round(one["s"] / other, 3) for one, other in zip(ours, stock_s, strict=True)]
        file_gib = round(path.stat().st_size / GIB, 2)
    row = {"kind": kind.name, "file_gib": file_gib, "ours": ours, "stock_s": stock_s}
    sys.stdout.write(json.dumps({**row, "ratios": ratios}) + "\n")


if __name__ == "__main__":
    main()
