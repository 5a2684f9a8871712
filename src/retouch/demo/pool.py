"""Training pairs and pools of them: sources with several edits each, replaced while training runs."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retouch.demo import autoencoder, edits, phrases
from retouch.demo.edits import Change
from retouch.demo.flow import Pairs, pack
from retouch.demo.photos import Album
from retouch.demo.prompts import PromptBatch, PromptTokenizer
from retouch.demo.steps import half_precision

_EDITS_PER_SOURCE = 4
_PIXELS_AT_ONCE = 6_300_000


@dataclass(slots=True)
class PairMaker:
    """Makes training pairs: crops, instructions, exact edits, and the latents of both.

    `draw` draws an instruction with its changes; without it they are the checkpoint's own.
    """

    vae: Any
    tokenizer: PromptTokenizer
    album: Album
    rng: random.Random
    device: str
    mean: Tensor  # (1, z, 1, 1)
    std: Tensor
    whitening: Tensor | None = None  # (4 z, 4 z): from the latents of grain to white noise
    draw: Callable[[random.Random], tuple[str, tuple[Change, ...]]] | None = None

    def draw_instruction(self) -> tuple[str, tuple[Change, ...]]:
        """Draw an instruction that fits the prompt length, and its changes."""
        while True:
            text, changes = (self.draw or phrases.draw_instruction)(self.rng)
            if self.tokenizer.fits(text):
                return text, changes

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Encode images in 0..1 to normalized latents: (b, 3, h, w) -> (b, z, h/8, w/8)."""
        rows = max(1, _PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]))
        with half_precision(self.device):
            encoded = [
                autoencoder.encode(self.vae, images[first : first + rows] * 2 - 1).float()
                for first in range(0, len(images), rows)
            ]
        return (torch.cat(encoded) - self.mean) / self.std

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """Decode normalized latents to images in 0..1: (b, z, h, w) -> (b, 3, 8h, 8w)."""
        rows = max(1, _PIXELS_AT_ONCE // (latents.shape[2] * latents.shape[3] * 64))
        raw = latents * self.std + self.mean
        with half_precision(self.device):
            decoded = [
                autoencoder.decode(self.vae, raw[first : first + rows]).float()
                for first in range(0, len(raw), rows)
            ]
        return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1)

    def _grain_noise(self, smooth: Tensor, grainy: Tensor) -> Tensor:
        """Return the white noise behind the grain in packed latents: (b, s, 4 z), variance 1 a row."""
        if self.whitening is None:
            self.whitening = self._measure_whitening()
        noise = (grainy - smooth) @ self.whitening
        return noise / noise.std((1, 2), keepdim=True).clamp(1e-6)

    def _measure_whitening(self) -> Tensor:
        """Return the inverse root of the covariance of what grain adds to a token: (4 z, 4 z)."""
        edge_px = 64 if self.device == "cpu" else 256
        images = self.album.augmented(64, edge_px, edge_px)
        grainy = edits.apply(images, [Change("grain")])
        added = pack(self.latents(grainy)) - pack(self.latents(images))
        variances, axes = torch.linalg.eigh(added.flatten(0, 1).T.cov())
        scale = variances.clamp(variances[-1] * 1e-3).rsqrt()
        root: Tensor = axes @ torch.diag(scale) @ axes.T
        return root

    @torch.no_grad()
    def pairs(self, sources: int, height: int, width: int) -> tuple[Pairs, Tensor]:
        """Make `sources` pictures with four edits each; return the pairs in fp16 and the exact edits.

        With b = 4 `sources`: packed latents (b, s, 4 z) and exact edits (b, 3, height, width) in 0..1.
        """
        images = self.album.augmented(sources, height, width)
        drawn = [self.draw_instruction() for _ in range(sources * _EDITS_PER_SOURCE)]
        changes = [row for _, row in drawn]
        is_grainy = [bool(row) and row[-1].name == "grain" for row in changes]
        smooth, exact = _apply_in_two(
            images.repeat_interleave(_EDITS_PER_SOURCE, 0), changes, is_grainy
        )
        packed = pack(self.latents(torch.cat((images, exact))))
        source = packed[:sources].repeat_interleave(_EDITS_PER_SOURCE, 0)
        target = packed[sources:]
        grain = torch.zeros_like(target)
        # A fixed number of rows, grainy ones first: a new shape costs cuDNN seconds.
        rows = sorted(range(len(drawn)), key=lambda row: not is_grainy[row])[: len(drawn) // 6]
        noise = self._grain_noise(pack(self.latents(smooth[rows])), target[rows])
        count = min(len(rows), sum(is_grainy))
        grain[rows[:count]] = noise[:count]
        prompts = self.tokenizer.tokenize([text for text, _ in drawn], self.device)
        return Pairs(source.half(), target.half(), grain.half(), prompts), exact


def _apply_in_two(
    images: Tensor, changes: Sequence[Sequence[Change]], is_grainy: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Apply each row's changes; return the rows before their final grain, and the exact edits."""
    grainy = [row for row, has_grain in enumerate(is_grainy) if has_grain]
    before = [
        row[:-1] if has_grain else row for row, has_grain in zip(changes, is_grainy, strict=True)
    ]
    smooth = edits.apply_rows(images, before)
    exact = smooth.clone()
    exact[grainy] = edits.apply_rows(smooth[grainy], [changes[row][-1:] for row in grainy])
    return smooth, exact


@dataclass(slots=True)
class PairPool:
    """A ring buffer of pairs of one picture size; `capacity` is rounded to a multiple of a refill."""

    make: Callable[[], Pairs]
    capacity: int
    filled: int = 0
    _next: int = 0
    _store: list[Tensor] = field(default_factory=list)

    def refill(self) -> None:
        """Replace the oldest pairs by new ones."""
        pairs = self.make()
        batch = pairs.prompts
        new = (pairs.source, pairs.target, pairs.grain, batch.ids, batch.positions, batch.lengths)
        count = len(pairs.source)
        if not self._store:
            self.capacity = max(1, self.capacity // count) * count
            self._store = [tensor.new_empty(self.capacity, *tensor.shape[1:]) for tensor in new]
        for stored, tensor in zip(self._store, new, strict=True):
            stored[self._next : self._next + count] = tensor
        self._next = (self._next + count) % self.capacity
        self.filled = min(self.capacity, self.filled + count)

    def draw(self, count: int) -> Pairs:
        """Return `count` random pairs, in fp32."""
        rows = torch.randint(self.filled, (count,), device=self._store[0].device)
        source, target, grain, *batch = (tensor[rows] for tensor in self._store)
        return Pairs(source.float(), target.float(), grain.float(), PromptBatch(*batch))
