"""Time and memory at the model's full size with random weights: stock diffusers and this engine in one run.

PYTHONPATH=src:tests python tests/bench/full_size.py [ROW ...] [--budget-s 600]

Rows, most useful first: stock, resident, few:0, queue, 16, few:16, 8, load, load:16, sizes:16,
large:16, leak:16, cancel:16, widen, 12, 24, 48, resident:eager, stripes, lora, images:2 and images:3
(edits of two and three pictures against stock's), and images_n:4 (four results of one request). A
number is a cap on the GPU's memory in GiB, for the process and for the plan; 0 is none. `int8`,
`int8:16`, `fp8`, `nf4:10` and so on keep the weights packed. Each row prints one line of JSON when it is
done, and a failed row does not end the others. Whole edits of 30 steps are timed; seconds a step are
their difference from edits of two; `few` and `queue` are of four steps without guidance. `--tiny` runs
all of it on a CPU with a toy model.
"""

import argparse
import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.models import full_model
from support.models.full_rig import (
    FEW,
    MANY,
    Rig,
    Stopped,
    begin,
    build_stock,
    edit,
    measure_host_taken,
    peaks,
    pictures,
    reset_peaks,
    since,
    time_edits,
    work,
)
from support.models.tiny import build_tiny_pipeline
from support.models.turn_rows import (
    row_few,
    row_images_n,
    row_large,
    row_queue,
    row_sizes,
    row_stripes,
)

from retouch.editing.adapters import resolve_adapters
from retouch.engine import precision
from retouch.engine.adapters.loaded import LoadedAdapters, NamedAdapter
from retouch.engine.adapters.read import Adapter, LowRank
from retouch.engine.adapters.shapes import BLOCK, FULL_CONFIG, layer_shapes
from retouch.engine.checkpoint import build
from retouch.engine.memory.encode import PACKERS
from retouch.engine.memory.plan import GIB, EditShape, FreeMemory
from retouch.engine.memory.probe import measure_host
from retouch.schema import Lora

ORDER = (
    *("stock", "resident", "few:0", "queue", "16", "few:16", "8", "load", "load:16", "sizes:16"),
    *("large:16", "leak:16", "cancel:16", "widen", "12", "24", "48", "resident:eager"),
)
IMAGES_BARS = {"resident": 0.73, "16": 0.75}
"""Shares of the stock pipeline's time that edits of several pictures may take, by cap."""
EXPECTED_S = {"images": 400, "stock": 60, "load": 90, "load:16": 40, "widen": 40}
USUAL_S = 60


def row_stock(rig: Rig) -> dict[str, Any]:
    """Stock diffusers in bfloat16, all resident, in its own way."""
    rig.drop()
    pipe = build_stock(rig)
    pipe.set_progress_bar_config(disable=True)
    images = pictures(rig)

    def run(steps: int) -> None:
        request = work(rig, steps)
        pipe(
            image=images if rig.images > 1 else images[0],
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            true_cfg_scale=request.guidance_scale,
            width=request.width_px,
            height=request.height_px,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(7),
        )

    return {"dtype": "bfloat16", **time_edits(run)}


def row_time(
    rig: Rig, cap: str, *, compiled: bool = True, quantization: str = "none"
) -> dict[str, Any]:
    """This engine under a cap."""
    engine = rig.take(cap, compiled=compiled, quantization=quantization)
    found = time_edits(
        lambda steps: edit(rig, work(rig, steps)), prepare=lambda: begin(rig, work(rig, MANY))
    )
    before = engine.weights.copied_bytes
    image, edited = edit(rig, work(rig, FEW))
    return {
        "plan": engine.weights.plan.name,
        "planned_gib": round(engine.weights.plan.peak_bytes / GIB, 2),
        "resident_blocks": len(engine.weights.params.blocks)
        - len(engine.weights.plan.streamed_blocks),
        "host_gib": round(measure_host_taken() / GIB, 2),
        "dtype": engine.info.dtype,
        "notes": edited.notes,
        **rig.notes,
        **found,
        "copied_gib": round((engine.weights.copied_bytes - before) / GIB, 1),
        "phases_ms": [
            round(edited.condition_ms),
            round(edited.denoise_ms),
            round(edited.vae_decode_ms),
        ],
        # Equal for every cap: what streams computes the same bits as what stays.
        "pixels": hashlib.sha256(image.tobytes()).hexdigest()[:12],
        "spread": round(float(np.asarray(image).std()), 2),
    }


def row_images(rig: Rig, count: str) -> dict[str, Any]:
    """Edits of several pictures of 1 MP, resident and under 16 GiB, against stock's Plus pipeline."""
    rig.images = int(count)
    try:
        found: dict[str, Any] = {"stock": row_stock(rig)}
        stock_s = found["stock"]["edit30_s"]
        for cap, bar in IMAGES_BARS.items():
            found[cap] = row_time(rig, cap, compiled=rig.compiled)
            ratio = found[cap]["edit30_s"] / stock_s
            found[cap] |= {"of_stock": round(ratio, 3), "ok": ratio <= bar}
    finally:
        rig.drop()
        rig.images = 1
    return found


def row_leak(rig: Rig, cap: str) -> dict[str, Any]:
    """GPU memory after many edits, some cancelled and some failed, against that after the first."""
    rig.take(cap)
    small = rig.side_px // 2

    def held() -> int:
        return torch.cuda.memory_reserved() if torch.cuda.is_available() else 0

    def stop(_step: int, _steps: int) -> None:
        raise Stopped

    def fail(*_args: Any) -> Any:
        raise RuntimeError

    request = work(rig, 1, width=small, height=small, guidance=1.0)
    edit(rig, request)
    first = held()
    began = time.perf_counter()
    for _ in range(rig.edits):
        edit(rig, request)
    ends = {"cancelled": 0, "failed": 0}
    for _ in range(max(1, rig.edits // 5)):
        try:
            edit(rig, request, stop)
        except Stopped:
            ends["cancelled"] += 1
    handle = rig.engine.weights.transformer.txt_norm.register_forward_pre_hook(fail)
    for _ in range(max(1, rig.edits // 10)):
        try:
            edit(rig, request)
        except Exception:  # noqa: BLE001 - the engine translates it
            ends["failed"] += 1
    handle.remove()
    grown = (held() - first) / (1 << 20)
    return {
        "edits": rig.edits,
        **ends,
        "seconds": since(began),
        "grown_mib": round(grown, 1),
        "ok": grown <= 100,
    }


def row_cancel(rig: Rig, cap: str) -> dict[str, Any]:
    """A cancelled edit ends before the next step."""
    rig.take(cap)
    steps, raised_s = [], [0.0]

    def stop(step: int, _steps: int) -> None:
        steps.append(step)
        if step == 1:
            raised_s[0] = time.perf_counter()
            raise Stopped

    with suppress(Stopped):
        edit(rig, work(rig, MANY), stop)
    return {"steps_reported": steps, "after_s": since(raised_s[0]), "ok": steps == [0, 1]}


def row_widen(rig: Rig) -> dict[str, Any]:
    """Values like the real model's fit float16; beyond its range this edit and the next run in bfloat16."""
    rig, was = replace(rig, dtype=torch.float16), rig
    was.drop()
    engine = rig.take("resident", compiled=False)
    transformer = engine.weights.transformer
    found: dict[str, Any] = {}

    def look(name: str) -> np.ndarray:
        image, edited = edit(rig, work(rig, FEW))
        pixels = np.asarray(image).astype(float)
        found[name] = {
            "dtype": engine.info.dtype,
            "notes": list(edited.notes),
            "spread": round(float(pixels.std()), 2),
        }
        return pixels

    transformer.img_in.bias.data[::1024] = 3e6 / precision.RESIDUAL_SCALE
    half = look("residuals of 3e6")
    feed = transformer.transformer_blocks[0].img_mlp.net
    kept = feed[0].proj.bias.data.clone(), feed[2].weight.data.clone()
    feed[0].proj.bias.data.fill_(60000)
    feed[2].weight.data.fill_(1)
    first, second = look("activations past 65504"), look("the next edit")
    found["same"] = bool((first == second).all())
    for parameter, values in zip((feed[0].proj.bias, feed[2].weight), kept, strict=True):
        parameter.data.copy_(values)
    wide = look("residuals of 3e6, in bfloat16")
    found["difference"] = round(float(np.abs(half - wide).mean()), 3)
    rig.drop()
    return found


def row_lora(rig: Rig, quantization: str) -> dict[str, Any]:
    """Two random adapters of Lightning's shape, not merged, beside the same edits without; switching.

    `lora:fp8` has the weights packed so.
    """
    rig.drop()
    config = build_tiny_pipeline().transformer.config if rig.tiny else FULL_CONFIG
    shapes = layer_shapes(config)
    inside = [name for name in shapes if name.startswith(BLOCK) and "_mod." not in name]
    rank = 4 if rig.tiny else 64

    def draw(name: str) -> NamedAdapter:
        layers = {
            path: LowRank(
                torch.randn(rank, shapes[path][1]).bfloat16() / 1000,
                torch.randn(shapes[path][0], rank).bfloat16() / 1000,
                rank / 8,
            )
            for path in inside
        }
        return NamedAdapter(name, Adapter(layers, "random", name))

    rig.adapters = LoadedAdapters([draw("one"), draw("other")], shapes)
    engine = rig.take("resident", quantization=quantization)
    rig.adapters = None

    def ask(steps: int, name: str) -> Any:
        chosen = [one for one in engine.info.adapters if one.name == name]
        loras = resolve_adapters([Lora(name=one.name) for one in chosen], engine.info.adapters)
        return replace(work(rig, steps), loras=loras)

    found: dict[str, Any] = {"layers": len(inside), "rank": rank}
    for name in ("", "one"):
        times = time_edits(lambda steps, name=name: edit(rig, ask(steps, name)))
        found[name or "without"] = {key: times[key] for key in ("step_s", "edit30_s")}
    found["ratio"] = round(found["one"]["step_s"] / found["without"]["step_s"], 3)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]  # noqa: SLF001 - no public count
    spans = []
    for name in ("one", "other", "other"):
        began = time.perf_counter()
        edit(rig, ask(FEW, name))
        spans.append(since(began))
    found["switch_s"] = round(spans[1] - spans[2], 3)
    after = torch._dynamo.utils.counters["stats"]["unique_graphs"]  # noqa: SLF001 - as above
    return {**found, "recompiles": after - graphs, **peaks()}


def row_load(rig: Rig, cap: str) -> dict[str, Any]:
    """Time loading and warm-up; without a cap also the stock library's, twice each.

    `16` is a cap, `int8:16` packs the weights too. With --folder on a local disk the modulation is
    mapped, and `host_gib` does not hold the files.
    """
    quantization, _, cap = cap.rpartition(":")
    rig.drop()
    found: dict[str, Any] = {"gib": round(write_once(rig) / GIB, 1)}
    memory = FreeMemory(int((float(cap) if cap else 80) * GIB), measure_host())
    if cap:
        rig.cap_memory(cap)
    ours_s, stock_s = [], []
    for _ in range(1 if cap else 2):  # the first includes what a process does only once
        reset_peaks()
        began = time.perf_counter()
        weights = build.load_weights(
            rig.folder,
            build.read_configs(rig.folder),
            dtype=torch.float32 if rig.tiny else rig.dtype,
            device=rig.device,
            shape=EditShape(),
            memory=memory,
            quantization=quantization or "none",
            progress=lambda line: sys.stderr.write(f"{line}\n"),
        )
        ours_s.append(since(began))
        rig.engine = rig.wrap(weights, compiled=False)
        edit(rig, work(rig, 1))
        found["host_gib"] = round(measure_host_taken() / GIB, 2)
        found |= {"plan": weights.plan.name, "ours_and_first_edit_s": since(began), **peaks()}
        found["wrong_weights"] = full_model.count_wrong(weights)
        rig.drop()
        del weights
        gc.collect()
        if not cap:
            stock_s.append(time_stock_load(rig))
    ratios = [round(ours / stock, 3) for ours, stock in zip(ours_s, stock_s, strict=False)]
    return {**found, "ours_s": ours_s, "stock_s": stock_s, "ratios": ratios}


def write_once(rig: Rig) -> int:
    if (rig.folder / "model_index.json").exists():
        return sum(path.stat().st_size for path in rig.folder.rglob("*.safetensors"))
    modules = rig.build_modules(torch.bfloat16)
    toy = build_tiny_pipeline()
    return full_model.write_checkpoint(
        rig.folder, modules, scheduler=toy.scheduler, processor=toy.processor
    )


def time_stock_load(rig: Rig) -> float:
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    classes: dict[str, Any] = {
        "transformer": QwenImageTransformer2DModel,
        "vae": AutoencoderKLQwenImage,
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
    }
    began = time.perf_counter()
    parts = [
        kind.from_pretrained(rig.folder, subfolder=name, dtype=torch.bfloat16).to(rig.device)
        for name, kind in classes.items()
    ]
    seconds = since(began)
    del parts
    rig.drop()
    return seconds


def run_row(rig: Rig, row: str) -> dict[str, Any]:
    kind, _, cap = row.partition(":")
    if kind == "stock":
        return row_stock(rig)
    if kind in ("lora", "widen"):
        return row_lora(rig, cap or "none") if kind == "lora" else row_widen(rig)
    if kind == "load":
        return row_load(rig, cap)
    checks = {
        "few": row_few,
        "images": row_images,
        "images_n": row_images_n,
        "queue": row_queue,
        "sizes": row_sizes,
        "large": row_large,
        "stripes": row_stripes,
        "leak": row_leak,
        "cancel": row_cancel,
    }
    if kind in checks:
        return checks[kind](rig, cap)
    if kind in PACKERS:
        return row_time(
            rig, cap if cap != "0" and cap else "resident", compiled=rig.compiled, quantization=kind
        )
    return row_time(rig, kind, compiled=cap != "eager")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table."""
    stock_s = rows.get("stock", {}).get("edit30_s")
    say("\n| row | s a step | s of 30 steps | of stock | allocated GiB | reserved GiB | plan |")
    say("| --- | --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        if "edit30_s" in row:
            ratio = f"{row['edit30_s'] / stock_s:.2f}" if stock_s else ""
            gib = (row["allocated_gib"], row["reserved_gib"])
            cells = (name, row["step_s"], row["edit30_s"], ratio, *gib, row.get("plan", ""))
            say(f"| {' | '.join(map(str, cells))} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--budget-s", type=float, default=600.0, help="rows over it are skipped")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--edits", type=int, default=50, help="of the row leak")
    parser.add_argument("--attention", default="native", help="auto: the fastest, as a service")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("/dev/shm/retouch-full-size"),  # noqa: S108
        help="where the rows load write weights; removed at the end",
    )
    parser.add_argument("--eager-checks", action="store_true", help="check without the compiler")
    parser.add_argument("--tiny", action="store_true", help="a toy model on the CPU")
    options = parser.parse_args()
    if options.tiny:
        torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp()) / "model" if options.tiny else options.folder
    rig = Rig(
        tiny=options.tiny,
        dtype=torch.float32 if options.tiny else getattr(torch, options.dtype),
        folder=folder,
        side_px=128 if options.tiny else 1024,
        edits=2 if options.tiny else options.edits,
        attention=options.attention,
        compiled=not options.eager_checks,
    )
    began, rows = time.perf_counter(), dict[str, dict[str, Any]]()
    for row in options.rows or ORDER:
        kind = row.partition(":")[0]
        left_s = options.budget_s - (time.perf_counter() - began)
        if left_s < EXPECTED_S.get(row, EXPECTED_S.get(kind, USUAL_S)):
            rows[row] = {"skipped": f"{left_s:.0f} s are left"}
        else:
            started = time.perf_counter()
            try:
                rows[row] = run_row(rig, row)
            except Exception as error:  # noqa: BLE001 - the other rows must run
                rows[row] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
                traceback.print_exc(limit=-6)
                traceback.clear_frames(error.__traceback__)
                rig.drop()
            rows[row]["row_s"] = round(time.perf_counter() - started, 1)
        say(json.dumps({"row": row, **rows[row]}))
    rig.drop()
    report(rows)
    shutil.rmtree(folder, ignore_errors=True)
    if any("error" in row for row in rows.values()):
        sys.exit(1)


if __name__ == "__main__":
    if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
        # As the service does; torch has read it already, so the program starts once more.
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606 - this program
    with torch.no_grad():
        main()
