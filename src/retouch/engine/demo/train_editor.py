"""Stage 2 of the trainer: the editor's loop."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retouch.engine.demo import autoencoder, build
from retouch.engine.demo import editor_model as em
from retouch.engine.demo.photos import Album
from retouch.engine.demo.pool import Maker, Pool
from retouch.engine.demo.steps import Clock, Optimizer, captured, half_precision, warm_cosine
from retouch.engine.demo.train_words import train_words

_SAVE_EVERY_S, _CHECK_EVERY_S = 60.0, 100.0
_LR = 8e-4
_RENEW_EVERY, _FIRST_BATCHES = 30, 96
_EMA_EVERY, _EMA_SHARE = 8, 0.012
# (height, width) in pixels: pairs a step, share early, share late, pairs in the pool, sources renewed
_SHAPES = {
    (256, 256): (32, 1.0, 0.3, 16_000, 32),
    (512, 512): (8, 0.15, 0.6, 6_000, 8),
    (384, 672): (8, 0.0, 0.1, 2_000, 8),
    (672, 384): (8, 0.0, 0.1, 2_000, 8),
}
_QUICK = {(64, 64): (8, 1.0, 1.0, 256, 8)}


class _Average:
    """A moving average of the weights, which is what is kept."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.values = [param.detach().clone() for param in params]

    def follow(self, iteration: int) -> None:
        share = _EMA_SHARE if iteration > 600 else 0.2  # noqa: PLR2004
        torch._foreach_lerp_(self.values, [param.detach() for param in self.params], share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average."""
        for param, value in zip(self.params, self.values, strict=True):
            held = param.clone()
            param.copy_(value)
            value.copy_(held)


class Editor:
    """The model in training: one captured step a picture size."""

    def __init__(self, parts: build.Parts, maker: Maker, plan: Any) -> None:
        self.transformer, self.text_encoder = parts.transformer, parts.text_encoder
        self.language = parts.text_encoder.model.language_model
        self.device, self.maker = plan.device, maker
        self.params = [*self.transformer.parameters(), *self.language.parameters()]
        self.optimizer = Optimizer(self.params, plan.lr)
        self.half = plan.half
        self.block: Any = em.block_forward
        if plan.compiled:
            torch._dynamo.config.recompile_limit = 64  # noqa: SLF001 - a version for each picture size
            self.block = torch.compile(em.block_forward, dynamic=False)
        self.weights = self._channel_weights()
        self._words = torch.arange(em.TEXT_TOKENS, device=self.device)
        self._ready: dict[tuple[int, int], tuple[Callable[[], Tensor], list[Tensor]]] = {}

    def _channel_weights(self) -> Tensor:
        edge = 64 if self.device == "cpu" else 256
        latents = self.maker.latents(self.maker.album.varied(8, edge, edge))
        raw = latents * self.maker.std + self.maker.mean

        def decode(latents: Tensor) -> Tensor:
            return autoencoder.decode(self.maker.vae, latents)

        return em.channel_weights(decode, raw, self.maker.std.flatten())

    def predict(self, pairs: em.Pairs, noisy: Tensor, sigma: Tensor, turns: Any) -> Tensor:
        """Predict the velocity for pairs at a noise level."""
        texts = pairs.texts
        with half_precision(self.device if self.half else "cpu"):
            states = em.embed(self.text_encoder, texts.ids, texts.positions)
            return em.velocity(
                *(self.transformer, noisy, pairs.source, sigma, states),
                mask=self._words < texts.lengths[:, None],
                turns=turns,
                run=self.block if torch.is_grad_enabled() else em.block_forward,
            ).float()

    def run(self, size: tuple[int, int], pairs: em.Pairs) -> Tensor:
        """Train on one batch: (loss, squared error of the target guessed)."""
        sigma = em.draw_sigmas(len(pairs.source), self.device)
        noise = em.draw_noise(pairs.grain)
        texts = pairs.texts
        fresh = [
            pairs.source,
            pairs.target,
            texts.ids,
            texts.positions,
            texts.lengths,
            sigma,
            noise,
        ]
        if size not in self._ready:
            self._ready[size] = self._prepare(size, fresh)
        step, buffers = self._ready[size]
        for buffer, value in zip(buffers, fresh, strict=True):
            buffer.copy_(value)
        return step()

    def _prepare(
        self, size: tuple[int, int], fresh: list[Tensor]
    ) -> tuple[Callable[[], Tensor], list[Tensor]]:
        buffers = [value.clone() for value in fresh]
        source, target, ids, positions, lengths, sigma, noise = buffers
        pairs = em.Pairs(source, target, noise, em.Texts(ids, positions, lengths))
        turns = em.rotations(self.transformer, (size[0] // 16, size[1] // 16), self.device)

        def step() -> Tensor:
            level = sigma.view(-1, 1, 1)
            guess = self.predict(pairs, (1 - level) * target + level * noise, sigma, turns)
            error = (guess - (noise - target)).square()
            loss = (self.weights * error).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            off = (error.mean((1, 2)) * sigma**2).mean()
            return torch.stack((loss.detach(), off.detach()))

        return captured(step, self.device), buffers

    @torch.no_grad()
    def sample(self, pairs: em.Pairs, size: tuple[int, int], steps: int = 4) -> Tensor:
        """Edit by Euler steps from noise: packed latents (b, s, 64) at size / 8."""
        turns = em.rotations(self.transformer, (size[0] // 16, size[1] // 16), self.device)
        noisy = torch.randn_like(pairs.target)
        for step in range(steps, 0, -1):
            sigma = noisy.new_full((len(noisy),), step / steps)
            noisy = noisy - self.predict(pairs, noisy, sigma, turns) / steps
        return noisy


def _unpack(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `pack`: (b, s, 4 z) -> (b, z, h, w)."""
    height, width = size[0] // 16, size[1] // 16
    cells = tokens.view(len(tokens), height, width, -1, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * height, 2 * width)


class _Check:
    """Edits of pictures kept aside: how far the result is, and the autoencoder alone, from the exact edit."""

    def __init__(self, maker: Maker, size: tuple[int, int]) -> None:
        self.maker, self.size = maker, size
        self.pairs, self.wanted = maker.pairs(8, *size)
        self.pairs = em.Pairs(
            self.pairs.source.float(), self.pairs.target.float(), self.pairs.grain.float(), self.pairs.texts
        )

    def _db(self, tokens: Tensor) -> float:
        error = self.maker.pixels(_unpack(tokens, self.size)) - self.wanted
        return float(-10 * error.square().mean((1, 2, 3)).clamp(1e-6).log10().mean())

    def report(self, editor: Editor) -> str:
        """Say both in dB."""
        made = self._db(editor.sample(self.pairs, self.size))
        return f"{made:.2f} dB to the exact edit, limit {self._db(self.pairs.target):.2f} dB"


def _save(path: Any, editor: Editor, average: _Average, clock: Clock) -> None:
    held = {
        "weights": [param.detach() for param in editor.params],
        "average": average.values,
        "optimizer": editor.optimizer.adam.state_dict(),
        "spent_s": clock.elapsed_s,
        "iteration": clock.iteration,
    }
    torch.save(held, path)


def _restore(path: Any, editor: Editor, average: _Average, clock: Clock) -> None:
    saved = torch.load(path, map_location=editor.device, weights_only=True)
    with torch.no_grad():
        for kept, values in ((editor.params, "weights"), (average.values, "average")):
            for mine, value in zip(kept, saved[values], strict=True):
                mine.copy_(value)
    editor.optimizer.adam.load_state_dict(saved["optimizer"])
    clock.spent_s, clock.iteration = saved["spent_s"], saved["iteration"]


def _maker(parts: build.Parts, album: Album, plan: Any) -> Maker:
    def statistic(name: str) -> Tensor:
        return torch.tensor(getattr(parts.vae.config, name), device=plan.device).view(1, -1, 1, 1)

    dice = random.Random(plan.seed)  # noqa: S311
    tokens = em.Tokens(parts.tokenizer)
    mean, std = statistic("latents_mean"), statistic("latents_std")
    return Maker(parts.vae, tokens, album, dice, plan.device, mean, std)


def _pools(
    maker: Maker, shapes: dict[tuple[int, int], tuple[Any, ...]]
) -> dict[tuple[int, int], Pool]:
    def filler(size: tuple[int, int], sources: int) -> Callable[[], em.Pairs]:
        return lambda: maker.pairs(sources, *size)[0]

    return {size: Pool(filler(size, row[4]), row[3]) for size, row in shapes.items()}


def _loop(editor: Editor, average: _Average, check: _Check, clock: Clock, plan: Any) -> None:
    shapes = _QUICK if plan.quick else _SHAPES
    pools = _pools(editor.maker, shapes)
    state, last_save, last_check = plan.work / "editor.pt", clock.elapsed_s, clock.elapsed_s
    running = torch.zeros(2, device=plan.device)
    while clock.share < 1:
        editor.optimizer.set_lr(warm_cosine(clock.iteration, clock.share, 300) + 0.001)
        late = clock.share > 0.5  # noqa: PLR2004
        weights = [row[2] if late else row[1] for row in shapes.values()]
        size = editor.maker.dice.choices(list(shapes), weights)[0]
        pool, count = pools[size], shapes[size][0]
        while pool.filled < min(_FIRST_BATCHES * count, pool.capacity):
            pool.renew()
        running.lerp_(editor.run(size, pool.draw(count)).nan_to_num(9.0), 0.01)
        clock.iteration += 1
        if clock.iteration % _EMA_EVERY == 0:
            average.follow(clock.iteration)
        if clock.iteration % _RENEW_EVERY == 0:
            pool.renew()
        if clock.iteration % 50 == 0:
            clock.say("loss {:.4f}, target off by {:.4f}".format(*running.tolist()))
        if clock.elapsed_s - last_check > _CHECK_EVERY_S:
            last_check = clock.elapsed_s
            average.swap()
            clock.say(check.report(editor), every_s=0)
            average.swap()
        if clock.elapsed_s - last_save > _SAVE_EVERY_S:
            last_save = clock.elapsed_s
            _save(state, editor, average, clock)


def train_editor(parts: build.Parts, album: Album, check: Album, plan: Any) -> None:
    """Train the transformer and the text encoder for `plan.editor_s` seconds, then keep the average."""
    clock, state = Clock("editor", plan.editor_s), plan.work / "editor.pt"
    if not plan.start:
        transformer = parts.transformer.cpu()
        em.start(transformer)
        transformer.to(plan.device)
    parts.text_encoder.model.visual.requires_grad_(requires_grad=False)
    if not plan.start and not state.exists():
        train_words(parts, plan)
    editor = Editor(parts, _maker(parts, album, plan), plan)
    average = _Average(editor.params)
    if state.exists():
        _restore(state, editor, average, clock)
    aside = _Check(_maker(parts, check, plan), (64, 64) if plan.quick else (256, 256))
    _loop(editor, average, aside, clock, plan)
    _save(state, editor, average, clock)
    average.swap()
    clock.say(aside.report(editor), every_s=0)
