"""The trainer of the demo checkpoint: both stages, one after the other.

A stage lasts as long as it is told, over all its runs: the seed settles the start and the order of all
draws, but how many steps fit into the time is up to the machine.
"""

import random

import torch

from retouch.demo import build, photos
from retouch.demo.plan import Plan
from retouch.demo.train_autoencoder import train_autoencoder
from retouch.demo.train_editor import train_editor

_SMALL = build.Size(base=8, layers=3, heads=6)


def _open_albums(plan: Plan) -> tuple[photos.Album, photos.Album]:
    """Give the pictures to train on and the few kept aside."""
    plan.pictures.mkdir(parents=True, exist_ok=True)
    if not any(plan.pictures.glob("*.jpg")):
        photos.fetch(plan.pictures)
    paths = sorted(plan.pictures.glob("*.jpg"))
    random.Random(plan.seed).shuffle(paths)  # noqa: S311
    aside = max(2, len(paths) // 40)
    return (
        photos.Album.load(paths[aside:], plan.device),
        photos.Album.load(paths[:aside], plan.device),
    )


def train(plan: Plan) -> None:
    """Train as `plan` says; the checkpoint folder is written after each stage."""
    torch.manual_seed(plan.seed)
    torch.set_flush_denormal(True)  # silent branches have gradients that make a CPU crawl
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plan.work.mkdir(parents=True, exist_ok=True)
    album, aside = _open_albums(plan)
    parts = build.build(_SMALL if plan.quick else build.Size())
    for model in (parts.vae, parts.transformer, parts.text_encoder):
        model.to(plan.device)
    train_autoencoder(parts, album, aside, plan)
    build.save(parts, plan.out)
    train_editor(parts, album, aside, plan)
    build.save(parts, plan.out)
