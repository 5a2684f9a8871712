"""An engine of the full model's size with random weights, for tests/bench/full_size.py."""

import gc
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image

from retouch.editing.ports import EditParams, EngineOutput, run_edit
from retouch.engine import attention, block, compilation, precision
from retouch.engine.checkpoint import build
from retouch.engine.engine import QwenEngine
from retouch.engine.fp8 import can_multiply_fp8
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.flat_params import Encode, flatten_pipeline
from retouch.engine.memory.plan import GIB, EditShape, FreeMemory, Plan, evenly_spaced, make_plan
from retouch.engine.memory.probe import measure_host
from retouch.engine.memory.quantization import Quantization
from retouch.engine.memory.weights import Weights
from retouch.engine.preset import PresetFile
from retouch.engine.text_encoder import describe_template
from support.models import full_model
from support.models.tiny import AREA_PX, build_tiny_pipeline

NAMES = ("transformer", "vae", "text_encoder")
FEW, MANY = 2, 30
"""Steps of the edits that are timed."""


class Stopped(Exception):
    """Raised to cancel an edit."""


@dataclass
class Rig:
    """The machine, the options, and the engine of the last row, kept for a next row with the same cap.

    `max_result_px` is the area that the plan makes room for, if it is over 1 MP. Edits are of `images`
    pictures; of several they have the template of Edit-Plus.
    """

    tiny: bool
    dtype: torch.dtype
    folder: Path
    side_px: int
    edits: int
    attention: str
    compiled: bool
    engine: Any = None
    adapters: Any = None
    key: str = ""
    max_result_px: int = 0
    images: int = 1
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def pipeline(self) -> str:
        """The stock class whose template edits have."""
        return "QwenImageEditPlusPipeline" if self.images > 1 else "QwenImageEditPipeline"

    def drop(self) -> None:
        """Free the engine and its memory."""
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
            pipe = build_tiny_pipeline(plus=self.images > 1)
            return {name: getattr(pipe, name) for name in NAMES}
        dtypes = precision.choose_dtypes(dtype, self.device)
        return build.build_modules(full_model.make_configs(), dtypes)

    def take(
        self, cap: str, *, compiled: bool | None = None, quantization: str = "none"
    ) -> QwenEngine:
        """Return the engine under a cap; reuse that of the last row where it fits."""
        compiled = self.compiled if compiled is None else compiled
        key = f"{cap} {compiled} {quantization} {self.max_result_px} {self.images}"
        if key != self.key:
            self.drop()
            began = time.perf_counter()
            modules = self.build_modules(self.dtype)
            modules["transformer"].to(self.dtype)
            products = can_multiply_fp8(self.device, self.dtype)
            encode = encode_as(Quantization(quantization, quantization), fp8_products=products)
            plan = self.plan(modules, cap, encode)
            weights = Weights(**modules, plan=plan, device=self.device, encode=encode)
            weights.allocate()
            if not self.tiny:
                full_model.fill(weights)
                if self.dtype == torch.float16:
                    precision.scale_norms(weights.transformer)
            self.notes = {"fill_s": since(began)}
            began = time.perf_counter()
            weights.pin()
            self.notes["pin_s"] = since(began)
            self.engine, self.key = self.wrap(weights, compiled=compiled), key
            self.cap_memory(cap)
        return self.engine

    def wrap(self, weights: Weights, *, compiled: bool) -> QwenEngine:
        """Make an engine over weights, with the toy model's tokenizer."""
        toy = build_tiny_pipeline()
        side = AREA_PX if self.tiny else 1024 * 1024
        shape = attention.AttentionShape((1 + self.images) * side // 256 + 512, heads=24)
        chosen, self.notes["attention_ms"] = attention.choose_attention(
            self.attention, device=self.device, dtype=self.dtype, shape=shape
        )
        run_block: block.BlockCall = partial(block.run_block, attend=chosen.attend)
        return QwenEngine(
            weights,
            processor=toy.processor,
            scheduler=toy.scheduler.config,
            template=describe_template(self.pipeline),
            preset=PresetFile(area_px=side, condition_area_px=side),
            model="random",
            revision="",
            run_block=compilation.compile_block(run_block) if compiled else run_block,
            attention=chosen.name,
            adapters=self.adapters,
        )

    def plan(self, modules: dict[str, Any], cap: str, encode: Encode) -> Plan:
        """Plan for a cap; the toy model streams the same share of its blocks."""
        sizes = flatten_pipeline(**modules, encode=encode).sizes
        if not self.tiny:
            gpu = torch.cuda.mem_get_info()[0] if cap == "resident" else int(float(cap) * GIB)
            shape = EditShape(area_px=max(1024 * 1024, self.max_result_px), images=self.images)
            return make_plan(sizes, shape, FreeMemory(gpu, measure_host()))
        share = 0.0 if cap in ("resident", "48") else 8 / float(cap)
        count = min(len(sizes.blocks), max(1, round(share * len(sizes.blocks)))) if share else 0
        return Plan(
            f"toy, {count} streamed",
            streamed_blocks=evenly_spaced(count, of=len(sizes.blocks)),
            streamed_layers=frozenset(range(len(sizes.layers))) if share else frozenset(),
            slot_bytes=max(*sizes.blocks, *sizes.layers, *sizes.modulation),
            slots=2,
            max_areas_px=(self.max_result_px or 2 * self.side_px**2,),
        )

    def cap_memory(self, cap: str) -> None:
        """Cap the process's GPU memory."""
        if not self.tiny and cap != "resident":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, float(cap) * GIB / total))


def since(began: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return round(time.perf_counter() - began, 3)


def work(
    rig: Rig, steps: int, *, width: int = 0, height: int = 0, guidance: float = 4.0
) -> EditParams:
    return EditParams(
        prompt="make the colors warmer and add gentle film grain, keep everything else",
        negative_prompt=" ",
        seed=7,
        steps=steps,
        guidance_scale=guidance,
        scheduler="Euler",
        width_px=width or rig.side_px,
        height_px=height or rig.side_px,
    )


def pictures(rig: Rig) -> list[Image.Image]:
    size = (rig.images, rig.side_px, rig.side_px, 3)
    noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def edit(
    rig: Rig, request: EditParams, on_step: Callable[[int, int], None] = lambda *_: None
) -> tuple[Image.Image, EngineOutput]:
    return run_edit(rig.engine, pictures(rig), request, on_step=on_step)


def begin(rig: Rig, request: EditParams) -> None:
    """Start an edit and stop it before its first step, which leaves its schedule's modulation table cached."""

    def stop(_step: int, _steps: int) -> None:
        raise Stopped

    with suppress(Stopped):
        edit(rig, request, stop)


def measure_host_taken() -> int:
    """Return this container's anonymous and shared memory in bytes; without one, this process's."""
    stat = Path("/sys/fs/cgroup/memory.stat")
    if stat.exists():
        counts = dict(line.split() for line in stat.read_text().splitlines())
        return int(counts["anon"]) + int(counts["shmem"])
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kinds))


def peaks() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"allocated_gib": 0.0, "reserved_gib": 0.0}
    segments = torch.cuda.memory_snapshot()
    return {
        "allocated_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
        "expandable": all(segment["is_expandable"] for segment in segments),
    }


def reset_peaks() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def time_edits(
    run: Callable[[int], Any], *, prepare: Callable[[], Any] | None = None
) -> dict[str, Any]:
    """Time a first edit, then one of `FEW` and one of `MANY` steps, whose difference gives the time a step.

    `prepare` is timed too, before the second: the first edit of a schedule makes its table.
    """
    began = time.perf_counter()
    run(FEW)
    found: dict[str, Any] = {"first_edit_s": since(began)}
    reset_peaks()
    if prepare:
        began = time.perf_counter()
        prepare()
        found["new_schedule_s"] = since(began)
    spans = {}
    for steps in (FEW, MANY):
        began = time.perf_counter()
        run(steps)
        spans[steps] = since(began)
    step_s = (spans[MANY] - spans[FEW]) / (MANY - FEW)
    return {
        **found,
        "step_s": round(step_s, 4),
        "once_s": round(spans[FEW] - FEW * step_s, 3),
        "edit30_s": round(spans[MANY], 2),
        **peaks(),
    }


def bound_area() -> None:
    """Keep the stock pipeline's condition image small too: at 1 MP it takes seconds on a CPU."""
    for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
        sized = module.calculate_dimensions
        module.calculate_dimensions = lambda _area, ratio, sized=sized: sized(AREA_PX, ratio)


def build_stock(rig: Rig) -> Any:
    """Build the stock pipeline in bfloat16, as its own library does."""
    if rig.tiny:
        bound_area()
        return build_tiny_pipeline(plus=rig.images > 1)
    import diffusers
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
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
    return getattr(diffusers, rig.pipeline)(
        **parts, scheduler=toy.scheduler, tokenizer=toy.tokenizer, processor=toy.processor
    )
