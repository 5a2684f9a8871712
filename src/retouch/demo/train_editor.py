"""Stage 2 of the trainer: the editor's loop."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from retouch.demo import build
from retouch.demo.editor import Editor, Size
from retouch.demo.flow import Pairs, unpack
from retouch.demo.identity_start import start_as_identity
from retouch.demo.photos import Album
from retouch.demo.plan import Plan
from retouch.demo.pool import PairMaker, Pool
from retouch.demo.steps import Clock, warm_cosine
from retouch.demo.texts import Tokens

_SAVE_EVERY_S, _CHECK_EVERY_S = 60.0, 100.0
_SAY_EVERY = 50
_WARM_UP = 300
_RENEW_EVERY, _FIRST_BATCHES = 30, 96
_AVERAGE_EVERY, _AVERAGE_SHARE, _EARLY_AVERAGE_SHARE, _EARLY = 8, 0.012, 0.2, 600
# (height, width) in pixels: pairs a step, share early, share late, pairs in the pool, sources renewed
_Shapes = dict[Size, tuple[int, float, float, int, int]]
_SHAPES: _Shapes = {
    (256, 256): (32, 1.0, 0.3, 16_000, 32),
    (512, 512): (8, 0.15, 0.6, 6_000, 8),
    (384, 672): (8, 0.0, 0.1, 2_000, 8),
    (672, 384): (8, 0.0, 0.1, 2_000, 8),
}
_QUICK: _Shapes = {(64, 64): (8, 1.0, 1.0, 256, 8)}


class _Average:
    """A moving average of the weights, which is what is kept."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.values = [param.detach().clone() for param in params]

    def follow(self, iteration: int) -> None:
        share = _AVERAGE_SHARE if iteration > _EARLY else _EARLY_AVERAGE_SHARE
        torch._foreach_lerp_(self.values, [param.detach() for param in self.params], share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average."""
        for param, value in zip(self.params, self.values, strict=True):
            held = param.clone()
            param.copy_(value)
            value.copy_(held)


class _Validation:
    """Edits of pictures kept aside: how far the result is, and the autoencoder alone, from the exact edit."""

    def __init__(self, maker: PairMaker, size: Size) -> None:
        self._maker, self._size = maker, size
        pairs, self._wanted = maker.pairs(8, *size)
        latents = (pairs.source.float(), pairs.target.float(), pairs.grain.float())
        self._pairs = Pairs(*latents, pairs.texts)

    def _db(self, tokens: Tensor) -> float:
        latents = unpack(tokens, (self._size[0] // 16, self._size[1] // 16))
        error = self._maker.pixels(latents) - self._wanted
        return float(-10 * error.square().mean((1, 2, 3)).clamp(1e-6).log10().mean())

    def report(self, editor: Editor) -> str:
        """Say both in dB."""
        made = self._db(editor.sample(self._pairs, self._size))
        return f"{made:.2f} dB to the exact edit, limit {self._db(self._pairs.target):.2f} dB"


def _save(path: Path, editor: Editor, average: _Average, clock: Clock) -> None:
    held = {
        "weights": [param.detach() for param in editor.params],
        "average": average.values,
        "optimizer": editor.optimizer.adam.state_dict(),
        "spent_s": clock.elapsed_s,
        "iteration": clock.iteration,
    }
    torch.save(held, path)


def _restore(path: Path, editor: Editor, average: _Average, clock: Clock) -> None:
    saved = torch.load(path, map_location=editor.device, weights_only=True)
    with torch.no_grad():
        for kept, values in ((editor.params, "weights"), (average.values, "average")):
            for mine, value in zip(kept, saved[values], strict=True):
                mine.copy_(value)
    editor.optimizer.adam.load_state_dict(saved["optimizer"])
    clock.spent_s, clock.iteration = saved["spent_s"], saved["iteration"]


def _pair_maker(parts: build.Parts, album: Album, plan: Plan) -> PairMaker:
    def statistic(name: str) -> Tensor:
        return torch.tensor(getattr(parts.vae.config, name), device=plan.device).view(1, -1, 1, 1)

    dice = random.Random(plan.seed)  # noqa: S311
    tokens = Tokens(parts.tokenizer)
    mean, std = statistic("latents_mean"), statistic("latents_std")
    return PairMaker(parts.vae, tokens, album, dice, plan.device, mean, std)


class _Supply:
    """Batches of a size drawn for the share of the stage, out of one pool a size."""

    def __init__(self, maker: PairMaker, shapes: _Shapes) -> None:
        self._dice, self._shapes = maker.dice, shapes

        def filler(size: Size, sources: int) -> Callable[[], Pairs]:
            return lambda: maker.pairs(sources, *size)[0]

        self._pools = {size: Pool(filler(size, row[4]), row[3]) for size, row in shapes.items()}

    def draw(self, share: float) -> tuple[Size, Pairs]:
        late = share > 0.5  # noqa: PLR2004
        weights = [row[2] if late else row[1] for row in self._shapes.values()]
        size = self._dice.choices(list(self._shapes), weights)[0]
        pool, count = self._pools[size], self._shapes[size][0]
        while pool.filled < min(_FIRST_BATCHES * count, pool.capacity):
            pool.renew()
        return size, pool.draw(count)

    def renew(self, size: Size) -> None:
        self._pools[size].renew()


def _loop(
    editor: Editor, average: _Average, validation: _Validation, clock: Clock, plan: Plan
) -> None:
    supply = _Supply(editor.maker, _QUICK if plan.quick else _SHAPES)
    last_save = last_check = clock.elapsed_s
    running = torch.zeros(2, device=plan.device)
    while clock.share < 1:
        editor.optimizer.set_lr(warm_cosine(clock.iteration, clock.share, _WARM_UP) + 0.001)
        size, pairs = supply.draw(clock.share)
        running.lerp_(editor.run(size, pairs).nan_to_num(9.0), 0.01)
        clock.iteration += 1
        if clock.iteration % _AVERAGE_EVERY == 0:
            average.follow(clock.iteration)
        if clock.iteration % _RENEW_EVERY == 0:
            supply.renew(size)
        if clock.iteration % _SAY_EVERY == 0:
            clock.say("loss {:.4f}, target off by {:.4f}".format(*running.tolist()))
        if clock.elapsed_s - last_check > _CHECK_EVERY_S:
            last_check = clock.elapsed_s
            average.swap()
            clock.say(validation.report(editor), every_s=0)
            average.swap()
        if clock.elapsed_s - last_save > _SAVE_EVERY_S:
            last_save = clock.elapsed_s
            _save(plan.work / "editor.pt", editor, average, clock)


def train_editor(parts: build.Parts, album: Album, aside: Album, plan: Plan) -> None:
    """Train the transformer and the text encoder for `plan.editor_s` seconds, then keep the average.

    Takes up what an earlier run left; the autoencoder is to be trained.
    """
    clock, state = Clock("editor", plan.editor_s), plan.work / "editor.pt"
    start_as_identity(parts.transformer.cpu())
    parts.transformer.to(plan.device)
    parts.text_encoder.model.visual.requires_grad_(requires_grad=False)
    editor = Editor(parts, _pair_maker(parts, album, plan), plan.device)
    average = _Average(editor.params)
    if state.exists():
        _restore(state, editor, average, clock)
    size = (64, 64) if plan.quick else (256, 256)
    validation = _Validation(_pair_maker(parts, aside, plan), size)
    _loop(editor, average, validation, clock, plan)
    _save(state, editor, average, clock)
    average.swap()
    clock.say(validation.report(editor), every_s=0)
