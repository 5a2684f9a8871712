"""The parts of `demo_quality.py`: each measures one aspect of the model and returns a table."""

import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_prompts import (
    FEW,
    OUT_OF_SCOPE,
    PAIRS,
    PROMPTS,
    SIZES,
    THREE,
)
from demo_strength import Bench, grain_share, measure_ladders, measure_slight
from demo_tables import Table
from support.demo import measures

from retouch.demo.edits import Change


def _against(
    bench: Bench, photo: measures.Pixels, result: measures.Pixels, wanted: measures.Pixels
) -> list[float]:
    """Return the PSNR to the exact edit of the result, the untouched photo and the limit."""
    return [measures.psnr_db(picture, wanted) for picture in (result, photo, bench.limit(wanted))]


def measure_edits(bench: Bench) -> Table:
    """Measure every edit at its plain amount, on all photographs."""
    columns = ["edit", "prompt", "result", "untouched", "limit", "median gain", *bench.photos]
    table = Table(f"Every edit, {bench.steps} steps, dB to the exact edit", columns)
    rows: dict[str, Any] = {}
    moved: dict[str, float] = {}
    for edit, prompt in PROMPTS.items():
        if bench.only and edit not in bench.only:
            continue
        changes: list[float] = []
        found: list[list[float]] = []
        for photo in bench.photos.values():
            result, wanted = bench.edit(photo, prompt), bench.exact(photo, [Change(edit)])
            found.append(_against(bench, photo, result, wanted))
            if edit in measures.DIRECTIONS:
                changes.append(measures.changed_by(edit, photo, result))
        row = np.array(found)
        if edit == "unchanged":
            row[:, 1] = np.nan  # the untouched photo is the exact edit
        rows[edit] = row
        moved |= {edit: float(np.median(changes))} if changes else {}
        gain = np.median(row[:, 0] - row[:, 1])
        table.add(edit.replace("_", " "), prompt, *row.mean(0), gain, *row[:, 0])
    means = [row.mean(0) for edit, row in rows.items() if edit not in measures.APART]
    table.add("mean but blur and grain", "", *np.nanmean(means, 0), "", *("" for _ in bench.photos))
    table.verdicts = measures.judge_edits(rows, moved)
    return table


def measure_grain(bench: Bench) -> Table:
    """Measure the grain's energy, and its correlation with the photo's texture and with another seed."""
    columns = ["photo", "energy", "with the photo", "with another seed", "energy if unchanged"]
    table = Table(f"Film grain, {bench.steps} steps", columns)
    found = []
    changes = [Change("grain")]
    for name, photo in bench.photos.items():
        smooth = bench.limit(photo)
        result, other = (bench.edit(photo, PROMPTS["grain"], seed=seed) for seed in (3, 4))
        one, two = (measures.added_texture(smooth, picture) for picture in (result, other))
        unchanged = bench.edit(photo, PROMPTS["unchanged"])
        row = [
            grain_share(bench, photo, result, changes),
            measures.correlate(one, measures.fine(photo)),
            measures.correlate(one, two),
            grain_share(bench, photo, unchanged, changes),
        ]
        found.append(row)
        table.add(name, *row, digits=2)
    mean = np.mean(found, 0).tolist()
    table.add("mean", *mean, digits=2)
    least, most = measures.GRAIN_SHARES
    table.verdicts = [
        (least <= mean[0] <= most, f"energy {mean[0]:.2f} of the exact grain's, {least} to {most}"),
        (
            abs(mean[1]) <= 0.2,
            f"correlation with the photo's own texture {mean[1]:.2f}, at most 0.2",
        ),
        (abs(mean[2]) <= 0.2, f"correlation with another seed's grain {mean[2]:.2f}, at most 0.2"),
    ]
    return table


def measure_wordings(bench: Bench) -> Table:
    """Measure the thirty wordings of `wordings.json`."""
    wordings = json.loads((Path(__file__).parent / "wordings.json").read_text())["wordings"]
    title = f"Thirty wordings never trained on, {bench.steps} steps"
    table = Table(title, ["wording", "met", "closer by dB", "missed bars"])
    met = 0
    for wording in wordings:
        changes = [Change(name, amount) for name, amount in wording["edits"]]
        closer: list[float] = []
        found: dict[str, list[float]] = {name: [] for name in wording["changes"]}
        for photo in bench.photos.values():
            result, wanted = bench.edit(photo, wording["wording"]), bench.exact(photo, changes)
            closer.append(measures.psnr_db(result, wanted) - measures.psnr_db(photo, wanted))
            for name, values in found.items():
                values.append(_change(bench, name, photo, result, changes))
        means = {name: float(np.mean(values)) for name, values in found.items()}
        faults = measures.find_faults(wording, means, float(np.mean(closer)))
        met += not faults
        gain = "" if {"grain", "psnr"} & set(found) else f"{np.mean(closer):.1f}"
        table.add(wording["wording"], "no" if faults else "yes", gain, "; ".join(faults))
    table.verdicts = [(met >= 24, f"{met} of {len(wordings)} meet their bars, at least 24")]
    return table


def _change(
    bench: Bench,
    name: str,
    photo: measures.Pixels,
    result: measures.Pixels,
    changes: Sequence[Change],
) -> float:
    if name == "grain":
        return grain_share(bench, photo, result, changes)
    if name == "psnr":
        return measures.psnr_db(result, photo)
    return measures.MEASURES[name](result) - measures.MEASURES[name](photo)


def measure_pairs(bench: Bench) -> Table:
    """Measure two edits in one instruction."""
    columns = ["prompt", "result", "untouched", "limit", "grain energy"]
    table = Table(f"Two edits at once, {bench.steps} steps, dB to the exact edits", columns)
    for prompt, changes in PAIRS.items():
        found, grain = [], []
        for photo in bench.photos.values():
            result = bench.edit(photo, prompt)
            found.append(_against(bench, photo, result, bench.exact(photo, changes)))
            if changes[-1].name == "grain":
                grain.append(grain_share(bench, photo, result, changes))
        table.add(prompt, *np.mean(found, 0), f"{np.mean(grain):.2f}" if grain else "")
    return table


def measure_out_of_scope(bench: Bench) -> Table:
    """Measure instructions it was not trained on: the photo should stay unchanged."""
    title = f"Instructions it was not trained on: dB to the photo, {bench.steps} steps"
    table = Table(title, ["prompt", *FEW])
    limits = [measures.psnr_db(bench.limit(bench.photos[name]), bench.photos[name]) for name in FEW]
    for prompt in (PROMPTS["unchanged"], *OUT_OF_SCOPE):
        photos = [bench.photos[name] for name in FEW]
        table.add(prompt, *(measures.psnr_db(bench.edit(photo, prompt), photo) for photo in photos))
    table.add("(the autoencoder alone)", *limits)
    return table


def _three(bench: Bench, photos: Sequence[measures.Pixels], **how: Any) -> list[float]:
    """Return the PSNR to the exact edit of each of `THREE`, mean over photographs, then their mean."""
    means = [
        float(
            np.mean(
                [
                    measures.psnr_db(
                        bench.edit(photo, PROMPTS[edit], **how), bench.exact(photo, [Change(edit)])
                    )
                    for photo in photos
                ]
            )
        )
        for edit in THREE
    ]
    return [*means, float(np.mean(means))]


def measure_steps(bench: Bench) -> Table:
    """Measure quality and grain for several step counts."""
    columns = ["steps", *THREE, "mean", "grain energy"]
    table = Table(f"Steps, dB to the exact edit, {' and '.join(FEW)}", columns)
    photos = [bench.photos[name] for name in FEW]
    for steps in (1, 2, 4, 8, 20):
        found = _three(bench, photos, steps=steps)
        shares = []
        for photo in photos:
            result = bench.edit(photo, PROMPTS["grain"], steps=steps)
            shares.append(grain_share(bench, photo, result, [Change("grain")]))
        table.add(str(steps), *found, f"{np.mean(shares):.2f}")
    return table


def measure_time(bench: Bench) -> Table:
    """Measure the time and memory of an edit; needs an idle machine."""
    title = f"Time on a CPU, {torch.get_num_threads()} threads, 512x512"
    table = Table(title, ["steps", "median seconds", "peak memory so far, GB"])
    photo = bench.photos[FEW[0]]
    bench.edit(photo, PROMPTS["warmer"])  # warm-up
    for steps in (2, 4, 8, 20):
        took_s = []
        for _ in range(3):
            began_s = time.perf_counter()
            bench.edit(photo, PROMPTS["warmer"], steps=steps)
            took_s.append(time.perf_counter() - began_s)
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        table.add(str(steps), statistics.median(took_s), f"{peak_gb:.2f}")
    return table


def measure_guidance(bench: Bench) -> Table:
    """Measure classifier-free guidance, which training did not include."""
    title = f"Guidance, dB to the exact edit, {' and '.join(FEW)}, {bench.steps} steps"
    table = Table(title, ["guidance_scale", *THREE, "mean"])
    for scale in (1.0, 2.0, 4.0):
        photos = [bench.photos[name] for name in FEW]
        table.add(f"{scale:g}", *_three(bench, photos, guidance=scale))
    return table


def measure_sizes(bench: Bench) -> Table:
    """Measure other sizes and aspect ratios, each with its limit."""
    columns = ["width x height", *THREE, "mean", "limit"]
    title = f"Sizes, dB to the exact edit, {' and '.join(FEW)}, {bench.steps} steps"
    table = Table(title, columns)
    for size in ((512, 512), *SIZES):
        photos = [bench.photo(name, *size) for name in FEW]
        wanted = [bench.exact(photo, [Change(edit)]) for photo in photos for edit in THREE]
        limit = np.mean([measures.psnr_db(bench.limit(picture), picture) for picture in wanted])
        table.add("{}x{}".format(*size), *_three(bench, photos), float(limit))
    return table


PARTS: dict[str, Callable[[Any], Table]] = {
    "edits": measure_edits,
    "grain": measure_grain,
    "wordings": measure_wordings,
    "pairs": measure_pairs,
    "slight": measure_slight,
    "ladders": measure_ladders,
    "out_of_scope": measure_out_of_scope,
    "steps": measure_steps,
    "time": measure_time,
    "guidance": measure_guidance,
    "sizes": measure_sizes,
}
