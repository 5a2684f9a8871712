"""The trainer of the demo checkpoint: the autoencoder, then the text encoder and transformer.

Each stage lasts a given time, summed over all its runs. The seed fixes the initial weights and the
order of all random draws; how many steps fit into the time depends on the machine.
"""

import random

import torch

from retouch.demo import build, photos
from retouch.demo.options import TrainOptions
from retouch.demo.train_adapter import train_adapter
from retouch.demo.train_autoencoder import train_autoencoder
from retouch.demo.train_edit_model import train_edit_model

_QUICK = build.ModelSize(base=8, layers=3, heads=6)


def _load_albums(options: TrainOptions) -> tuple[photos.Album, photos.Album]:
    """Return the training pictures and the few held out for validation."""
    options.pictures.mkdir(parents=True, exist_ok=True)
    if not any(options.pictures.glob("*.jpg")):
        photos.fetch(options.pictures)
    paths = sorted(options.pictures.glob("*.jpg"))
    random.Random(options.seed).shuffle(paths)  # noqa: S311
    held_out = max(2, len(paths) // 40)
    return (
        photos.Album.load(paths[held_out:], options.device),
        photos.Album.load(paths[:held_out], options.device),
    )


def _components(options: TrainOptions) -> build.Components:
    if options.init is None:
        return build.build(_QUICK if options.quick else build.ModelSize())
    components = build.load_components(options.init)
    components.vae.eval().requires_grad_(requires_grad=False)
    return components


def train(options: TrainOptions) -> None:
    """Run both stages, or the second alone on `options.init`; each writes the checkpoint directory.

    With `options.adapter` only a LoRA adapter to `options.init` is trained and written.
    """
    torch.manual_seed(options.seed)
    torch.set_flush_denormal(True)  # near-zero branches get denormal gradients, slow on a CPU
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    options.work.mkdir(parents=True, exist_ok=True)
    album, validation = _load_albums(options)
    components = _components(options)
    for network in (components.vae, components.transformer, components.text_encoder):
        network.to(options.device)
    if options.adapter:
        train_adapter(components, album, validation, options)
        return
    if options.init is None:
        train_autoencoder(components, album, validation, options)
        build.save(components, options.out)
    train_edit_model(components, album, validation, options)
    build.save(components, options.out)
