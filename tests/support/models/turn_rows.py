"""Rows of tests/bench/full_size.py about the model's turn: few steps, a full queue, changing sizes."""

import asyncio
import base64
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from retouch import wiring
from retouch.editing.ports import EngineOutput
from retouch.engine import vae
from retouch.engine.vae import SingleFrameVae
from retouch.errors import InvalidRequest
from retouch.lifecycle.warm_up import warm_up
from retouch.schema import EditRequest, EditResult
from retouch.settings import Settings
from support.fakes import URL, FakeOrigin, House, Page
from support.models.full_rig import MANY, Rig, edit, peaks, reset_peaks, since, work

STEPS, REPEATS = 4, 5
NEW_SIZES = ((7, 8), (8, 7), (6, 8), (8, 6), (5, 8))
"""Width and height in eighths of the usual side: none is warmed up."""
QUEUED, NOT_COUNTED = 20, 2
LARGE_PX = 2048
SEVERAL_BAR = 1.02
"""Of one conditioning and the other phases of one result as often as there are results."""
_PHASES = ("encode_prompts", "encode_images", "denoise", "decode")


def turn_ms(output: EngineOutput) -> float:
    """Return the milliseconds that an edit had the model."""
    return output.condition_ms + output.denoise_ms + output.vae_decode_ms


def row_few(rig: Rig, cap: str) -> dict[str, Any]:
    """Four steps without guidance: the turn less denoising, and what a size seen first adds. 0 is no cap."""
    engine = rig.take("resident" if cap in ("", "0") else cap)
    warm_up(engine, compiled=rig.compiled)

    def run(width_px: int, height_px: int) -> EngineOutput:
        asked = work(rig, STEPS, width=width_px, height=height_px, guidance=1.0)
        return edit(rig, asked)[1]

    run(rig.side_px, rig.side_px)
    repeated = [run(rig.side_px, rig.side_px) for _ in range(REPEATS)]
    eighth = rig.side_px // 8
    added_ms = []
    for wide, high in NEW_SIZES:
        first, again = (run(wide * eighth, high * eighth) for _ in range(2))
        added_ms.append(turn_ms(first) - turn_ms(again))
    once_s = [(one.condition_ms + one.vae_decode_ms) / 1000 for one in repeated]
    return {
        "plan": engine.weights.plan.name,
        "once_s": round(median(once_s), 3),
        "condition_ms": round(median(one.condition_ms for one in repeated), 1),
        "denoise_ms": round(median(one.denoise_ms for one in repeated), 1),
        "decode_ms": round(median(one.vae_decode_ms for one in repeated), 1),
        "turn_s": round(median(map(turn_ms, repeated)) / 1000, 3),
        "new_size_adds_ms": round(median(added_ms), 1),
        "new_sizes_add_ms": [round(each, 1) for each in added_ms],
        **peaks(),
    }


def row_images_n(rig: Rig, count: str) -> dict[str, Any]:
    """Several results of one request: the model's time, of one conditioning and as many times the rest.

    Of four steps without guidance, where what is not the model's weighs most, and of thirty with it.
    """
    results = int(count)
    engine = rig.take("resident")
    warm_up(engine, compiled=rig.compiled)
    found: dict[str, Any] = {"results": results}
    kinds = [(STEPS, 1.0, REPEATS), (MANY, 4.0, 1)]
    for steps, guidance, repeats in kinds[: 1 if rig.tiny else None]:
        asked = draw_request(rig, 0, steps=steps, guidance=guidance)
        several = asked.model_copy(update={"num_images": results})
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(edit_all(engine, [asked], Path(folder)))
            singles = [edit(rig, work(rig, steps, guidance=guidance))[1] for _ in range(repeats)]
            with logging_turns(engine) as log:
                asyncio.run(edit_all(engine, [several], Path(folder)))
        condition_ms = median(one.condition_ms for one in singles)
        rest_ms = median(one.denoise_ms + one.vae_decode_ms for one in singles)
        ratio = 1000 * log.wall_s(0) / (condition_ms + results * rest_ms)
        found[f"{steps} steps"] = {
            "turns_s": round(log.wall_s(0), 3),
            "condition_ms": round(condition_ms, 1),
            "rest_ms": round(rest_ms, 1),
            "ratio": round(ratio, 4),
            "ok": ratio <= SEVERAL_BAR,
        }
    return found


@dataclass
class TurnLog:
    """When each turn began and ended, and the GPU's milliseconds in each of its phases."""

    turns_s: list[tuple[float, float]] = field(default_factory=list)
    phases_ms: list[list[Callable[[], float]]] = field(default_factory=list)

    def busy_s(self, first: int) -> float:
        """Return the seconds of the phases from turn `first` on."""
        return sum(read() for turn in self.phases_ms[first:] for read in turn) / 1000

    def wall_s(self, first: int) -> float:
        """Return the seconds from the beginning of turn `first` to the end of the last."""
        return self.turns_s[-1][1] - self.turns_s[first][0]


def timed(run: Callable[..., Any]) -> tuple[Any, Callable[[], float]]:
    """Run; return the result and what reads its milliseconds, on a GPU those between two CUDA events."""
    if torch.cuda.is_available():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = run()
        end.record()
        return result, lambda: float(begin.elapsed_time(end))
    began = time.perf_counter()
    result = run()
    took_ms = 1000 * (time.perf_counter() - began)
    return result, lambda: took_ms


@contextmanager
def logging_turns(engine: Any) -> Iterator[TurnLog]:
    """Time the turns of an engine and their phases."""
    log = TurnLog()

    def time_phase(run: Callable[..., Any]) -> Callable[..., Any]:
        def phase(*given: Any, **named: Any) -> Any:
            result, read = timed(lambda: run(*given, **named))
            log.phases_ms[-1].append(read)
            return result

        return phase

    def time_turn(*given: Any, **named: Any) -> EngineOutput:
        log.phases_ms.append([])
        began = time.perf_counter()
        output: EngineOutput = type(engine).edit(engine, *given, **named)
        log.turns_s.append((began, time.perf_counter()))
        return output

    for name in _PHASES:
        setattr(engine, name, time_phase(getattr(engine, name)))
    engine.edit = time_turn
    try:
        yield log
    finally:
        for name in (*_PHASES, "edit"):
            delattr(engine, name)


def jpeg(number: int, side_px: int) -> bytes:
    """Draw a JPEG of smooth colors and some noise, of about the size of a photo's."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side_px, side_px), Image.Resampling.BICUBIC), dtype=float)
    grain = draw.normal(0, 6, (side_px, side_px, 1))
    body = io.BytesIO()
    pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(body, "JPEG", quality=90)
    return body.getvalue()


def row_queue(rig: Rig, cap: str) -> dict[str, Any]:
    """Twenty edits of four steps at once, through the editor: the share of the time that the GPU works."""
    engine = rig.take("resident" if cap in ("", "0") else cap)
    warm_up(engine, compiled=rig.compiled)
    requests = [
        draw_request(rig, number, steps=STEPS, guidance=1.0) for number in range(QUEUED + 1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(edit_all(engine, requests[:1], Path(folder)))  # this size is seen
        with logging_turns(engine) as log:
            results = asyncio.run(edit_all(engine, requests[1:], Path(folder)))
    share = log.busy_s(NOT_COUNTED) / log.wall_s(NOT_COUNTED)
    gaps_ms = [1000 * (after[0] - before[1]) for before, after in pairwise(log.turns_s)]
    times = [result.result.meta.timings_ms for result in results]
    outside_ms = [
        each.total - each.queue - each.condition - each.denoise - each.vae_decode for each in times
    ]
    return {
        "edits": len(results),
        "gpu_share": round(share, 4),
        "turn_s": round(median(end - began for began, end in log.turns_s), 3),
        "gap_ms_p50": round(median(gaps_ms), 2),
        "gap_ms_max": round(max(gaps_ms[NOT_COUNTED:]), 2),
        "outside_ms_p50": round(median(outside_ms), 1),
        "outside_ms": {
            phase: round(median(getattr(each, phase) for each in times), 1)
            for phase in ("fetch", "source_decode", "prepare", "encode", "store")
        },
        "jpeg_kib": len(jpeg(1, rig.side_px)) >> 10,
    }


def draw_request(rig: Rig, number: int, *, steps: int, guidance: float) -> EditRequest:
    """Build a request with a picture of its own."""
    picture = base64.b64encode(jpeg(number, rig.side_px)).decode()
    return EditRequest(
        image_url=f"data:image/jpeg;base64,{picture}",
        prompt="make the colors warmer and add gentle film grain, keep everything else",
        num_inference_steps=steps,
        guidance_scale=guidance,
        seed=number,
        width=rig.side_px,
        height=rig.side_px,
    )


async def edit_all(engine: Any, requests: list[EditRequest], folder: Path) -> list[EditResult]:
    """Run the requests at once through an editor with the decoder's children and a local store."""
    settings = Settings(
        _env_file=None, local_store_dir=folder, max_queue=QUEUED, reuse_results=False
    )
    async with AsyncExitStack() as exits:
        store = wiring.build_store(settings)
        editor = wiring.build_editor(settings, engine, store, exits=exits)
        return await asyncio.gather(
            *(
                editor.run(request, job_id=f"job-{number}", request_id=f"request-{number}")
                for number, request in enumerate(requests)
            )
        )


def row_sizes(rig: Rig, cap: str) -> dict[str, Any]:
    """Twenty edits of changing sizes up to the stated maximum, and one of 2048x2048. No out-of-memory."""
    engine = rig.take(cap)
    largest_px = engine.info.max_areas_px[0]
    reset_peaks()
    began = time.perf_counter()
    edits = min(20, rig.edits)
    sizes = list_sizes(largest_px, edits)
    outputs = [
        edit(rig, work(rig, 1, width=width_px, height=height_px))[1]
        for width_px, height_px in sizes
    ]
    large = asyncio.run(edit_large(engine, rig.side_px))
    return {
        "edits": edits,
        "max_area_px": largest_px,
        "largest": max(sizes, key=lambda size: size[0] * size[1]),
        "largest_ms": [round(outputs[0].condition_ms), round(outputs[0].vae_decode_ms)],
        "seconds": since(began),
        "large": large,
        **peaks(),
    }


def row_large(rig: Rig, cap: str) -> dict[str, Any]:
    """As `row_sizes`, with a plan that makes room for 2048x2048 (`MAX_RESULT_PIXELS`)."""
    rig.max_result_px = (rig.side_px if rig.tiny else LARGE_PX) ** 2
    try:
        return row_sizes(rig, cap)
    finally:
        rig.max_result_px = 0


def row_stripes(rig: Rig, cap: str) -> dict[str, Any]:
    """The autoencoder on one large image, whole and in stripes: time, memory and difference."""
    engine = rig.take(cap or "resident")
    autoencoder = SingleFrameVae(engine.weights.vae)
    device, side_px = engine.weights.device, rig.side_px
    draw = torch.manual_seed(0)
    pixels = torch.rand(1, 3, side_px, side_px * 3 // 2, generator=draw) * 2 - 1
    tokens = autoencoder.encode(pixels[..., :16, :16], device)
    shape = (1, side_px * side_px * 3 // 2 // 256, tokens.shape[-1])
    tokens = torch.randn(shape, generator=draw).to(device)
    found: dict[str, Any] = {"size": [side_px * 3 // 2, side_px]}
    made = {}
    for name, limit_px in (("whole", 1 << 30), ("stripes", 0)):
        with patch.object(vae, "WHOLE_AREA_PX", limit_px):
            for _ in range(2):
                reset_peaks()
                began = time.perf_counter()
                encoded = autoencoder.encode(pixels, device)
                encode_s, began = since(began), time.perf_counter()
                decoded = autoencoder.decode(tokens, rows=side_px // 16)
                decode_s = since(began)
        made[name] = (encoded, decoded)
        found[name] = {"encode_s": encode_s, "decode_s": decode_s, **peaks()}
    for at, name in enumerate(("encoded", "decoded")):
        whole, stripes = made["whole"][at], made["stripes"][at]
        error = (whole - stripes).square().mean()
        found[f"{name}_snr_db"] = round(
            float(10 * (whole.var() / error.clamp_min(1e-20)).log10()), 1
        )
    return found


def list_sizes(largest_px: int, count: int) -> list[tuple[int, int]]:
    """Return `count` sizes from a quarter of an area to all of it, the largest first, in changing ratios."""
    sizes = []
    for number in range(count):
        area_px = largest_px * (1 - 0.75 * (number * 7 % count) / count)
        ratio = (1.0, 0.6, 1.7, 0.8, 1.25)[number % 5]
        width_px = min(LARGE_PX, int((area_px * ratio) ** 0.5) // 16 * 16)
        height_px = min(LARGE_PX, int(area_px / width_px) // 16 * 16)
        sizes.append((width_px, height_px))
    return sizes


async def edit_large(engine: Any, side_px: int) -> str:
    """Ask for 2048x2048: return what came, and fail if a refusal came late."""
    origin = FakeOrigin({URL: Page(body=jpeg(0, side_px))})
    house = House(origin=origin, engine=engine)
    request = EditRequest(
        image_url=URL, prompt="warmer", num_inference_steps=1, width=LARGE_PX, height=LARGE_PX
    )
    try:
        await house.editor.run(request, job_id="large", request_id="large")
    except InvalidRequest:
        assert not origin.asked, "its source was fetched"
        return "refused before its source was fetched"
    finally:
        await house.editor.close()
    return "edited"
