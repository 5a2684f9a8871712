"""Times and memory at the model's full size with random weights: stock diffusers and ours in one run.

PYTHONPATH=src:tests python tests/bench/full_size.py [ROW ...] [--budget-s 600]

Rows, in the order of their worth: stock, resident, 16, 8, load, load:16, sizes:16, leak:16,
cancel:16, widen, 12, 24, 48 and resident:eager. A number is a cap on the GPU's memory in GiB, for
the process and for the plan. Each row prints one line of JSON when it is done, and a failed row
does not end the others. Seconds a step come from edits of two lengths, so that what happens once an
edit does not count. `--tiny` runs all of it on a CPU with a toy model.
"""

import argparse
import gc
import hashlib
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import full_model
import numpy as np
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit
from PIL import Image
from tiny_model import AREA_PX, build_tiny_pipeline

from retouch.engine import denoise, loading, precision, speed
from retouch.engine.checkpoint import PresetFile
from retouch.engine.memory import Weights
from retouch.engine.pipeline import QwenEngine
from retouch.engine.plan import GIB, Memory, Picture, Plan, make_plan, measure_host, spread
from retouch.engine.units import cut_pipeline
from retouch.ports import Work

ORDER = (
    *("stock", "resident", "16", "8", "load", "load:16", "sizes:16", "leak:16", "cancel:16"),
    *("widen", "12", "24", "48", "resident:eager"),
)
EXPECTED_S = {"stock": 40, "load": 60, "load:16": 40, "widen": 30}
USUAL_S = 45
STEPS_OF_AN_EDIT = 30
NAMES = ("transformer", "vae", "text_encoder")
_FEW, _MANY = 2, 6


class Stopped(Exception):
    """What a caller raises to end an edit."""


@dataclass
class Rig:
    """The machine, the options, and the engine of the last row, kept if the next one wants the same."""

    tiny: bool
    dtype: torch.dtype
    folder: Path
    side_px: int
    edits: int
    attention: str
    compiled: bool
    engine: Any = None
    key: str = ""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    def drop(self) -> None:
        """Give everything back."""
        if self.engine:
            self.engine.weights.close()
        self.engine, self.key = None, ""
        gc.collect()
        if not self.tiny:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0)

    def build_modules(self, dtype: torch.dtype) -> dict[str, Any]:
        """Build our modules on `meta`."""
        if self.tiny:
            pipe = build_tiny_pipeline()
            return {name: getattr(pipe, name) for name in NAMES}
        dtypes = loading.choose_dtypes(dtype, self.device)
        return loading.build_modules(full_model.make_configs(), dtypes)

    def take(self, cap: str, *, compiled: bool | None = None) -> QwenEngine:
        """Have the engine under a cap, built unless the last row left it."""
        compiled = self.compiled if compiled is None else compiled
        key = f"{cap} {compiled}"
        if key != self.key:
            self.drop()
            began = time.perf_counter()
            modules = self.build_modules(self.dtype)
            modules["transformer"].to(self.dtype)
            weights = Weights(**modules, plan=self.plan(modules, cap), device=self.device)
            weights.settle()
            if not self.tiny:
                full_model.fill(weights)
                if self.dtype == torch.float16:
                    precision.fold_norms(weights.transformer)
            self.notes = {"fill_s": since(began)}
            began = time.perf_counter()
            weights.pin(threads=16)
            self.notes["pin_s"] = since(began)
            self.engine, self.key = self.wrap(weights, compiled=compiled), key
            self.cap_memory(cap)
        return self.engine

    def wrap(self, weights: Weights, *, compiled: bool) -> QwenEngine:
        """Make an engine over weights, with the toy model's tokenizer."""
        toy = build_tiny_pipeline()
        if self.attention != "native":
            speed.require_backend(self.attention, self.device)
            weights.transformer.set_attention_backend(self.attention)
        side = AREA_PX if self.tiny else 1024 * 1024
        return QwenEngine(
            weights,
            processor=toy.processor,
            scheduler=toy.scheduler.config,
            pipeline="QwenImageEditPipeline",
            preset=PresetFile(area_px=side, condition_area_px=side),
            model="random",
            revision="",
            run_block=speed.compile_block() if compiled else denoise.run_block,
        )

    def plan(self, modules: dict[str, Any], cap: str) -> Plan:
        """Plan for a cap; the toy model streams the same share of its blocks."""
        sizes = cut_pipeline(**modules).sizes
        if not self.tiny:
            gpu = torch.cuda.mem_get_info()[0] if cap == "resident" else int(float(cap) * GIB)
            return make_plan(sizes, Picture(), Memory(gpu, measure_host()))
        share = 0.0 if cap in ("resident", "48") else 8 / float(cap)
        count = min(len(sizes.blocks), max(1, round(share * len(sizes.blocks)))) if share else 0
        return Plan(
            f"toy, {count} streamed",
            streamed_blocks=spread(count, of=len(sizes.blocks)),
            streamed_layers=frozenset(range(len(sizes.layers))) if share else frozenset(),
            slot_bytes=max(*sizes.blocks, *sizes.layers, *sizes.modulation),
            slots=2,
        )

    def cap_memory(self, cap: str) -> None:
        """Hold the process to the cap."""
        if not self.tiny and cap != "resident":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, float(cap) * GIB / total))


def since(began: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return round(time.perf_counter() - began, 3)


def work(rig: Rig, steps: int, *, width: int = 0, height: int = 0, guidance: float = 4.0) -> Work:
    return Work(
        prompt="make the colors warmer and add gentle film grain, keep everything else",
        negative_prompt=" ",
        seed=7,
        steps=steps,
        guidance_scale=guidance,
        scheduler="Euler",
        width_px=width or rig.side_px,
        height_px=height or rig.side_px,
    )


def picture(rig: Rig) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (rig.side_px, rig.side_px, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def edit(rig: Rig, request: Work, before_step: Callable[[int, int], None] = lambda *_: None) -> Any:
    return rig.engine.edit(picture(rig), request, before_step=before_step)


def peaks() -> dict[str, float]:
    if not torch.cuda.is_available():
        return {"allocated_gib": 0.0, "reserved_gib": 0.0}
    return {
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }


def reset_peaks() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def time_edits(run: Callable[[int], Any], *, new: tuple[int, ...] = ()) -> dict[str, Any]:
    """Time a first edit, then two of different lengths; the difference is their steps.

    The lengths `new` run once more before: the first edit of a schedule makes its table.
    """
    began = time.perf_counter()
    run(_FEW)
    found: dict[str, Any] = {"first_edit_s": since(began)}
    reset_peaks()
    spans = {}
    for steps in new:
        began = time.perf_counter()
        run(steps)
        found[f"new_schedule_of_{steps}_s"] = since(began)
    for steps in (_FEW, _MANY):
        began = time.perf_counter()
        run(steps)
        spans[steps] = since(began)
    step_s = (spans[_MANY] - spans[_FEW]) / (_MANY - _FEW)
    once_s = spans[_FEW] - _FEW * step_s
    return {
        **found,
        "step_s": round(step_s, 4),
        "once_s": round(once_s, 3),
        "edit30_s": round(once_s + STEPS_OF_AN_EDIT * step_s, 2),
        **peaks(),
    }


def row_stock(rig: Rig) -> dict[str, Any]:
    """Stock diffusers in bfloat16, all resident, in its own way."""
    rig.drop()
    pipe = build_tiny_pipeline() if rig.tiny else build_stock(rig)
    if rig.tiny:
        bound_area()
    pipe.set_progress_bar_config(disable=True)
    image = picture(rig)

    def run(steps: int) -> None:
        request = work(rig, steps)
        pipe(
            image=image,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            true_cfg_scale=request.guidance_scale,
            width=request.width_px,
            height=request.height_px,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(7),
        )

    return {"dtype": "bfloat16", **time_edits(run)}


def bound_area() -> None:
    """Keep the stock pipeline's conditions small too: its 1 MP takes a CPU seconds."""
    sized = pipeline_qwenimage_edit.calculate_dimensions
    pipeline_qwenimage_edit.calculate_dimensions = lambda _area, ratio: sized(AREA_PX, ratio)


def build_stock(rig: Rig) -> Any:
    from diffusers import AutoencoderKLQwenImage, QwenImageEditPipeline, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLForConditionalGeneration

    toy, configs = build_tiny_pipeline(), full_model.make_configs()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(rig.device):
        parts = {
            "transformer": QwenImageTransformer2DModel(**full_model.TRANSFORMER),
            "vae": AutoencoderKLQwenImage(),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(configs["text_encoder"]),
        }
    torch.set_default_dtype(torch.float32)
    for part in parts.values():
        part.to(rig.device, torch.bfloat16).eval().requires_grad_(False)
    return QwenImageEditPipeline(
        **parts, scheduler=toy.scheduler, tokenizer=toy.tokenizer, processor=toy.processor
    )


def row_time(rig: Rig, cap: str, *, compiled: bool = True) -> dict[str, Any]:
    """Ours under a cap."""
    engine = rig.take(cap, compiled=compiled)
    found = time_edits(lambda steps: edit(rig, work(rig, steps)), new=(_MANY,))
    before = engine.weights.copied_bytes
    edited = edit(rig, work(rig, _FEW))
    return {
        "plan": engine.weights.plan.name,
        "planned_gib": round(engine.weights.plan.peak_bytes / GIB, 2),
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
        "pixels": hashlib.sha256(edited.image.tobytes()).hexdigest()[:12],
        "spread": round(float(np.asarray(edited.image).std()), 2),
    }


def row_sizes(rig: Rig, cap: str) -> dict[str, Any]:
    """Twenty edits of changing sizes: no out-of-memory."""
    rig.take(cap)
    reset_peaks()
    unit = rig.side_px // 16
    began = time.perf_counter()
    for number in range(min(20, rig.edits)):
        wide, high = 8 + number * 5 % 11, 8 + number * 7 % 11
        edit(rig, work(rig, 1, width=wide * unit // 16 * 16, height=high * unit // 16 * 16))
    return {"edits": min(20, rig.edits), "seconds": since(began), **peaks()}


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
    handle = rig.engine.weights.transformer.img_in.register_forward_pre_hook(fail)
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
        edit(rig, work(rig, STEPS_OF_AN_EDIT), stop)
    return {"steps_told": steps, "after_s": since(raised_s[0]), "ok": steps == [0, 1]}


def row_widen(rig: Rig) -> dict[str, Any]:
    """Values past float16's end: the edit comes out finite, in bfloat16, and so does the next."""
    rig, was = replace(rig, dtype=torch.float16), rig
    was.drop()
    engine = rig.take("resident", compiled=False)
    block = engine.weights.transformer.transformer_blocks[0]
    block.img_mlp.net[0].proj.bias.data.fill_(60000)
    block.img_mlp.net[2].weight.data.fill_(1)
    first = edit(rig, work(rig, _FEW))
    second = edit(rig, work(rig, _FEW))
    found = {
        "dtype": engine.info.dtype,
        "notes": [list(first.notes), list(second.notes)],
        "same": first.image.tobytes() == second.image.tobytes(),
        "spread": round(float(np.asarray(first.image).std()), 2),
    }
    rig.drop()
    return found


def row_load(rig: Rig, cap: str) -> dict[str, Any]:
    """From files to weights in place and warm; without a cap the stock library's way beside it."""
    rig.drop()
    written = write_once(rig)
    found: dict[str, Any] = {"gib": round(written / GIB, 1)}
    memory = Memory(int((float(cap) if cap else 80) * GIB), measure_host())
    began = time.perf_counter()
    weights = loading.load_weights(
        rig.folder,
        dtype=torch.float32 if rig.tiny else rig.dtype,
        device=rig.device,
        picture=Picture(),
        memory=memory,
        progress=lambda line: sys.stderr.write(f"{line}\n"),
    )
    found |= {"plan": weights.plan.name, "ours_s": since(began)}
    rig.engine = rig.wrap(weights, compiled=False)
    edit(rig, work(rig, 1))
    found["ours_and_first_edit_s"] = since(began)
    rig.drop()
    del weights
    gc.collect()
    if not cap:
        found["stock_s"] = time_stock_load(rig)
        found["ratio"] = round(found["ours_s"] / found["stock_s"], 3)
    return found


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
    if kind == "widen":
        return row_widen(rig)
    if kind == "load":
        return row_load(rig, cap)
    checks = {"sizes": row_sizes, "leak": row_leak, "cancel": row_cancel}
    if kind in checks:
        return checks[kind](rig, cap)
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
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--budget-s", type=float, default=600.0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--edits", type=int, default=50, help="of the row leak")
    parser.add_argument("--attention", default="native")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm/retouch-full-size"))  # noqa: S108
    parser.add_argument("--eager-checks", action="store_true", help="check without the compiler")
    parser.add_argument("--tiny", action="store_true")
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
            except Exception as error:  # noqa: BLE001 - the other rows shall run
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
    with torch.no_grad():
        main()
