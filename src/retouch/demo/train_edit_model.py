"""Stage 2 of the trainer: the text encoder and the transformer."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from retouch.demo import build
from retouch.demo.edit_model import EditModel, Size
from retouch.demo.flow import Pairs, unpack
from retouch.demo.identity_init import init_as_identity
from retouch.demo.options import TrainOptions
from retouch.demo.photos import Album
from retouch.demo.pool import PairMaker, PairPool
from retouch.demo.prompts import PromptTokenizer
from retouch.demo.steps import StageClock, warm_cosine

_LR, _FINE_TUNING_LR, _WARM_UP = 8e-4, 3e-4, 300
_FIRST_BATCHES = 96
_AVERAGE_SHARE, _EARLY_AVERAGE_SHARE, _EARLY = 0.012, 0.2, 600
# (height, width) in pixels: pairs a step, share early, share late, pairs in the pool, sources a refill
_Shapes = dict[Size, tuple[int, float, float, int, int]]
_SHAPES: _Shapes = {
    (256, 256): (32, 1.0, 0.3, 16_000, 32),
    (512, 512): (8, 0.15, 0.6, 6_000, 8),
    (384, 672): (8, 0.0, 0.1, 2_000, 8),
    (672, 384): (8, 0.0, 0.1, 2_000, 8),
}
_QUICK: _Shapes = {(64, 64): (8, 1.0, 1.0, 256, 8)}


class _Average:
    """An exponential moving average of the weights, which is what the checkpoint holds."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.values = [param.detach().clone() for param in params]

    def update(self, iteration: int) -> None:
        share = _AVERAGE_SHARE if iteration > _EARLY else _EARLY_AVERAGE_SHARE
        torch._foreach_lerp_(self.values, [param.detach() for param in self.params], share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average."""
        for param, value in zip(self.params, self.values, strict=True):
            weights = param.clone()
            param.copy_(value)
            value.copy_(weights)


class _Validation:
    """Edits of held-out pictures: PSNR to the exact edit, of the result and of the autoencoder alone."""

    def __init__(self, maker: PairMaker, size: Size) -> None:
        self._maker, self._size = maker, size
        pairs, self._exact = maker.pairs(8, *size)
        latents = (pairs.source.float(), pairs.target.float(), pairs.grain.float())
        self._pairs = Pairs(*latents, pairs.prompts)

    def _psnr_db(self, tokens: Tensor) -> float:
        latents = unpack(tokens, (self._size[0] // 16, self._size[1] // 16))
        error = self._maker.pixels(latents) - self._exact
        return float(-10 * error.square().mean((1, 2, 3)).clamp(1e-6).log10().mean())

    def report(self, model: EditModel) -> str:
        """Return both figures as text."""
        edited_db = self._psnr_db(model.sample(self._pairs, self._size))
        limit_db = self._psnr_db(self._pairs.target)
        return f"{edited_db:.2f} dB to the exact edit, limit {limit_db:.2f} dB"


def _save(path: Path, model: EditModel, average: _Average, clock: StageClock) -> None:
    state = {
        "weights": [param.detach() for param in model.params],
        "average": average.values,
        "optimizer": model.optimizer.adam.state_dict(),
        "spent_s": clock.elapsed_s,
        "iteration": clock.iteration,
    }
    torch.save(state, path)


def _restore(path: Path, model: EditModel, average: _Average, clock: StageClock) -> None:
    saved = torch.load(path, map_location=model.device, weights_only=True)
    with torch.no_grad():
        for tensors, values in ((model.params, "weights"), (average.values, "average")):
            for tensor, value in zip(tensors, saved[values], strict=True):
                tensor.copy_(value)
    model.optimizer.adam.load_state_dict(saved["optimizer"])
    clock.spent_s, clock.iteration = saved["spent_s"], saved["iteration"]


def build_pair_maker(
    components: build.Components, album: Album, options: TrainOptions
) -> PairMaker:
    """Make the maker of pairs for a checkpoint's autoencoder and tokenizer."""

    def statistic(name: str) -> Tensor:
        values = getattr(components.vae.config, name)
        return torch.tensor(values, device=options.device).view(1, -1, 1, 1)

    rng = random.Random(options.seed)  # noqa: S311
    tokenizer = PromptTokenizer(components.tokenizer)
    mean, std = statistic("latents_mean"), statistic("latents_std")
    return PairMaker(components.vae, tokenizer, album, rng, options.device, mean, std)


class _Batches:
    """Batches of a size drawn for the share of the stage, from one pool per size."""

    def __init__(self, maker: PairMaker, shapes: _Shapes) -> None:
        self._rng, self._shapes = maker.rng, shapes

        def filler(size: Size, sources: int) -> Callable[[], Pairs]:
            return lambda: maker.pairs(sources, *size)[0]

        self._pools = {size: PairPool(filler(size, row[4]), row[3]) for size, row in shapes.items()}

    def draw(self, share: float) -> tuple[Size, Pairs]:
        late = share > 0.5  # noqa: PLR2004
        weights = [row[2] if late else row[1] for row in self._shapes.values()]
        size = self._rng.choices(list(self._shapes), weights)[0]
        pool, count = self._pools[size], self._shapes[size][0]
        while pool.filled < min(_FIRST_BATCHES * count, pool.capacity):
            pool.refill()
        return size, pool.draw(count)

    def refill(self, size: Size) -> None:
        self._pools[size].refill()


def _loop(
    model: EditModel,
    average: _Average,
    validation: _Validation,
    clock: StageClock,
    options: TrainOptions,
) -> None:
    cadence = options.cadence
    batches = _Batches(model.maker, _QUICK if options.quick else _SHAPES)
    last_save = last_validation = clock.elapsed_s
    losses = torch.zeros(2, device=options.device)
    while clock.share < 1:
        model.optimizer.set_lr(warm_cosine(clock.iteration, clock.share, _WARM_UP) + 0.001)
        size, pairs = batches.draw(clock.share)
        losses.lerp_(model.train_step(size, pairs).nan_to_num(9.0), 0.01)
        clock.iteration += 1
        if clock.iteration % cadence.average_every == 0:
            average.update(clock.iteration)
        if clock.iteration % cadence.refill_every == 0:
            batches.refill(size)
        if clock.iteration % cadence.log_every == 0:
            clock.log("loss {:.4f}, target error {:.4f}".format(*losses.tolist()))
        if clock.elapsed_s - last_validation > cadence.validate_every_s:
            last_validation = clock.elapsed_s
            average.swap()
            clock.log(validation.report(model), every_s=0)
            average.swap()
        if clock.elapsed_s - last_save > cadence.save_every_s:
            last_save = clock.elapsed_s
            _save(options.work / "editor.pt", model, average, clock)


def train_edit_model(
    components: build.Components, album: Album, validation_album: Album, options: TrainOptions
) -> None:
    """Train the transformer and the text encoder for `options.editor_s` seconds; keep the average.

    Resumes an earlier run. The autoencoder must be trained already. With `options.init` the networks are
    fine-tuned from their weights, at a lower learning rate.
    """
    clock, state = StageClock("editor", options.editor_s), options.work / "editor.pt"
    if options.init is None:
        init_as_identity(components.transformer.cpu())
        components.transformer.to(options.device)
    components.text_encoder.model.visual.requires_grad_(requires_grad=False)
    lr = _LR if options.init is None else _FINE_TUNING_LR
    maker = build_pair_maker(components, album, options)
    model = EditModel(components, maker, options.device, lr=lr)
    average = _Average(model.params)
    if state.exists():
        _restore(state, model, average, clock)
    size = (64, 64) if options.quick else (256, 256)
    validation = _Validation(build_pair_maker(components, validation_album, options), size)
    _loop(model, average, validation, clock, options)
    _save(state, model, average, clock)
    average.swap()
    clock.log(validation.report(model), every_s=0)
