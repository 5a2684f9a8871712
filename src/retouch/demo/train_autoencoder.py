"""Stage 1 of the trainer: the autoencoder's loop."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retouch.demo import autoencoder, build, edits
from retouch.demo.photos import Album
from retouch.demo.plan import Plan
from retouch.demo.steps import Clock, Optimizer, captured, half_precision, warm_cosine

_SAVE_EVERY_S = 60.0
_SAY_EVERY = 50
_LR, _WARM_UP = 1e-3, 200
_BATCHES = {160: 8, 320: 2, 512: 1}
"""Edge in pixels and crops a step: small steps are many steps."""
_MIX_EARLY, _MIX_LATE = (85, 15, 0), (60, 22, 18)
_QUICK = {64: 4}
_EDITED_SHARE = 0.4
_STATISTICS = ("latents_mean", "latents_std")
_Prepared = tuple[Callable[[], Tensor], Tensor, Tensor, Iterator[Tensor]]


def _edited(album: Album, count: int, edge: int, dice: random.Random) -> Tensor:
    """Cut crops, four in ten with an edit, so that edited pictures are at home in the latents too."""
    names = [*edits.EDITS, "grain", "grain", "grain", "invert", "more_contrast"]
    changes = [
        [edits.Change(dice.choice(names), dice.choice((edits.SLIGHT, edits.PLAIN, edits.STRONG)))]
        if dice.random() < _EDITED_SHARE
        else []
        for _ in range(count)
    ]
    return edits.apply_rows(album.varied(count, edge, edge), changes) * 2 - 1


def _supply(album: Album, edge: int, batch: int, dice: random.Random) -> Iterator[Tensor]:
    """Give batches without end, made sixteen at a time."""
    while True:
        made = _edited(album, 16 * batch, edge, dice)
        yield from (made[at : at + batch] for at in range(0, len(made), batch))


def _psnr_db(vae: Any, images: Tensor, device: str) -> float:
    with half_precision(device), torch.no_grad():
        again = autoencoder.decode(vae, autoencoder.encode(vae, images)).float().clamp(-1, 1)
    return float(-10 * ((again - images) / 2).square().mean((1, 2, 3)).log10().mean())


class _Steps:
    """One captured step a crop size."""

    def __init__(self, vae: Any, album: Album, optimizer: Optimizer, plan: Plan) -> None:
        self._vae, self._album, self._optimizer = vae, album, optimizer
        self._device, self._batches = plan.device, _QUICK if plan.quick else _BATCHES
        self._dice = random.Random(plan.seed)  # noqa: S311
        self._ready: dict[int, _Prepared] = {}

    def run(self, share: float) -> Tensor:
        """Train on one batch of a size drawn for this `share` of the stage; give the squared error."""
        edges = list(self._batches)
        weights = (_MIX_EARLY if share < 0.5 else _MIX_LATE)[: len(edges)]  # noqa: PLR2004
        edge = self._dice.choices(edges, weights)[0]
        if edge not in self._ready:
            self._ready[edge] = self._prepare(edge)
        step, images, noise, supply = self._ready[edge]
        images.copy_(next(supply))
        noise.normal_()
        return step()

    def _prepare(self, edge: int) -> _Prepared:
        supply = _supply(self._album, edge, self._batches[edge], self._dice)
        images = next(supply).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(len(images), build.Z, edge // 8, edge // 8, device=self._device)

        def step() -> Tensor:
            with half_precision(self._device):
                total, square = autoencoder.loss(self._vae, images, noise)
            total.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            return square

        return captured(step, self._device), images, noise, supply


@torch.no_grad()
def _set_statistics(vae: Any, album: Album, plan: Plan) -> None:
    """Note the mean and spread of the latents in the configuration, where the pipeline reads them."""
    edge, dice = 64 if plan.quick else 256, random.Random(plan.seed)  # noqa: S311
    pictures = [_edited(album, 32, edge, dice) for _ in range(8)]
    with half_precision(plan.device):
        parts = [autoencoder.encode(vae, images).float() for images in pictures]
    latents = torch.cat(parts)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


def _save(path: Path, vae: Any, optimizer: Optimizer, clock: Clock) -> None:
    held = {"vae": vae.state_dict(), "optimizer": optimizer.adam.state_dict()}
    held |= {name: getattr(vae.config, name) for name in _STATISTICS}
    torch.save({**held, "spent_s": clock.elapsed_s, "iteration": clock.iteration}, path)


def _restore(path: Path, vae: Any, optimizer: Optimizer, clock: Clock, device: str) -> None:
    saved = torch.load(path, map_location=device, weights_only=True)
    vae.load_state_dict(saved["vae"])
    vae.register_to_config(**{name: saved[name] for name in _STATISTICS})
    optimizer.adam.load_state_dict(saved["optimizer"])
    clock.spent_s, clock.iteration = saved["spent_s"], saved["iteration"]


def _loop(steps: _Steps, optimizer: Optimizer, clock: Clock, save: Callable[[], None]) -> None:
    last_save = clock.elapsed_s
    torch.backends.cudnn.benchmark = True
    while clock.share < 1:
        optimizer.set_lr(warm_cosine(clock.iteration, clock.share, _WARM_UP) + 0.005)
        square = steps.run(clock.share)
        clock.iteration += 1
        if clock.iteration % _SAY_EVERY == 0:
            clock.say(f"{float(-10 * (square / 4).log10()):.1f} dB")
        if clock.elapsed_s - last_save > _SAVE_EVERY_S:
            save()
            last_save = clock.elapsed_s
    torch.backends.cudnn.benchmark = False


def train_autoencoder(parts: build.Parts, album: Album, aside: Album, plan: Plan) -> None:
    """Train `parts.vae` for `plan.autoencoder_s` seconds, or take what an earlier run left.

    Afterwards it is frozen, and its configuration knows the mean and spread of its latents.
    """
    vae, state = parts.vae, plan.work / "autoencoder.pt"
    clock = Clock("autoencoder", plan.autoencoder_s)
    if not state.exists():
        images = album.crops(32, 96, 96).cpu() * 2 - 1
        autoencoder.start_near_linear(vae.cpu(), images)
        vae.to(plan.device)
    optimizer = Optimizer(list(vae.parameters()), _LR)
    if state.exists():
        _restore(state, vae, optimizer, clock, plan.device)
    if clock.share < 1:
        steps = _Steps(vae, album, optimizer, plan)
        _loop(steps, optimizer, clock, lambda: _save(state, vae, optimizer, clock))
        _set_statistics(vae, album, plan)
        _save(state, vae, optimizer, clock)
    vae.eval().requires_grad_(requires_grad=False)
    edge = 64 if plan.quick else 256
    images = aside.crops(8, edge, edge) * 2 - 1
    clock.say(f"{_psnr_db(vae, images, plan.device):.2f} dB on pictures kept aside", every_s=0)
