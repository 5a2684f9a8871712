"""The text encoder and the transformer, trained together with one captured step per picture size."""

from collections.abc import Callable

import torch
from torch import Tensor

from retouch.demo import autoencoder, build, prompts
from retouch.demo.flow import Pairs, channel_weights, sample_noise, sample_sigmas
from retouch.demo.pool import PairMaker
from retouch.demo.steps import Optimizer, capture_graph, half_precision
from retouch.demo.transformer import Rotary, rotary_embedding, velocity

Size = tuple[int, int]
"""(height, width) in pixels, multiples of 16."""


class EditModel:
    """Trains `components` on pairs of latents; bf16 on a GPU, fp32 on a CPU."""

    def __init__(
        self,
        components: build.Components,
        maker: PairMaker,
        device: str,
        *,
        lr: float = 8e-4,
        params: list[Tensor] | None = None,
    ) -> None:
        """Train `params`, by default all of the transformer and the language model."""
        self.maker, self.device = maker, device
        self._transformer = components.transformer
        self._text_encoder = components.text_encoder
        language_model = components.text_encoder.model.language_model
        self.params = params or [
            *components.transformer.parameters(),
            *language_model.parameters(),
        ]
        self.optimizer = Optimizer(self.params, lr)
        self._weights = self._channel_weights()
        self._positions = torch.arange(prompts.PROMPT_TOKENS, device=device)
        self._steps: dict[Size, tuple[Callable[[], Tensor], list[Tensor]]] = {}

    def _channel_weights(self) -> Tensor:
        edge_px = 64 if self.device == "cpu" else 256
        latents = self.maker.latents(self.maker.album.augmented(8, edge_px, edge_px))
        raw = latents * self.maker.std + self.maker.mean

        def decode(latents: Tensor) -> Tensor:
            return autoencoder.decode(self.maker.vae, latents)

        return channel_weights(decode, raw, self.maker.std.flatten())

    def _rotary(self, size: Size) -> Rotary:
        return rotary_embedding(self._transformer, (size[0] // 16, size[1] // 16), self.device)

    def predict(self, pairs: Pairs, noisy: Tensor, sigma: Tensor, rotary: Rotary) -> Tensor:
        """Predict the velocity (b, s, 4 z) of `noisy` (b, s, 4 z) at noise levels `sigma` (b,)."""
        batch = pairs.prompts
        with half_precision(self.device):
            states = prompts.encode(self._text_encoder, batch.ids, batch.positions)
            mask = self._positions < batch.lengths[:, None]
            inputs = (noisy, pairs.source, sigma, states)
            return velocity(self._transformer, *inputs, mask=mask, rotary=rotary).float()

    def train_step(self, size: Size, pairs: Pairs) -> Tensor:
        """Train on one batch of pictures of `size`.

        Returns (2,): the loss, and the squared error of the target that the prediction implies.
        """
        sigma = sample_sigmas(len(pairs.source), self.device)
        noise = sample_noise(pairs.grain)
        batch = pairs.prompts
        tokens = (batch.ids, batch.positions, batch.lengths)
        values = [pairs.source, pairs.target, *tokens, sigma, noise]
        if size not in self._steps:
            self._steps[size] = self._build_step(size, values)
        step, buffers = self._steps[size]
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
        return step()

    def _build_step(
        self, size: Size, values: list[Tensor]
    ) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """Build the step for one size, and the buffers that it reads its batch from."""
        buffers = [value.clone() for value in values]
        source, target, ids, positions, lengths, sigma, noise = buffers
        pairs = Pairs(source, target, noise, prompts.PromptBatch(ids, positions, lengths))
        rotary = self._rotary(size)

        def step() -> Tensor:
            level = sigma.view(-1, 1, 1)  # (b,) -> (b, 1, 1)
            predicted = self.predict(pairs, (1 - level) * target + level * noise, sigma, rotary)
            error = (predicted - (noise - target)).square()
            loss = (self._weights * error).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            target_error = (error.mean((1, 2)) * sigma**2).mean()
            return torch.stack((loss.detach(), target_error.detach()))

        return capture_graph(step, self.device), buffers

    @torch.no_grad()
    def sample(self, pairs: Pairs, size: Size, steps: int = 4) -> Tensor:
        """Edit by Euler steps from noise; return packed latents (b, s, 4 z)."""
        rotary = self._rotary(size)
        noisy = torch.randn_like(pairs.target)
        for step in range(steps, 0, -1):
            sigma = noisy.new_full((len(noisy),), step / steps)
            noisy = noisy - self.predict(pairs, noisy, sigma, rotary) / steps
        return noisy
