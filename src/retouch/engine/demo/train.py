"""The trainer of the demo checkpoint: `python -m retouch train-demo`.

Seeded, resumable (run it again with the same `--work`), and told how long it may take; one H100 needs
about 25 minutes for the shipped weights.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retouch.engine.demo import build, photos
from retouch.engine.demo.train_autoencoder import train_autoencoder
from retouch.engine.demo.train_editor import train_editor

SMALL = build.Size(base=8, layers=3, heads=6)
"""For a quick run through everything on a CPU."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train, where and for how long."""

    pictures: Path
    work: Path
    out: Path
    start: Path | None
    device: str
    seed: int
    autoencoder_s: float
    words_s: float
    editor_s: float
    quick: bool
    compiled: bool
    half: bool
    lr: float


def _plan(argv: Sequence[str] | None) -> Plan:
    parser = argparse.ArgumentParser(prog="retouch train-demo", description=__doc__)
    parser.add_argument(
        "--pictures", type=Path, default=Path(".demo/pictures"), help="fetched if empty"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(".demo/work"), help="state, to resume from"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".demo/checkpoint"), help="the new checkpoint"
    )
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder-s", type=float, default=330, help="seconds for stage 1")
    parser.add_argument("--words-s", type=float, default=15, help="seconds for the words")
    parser.add_argument("--editor-s", type=float, default=1000, help="seconds for stage 2")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that it runs")
    parser.add_argument("--compiled", action="store_true", help="compile the transformer's blocks")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--half", action="store_true", help="bf16")
    return Plan(**vars(parser.parse_args(argv)))


def _parts(plan: Plan) -> build.Parts:
    parts = (
        build.load(plan.start) if plan.start else build.build(SMALL if plan.quick else build.Size())
    )
    for model in (parts.vae, parts.transformer, parts.text_encoder):
        model.to(plan.device)
    return parts


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the arguments say; the checkpoint folder is written after each stage."""
    plan = _plan(argv)
    torch.manual_seed(plan.seed)
    torch.set_flush_denormal(True)  # silent branches have gradients that make a CPU crawl
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plan.work.mkdir(parents=True, exist_ok=True)
    plan.pictures.mkdir(parents=True, exist_ok=True)
    paths = sorted(plan.pictures.glob("*.jpg"))
    if not paths:
        photos.fetch(plan.pictures)
        paths = sorted(plan.pictures.glob("*.jpg"))
    random.Random(plan.seed).shuffle(paths)  # noqa: S311
    kept = max(2, len(paths) // 40)
    album = photos.Album.load(paths[kept:], plan.device)
    check = photos.Album.load(paths[:kept], plan.device)
    parts = _parts(plan)
    stages: tuple[Any, ...] = (train_autoencoder, train_editor)
    for stage in stages:
        stage(parts, album, check, plan)
        build.save(parts, plan.out)
    return 0
