"""Stage 1 of the trainer: the autoencoder."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retouch.demo import autoencoder, build, edits
from retouch.demo.options import Cadence, TrainOptions
from retouch.demo.photos import Album
from retouch.demo.steps import Optimizer, StageClock, capture_graph, half_precision, warm_cosine

_LR, _WARM_UP = 1e-3, 200
_BATCHES = {160: 8, 320: 2, 512: 1}
"""Edge in pixels, and crops per step. Small batches allow more steps in the same time."""
_MIX_EARLY, _MIX_LATE = (85, 15, 0), (60, 22, 18)
_QUICK = {64: 4}
_EDITED_SHARE = 0.4
_STATISTICS = ("latents_mean", "latents_std")
_Step = tuple[Callable[[], Tensor], Tensor, Tensor, Iterator[Tensor]]


def _edited_crops(album: Album, count: int, edge_px: int, rng: random.Random) -> Tensor:
    """Cut crops in -1..1, 40 % of them edited: the autoencoder must reconstruct edited pictures too."""
    names = [*edits.EDITS, "grain", "grain", "grain", "invert", "more_contrast"]
    changes = [
        [edits.Change(rng.choice(names), rng.choice((edits.SLIGHT, edits.PLAIN, edits.STRONG)))]
        if rng.random() < _EDITED_SHARE
        else []
        for _ in range(count)
    ]
    return edits.apply_rows(album.augmented(count, edge_px, edge_px), changes) * 2 - 1


def _batches(album: Album, edge_px: int, batch: int, rng: random.Random) -> Iterator[Tensor]:
    """Yield batches forever, made sixteen at a time."""
    while True:
        crops = _edited_crops(album, 16 * batch, edge_px, rng)
        yield from (crops[first : first + batch] for first in range(0, len(crops), batch))


def _psnr_db(vae: Any, images: Tensor, device: str) -> float:
    with half_precision(device), torch.no_grad():
        decoded = autoencoder.decode(vae, autoencoder.encode(vae, images)).float().clamp(-1, 1)
    return float(-10 * ((decoded - images) / 2).square().mean((1, 2, 3)).log10().mean())


class _Steps:
    """One captured step per crop size."""

    def __init__(self, vae: Any, album: Album, optimizer: Optimizer, options: TrainOptions) -> None:
        self._vae, self._album, self._optimizer = vae, album, optimizer
        self._device, self._batches = options.device, _QUICK if options.quick else _BATCHES
        self._rng = random.Random(options.seed)  # noqa: S311
        self._steps: dict[int, _Step] = {}

    def run(self, share: float) -> Tensor:
        """Train on one batch of a size drawn for this `share` of the stage; return the squared error."""
        edges = list(self._batches)
        weights = (_MIX_EARLY if share < 0.5 else _MIX_LATE)[: len(edges)]  # noqa: PLR2004
        edge_px = self._rng.choices(edges, weights)[0]
        if edge_px not in self._steps:
            self._steps[edge_px] = self._build_step(edge_px)
        step, images, noise, batches = self._steps[edge_px]
        images.copy_(next(batches))
        noise.normal_()
        return step()

    def _build_step(self, edge_px: int) -> _Step:
        batches = _batches(self._album, edge_px, self._batches[edge_px], self._rng)
        images = next(batches).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(len(images), build.Z, edge_px // 8, edge_px // 8, device=self._device)

        def step() -> Tensor:
            with half_precision(self._device):
                total, square = autoencoder.loss(self._vae, images, noise)
            total.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            return square

        return capture_graph(step, self._device), images, noise, batches


@torch.no_grad()
def _set_statistics(vae: Any, album: Album, options: TrainOptions) -> None:
    """Write the mean and standard deviation of the latents to the config, where the pipeline reads them."""
    edge_px, rng = 64 if options.quick else 256, random.Random(options.seed)  # noqa: S311
    crops = [_edited_crops(album, 32, edge_px, rng) for _ in range(8)]
    with half_precision(options.device):
        encoded = [autoencoder.encode(vae, images).float() for images in crops]
    latents = torch.cat(encoded)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def _save(path: Path, vae: Any, optimizer: Optimizer, clock: StageClock) -> None:
    state = {"vae": vae.state_dict(), "optimizer": optimizer.adam.state_dict()}
    state |= {name: getattr(vae.config, name) for name in _STATISTICS}
    torch.save({**state, "spent_s": clock.elapsed_s, "iteration": clock.iteration}, path)


def _restore(path: Path, vae: Any, optimizer: Optimizer, clock: StageClock, device: str) -> None:
    saved = torch.load(path, map_location=device, weights_only=True)
    vae.load_state_dict(saved["vae"])
    vae.register_to_config(**{name: saved[name] for name in _STATISTICS})
    optimizer.adam.load_state_dict(saved["optimizer"])
    clock.spent_s, clock.iteration = saved["spent_s"], saved["iteration"]


def _loop(
    steps: _Steps,
    optimizer: Optimizer,
    clock: StageClock,
    cadence: Cadence,
    save: Callable[[], None],
) -> None:
    last_save = clock.elapsed_s
    torch.backends.cudnn.benchmark = True
    while clock.share < 1:
        optimizer.set_lr(warm_cosine(clock.iteration, clock.share, _WARM_UP) + 0.005)
        square = steps.run(clock.share)
        clock.iteration += 1
        if clock.iteration % cadence.log_every == 0:
            clock.log(f"{float(-10 * (square / 4).log10()):.1f} dB")
        if clock.elapsed_s - last_save > cadence.save_every_s:
            save()
            last_save = clock.elapsed_s
    torch.backends.cudnn.benchmark = False


def train_autoencoder(
    components: build.Components, album: Album, validation: Album, options: TrainOptions
) -> None:
    """Train `components.vae` for `options.autoencoder_s` seconds, resuming an earlier run.

    Afterwards it is frozen, and its config holds the mean and standard deviation of its latents.
    """
    vae, state = components.vae, options.work / "autoencoder.pt"
    clock = StageClock("autoencoder", options.autoencoder_s)
    if not state.exists():
        images = album.crops(32, 96, 96).cpu() * 2 - 1
        autoencoder.init_near_linear(vae.cpu(), images)
        vae.to(options.device)
    optimizer = Optimizer(list(vae.parameters()), _LR)
    if state.exists():
        _restore(state, vae, optimizer, clock, options.device)
    if clock.share < 1:
        steps = _Steps(vae, album, optimizer, options)
        save = partial(_save, state, vae, optimizer, clock)
        _loop(steps, optimizer, clock, options.cadence, save)
        _set_statistics(vae, album, options)
        save()
    vae.eval().requires_grad_(requires_grad=False)
    edge_px = 64 if options.quick else 256
    images = validation.crops(8, edge_px, edge_px) * 2 - 1
    clock.log(f"{_psnr_db(vae, images, options.device):.2f} dB on held-out pictures", every_s=0)
