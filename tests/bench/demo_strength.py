"""The parts of `demo_quality.py` that measure how strong an edit is."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from demo_prompts import FEW, LADDERS, RUNGS, SLIGHT_PROMPTS
from demo_tables import Table
from support.demo import measures

from retouch.demo.edits import Change


class Bench(Protocol):
    """`demo_quality.Bench`, as the parts use it."""

    steps: int
    only: Sequence[str]
    photos: dict[str, measures.Pixels]

    def photo(self, name: str, width_px: int, height_px: int) -> measures.Pixels: ...
    def edit(
        self,
        photo: measures.Pixels,
        prompt: str,
        *,
        seed: int = 3,
        steps: int = 0,
        guidance: float = 1.0,
    ) -> measures.Pixels: ...
    def limit(self, photo: measures.Pixels) -> measures.Pixels: ...
    def exact(self, photo: measures.Pixels, changes: Sequence[Change]) -> measures.Pixels: ...


def grain_share(
    bench: Bench, photo: measures.Pixels, result: measures.Pixels, changes: Sequence[Change]
) -> float:
    """Return the energy of the grain in `result` as a share of the exact grain's.

    The grain is the texture that `result` has and the autoencoder's reconstruction of the same edit
    without grain lacks. So detail that the autoencoder loses does not count.
    """
    smooth = bench.exact(photo, [change for change in changes if change.name != "grain"])
    grainy = bench.exact(photo, changes)
    added = measures.added_texture(bench.limit(smooth), result)
    return measures.energy(added) / measures.energy(measures.added_texture(smooth, grainy))


def measure_slight(bench: Bench) -> Table:
    """Measure the words that mean slight: the change as a share of the exact slight edit's."""
    title = f"Slight edits: share of the exact slight change, {bench.steps} steps"
    table = Table(title, ["prompt", "edit", "mean share", *bench.photos])
    least, most = measures.SLIGHT_SHARES
    for prompt, changes in SLIGHT_PROMPTS.items():
        results = {name: bench.edit(photo, prompt) for name, photo in bench.photos.items()}
        for change in changes:
            shares = [
                grain_share(bench, bench.photos[name], result, changes)
                if change.name == "grain"
                else _share(bench, change, bench.photos[name], result)
                for name, result in results.items()
            ]
            mean = float(np.mean(shares))
            table.add(prompt, change.name, mean, *shares, digits=2)
            text = f"{prompt}: {change.name} {mean:.2f}, {least} to {most}"
            table.verdicts.append((least <= mean <= most, text))
    return table


def _share(bench: Bench, change: Change, photo: measures.Pixels, result: measures.Pixels) -> float:
    exact = measures.changed_by(change.name, photo, bench.exact(photo, [change]))
    return measures.changed_by(change.name, photo, result) / exact


def measure_ladders(bench: Bench) -> Table:
    """Measure slight, plain and strong amounts of each edit."""
    columns = ["edit", "prompt", "slightly", "plain", "strongly"]
    title = f"Strength: share of the plain exact change, {bench.steps} steps, {' and '.join(FEW)}"
    table = Table(title, columns)
    for edit, form in LADDERS.items():
        shares = np.zeros((len(FEW), len(RUNGS)))
        for row, name in enumerate(FEW):
            photo = bench.photos[name]
            plain = [Change(edit)]
            for column, rung in enumerate(RUNGS):
                result = bench.edit(photo, form.format(**rung))
                if edit == "grain":
                    shares[row, column] = grain_share(bench, photo, result, plain)
                else:
                    shares[row, column] = _share(bench, plain[0], photo, result)
        mean = shares.mean(0)
        asked = form.format(adverb="(slightly) ", adjective="(light) ")
        table.add(edit.replace("_", " "), asked, *mean, digits=2)
        table.verdicts.append(
            (bool(mean[0] < mean[1] < mean[2]), f"{edit}: slight < plain < strong")
        )
    return table
