"""The editor in training: the text encoder and the transformer together, one captured step a size."""

from collections.abc import Callable

import torch
from torch import Tensor

from retouch.demo import autoencoder, build, texts
from retouch.demo.flow import Pairs, channel_weights, draw_noise, draw_sigmas
from retouch.demo.pool import PairMaker
from retouch.demo.steps import Optimizer, captured, half_precision
from retouch.demo.transformer import Rotary, rotary, velocity

Size = tuple[int, int]
"""(height, width) in pixels, multiples of 16."""
_LR = 8e-4


class Editor:
    """Trains `parts` on pairs of `maker`'s latents; bf16 on a GPU, fp32 on a CPU."""

    def __init__(self, parts: build.Parts, maker: PairMaker, device: str) -> None:
        self.maker, self.device = maker, device
        self._transformer, self._text_encoder = parts.transformer, parts.text_encoder
        language = parts.text_encoder.model.language_model
        self.params = [*parts.transformer.parameters(), *language.parameters()]
        self.optimizer = Optimizer(self.params, _LR)
        self._weights = self._channel_weights()
        self._places = torch.arange(texts.TEXT_TOKENS, device=device)
        self._ready: dict[Size, tuple[Callable[[], Tensor], list[Tensor]]] = {}

    def _channel_weights(self) -> Tensor:
        edge = 64 if self.device == "cpu" else 256
        latents = self.maker.latents(self.maker.album.varied(8, edge, edge))
        raw = latents * self.maker.std + self.maker.mean

        def decode(latents: Tensor) -> Tensor:
            return autoencoder.decode(self.maker.vae, latents)

        return channel_weights(decode, raw, self.maker.std.flatten())

    def _rotary(self, size: Size) -> Rotary:
        return rotary(self._transformer, (size[0] // 16, size[1] // 16), self.device)

    def predict(self, pairs: Pairs, noisy: Tensor, sigma: Tensor, turns: Rotary) -> Tensor:
        """Predict the velocity for pairs at noise levels `sigma` (b,): (b, s, 4 z)."""
        asked = pairs.texts
        with half_precision(self.device):
            states = texts.embed(self._text_encoder, asked.ids, asked.positions)
            mask = self._places < asked.lengths[:, None]
            inputs = (noisy, pairs.source, sigma, states)
            return velocity(self._transformer, *inputs, mask=mask, turns=turns).float()

    def run(self, size: Size, pairs: Pairs) -> Tensor:
        """Train on one batch of pictures of `size`: (loss, squared error of the target guessed)."""
        sigma = draw_sigmas(len(pairs.source), self.device)
        noise = draw_noise(pairs.grain)
        asked = pairs.texts
        tokens = (asked.ids, asked.positions, asked.lengths)
        fresh = [pairs.source, pairs.target, *tokens, sigma, noise]
        if size not in self._ready:
            self._ready[size] = self._prepare(size, fresh)
        step, buffers = self._ready[size]
        for buffer, value in zip(buffers, fresh, strict=True):
            buffer.copy_(value)
        return step()

    def _prepare(
        self, size: Size, fresh: list[Tensor]
    ) -> tuple[Callable[[], Tensor], list[Tensor]]:
        buffers = [value.clone() for value in fresh]
        source, target, ids, positions, lengths, sigma, noise = buffers
        pairs = Pairs(source, target, noise, texts.Texts(ids, positions, lengths))
        turns = self._rotary(size)

        def step() -> Tensor:
            level = sigma.view(-1, 1, 1)
            guess = self.predict(pairs, (1 - level) * target + level * noise, sigma, turns)
            error = (guess - (noise - target)).square()
            loss = (self._weights * error).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            off = (error.mean((1, 2)) * sigma**2).mean()
            return torch.stack((loss.detach(), off.detach()))

        return captured(step, self.device), buffers

    @torch.no_grad()
    def sample(self, pairs: Pairs, size: Size, steps: int = 4) -> Tensor:
        """Edit by Euler steps from noise: packed latents (b, s, 4 z)."""
        turns = self._rotary(size)
        noisy = torch.randn_like(pairs.target)
        for step in range(steps, 0, -1):
            sigma = noisy.new_full((len(noisy),), step / steps)
            noisy = noisy - self.predict(pairs, noisy, sigma, turns) / steps
        return noisy
