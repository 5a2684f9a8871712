"""Pools of latents: sources with several edits each, renewed while the editor trains on them."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retouch.demo import autoencoder, edits, phrases
from retouch.demo.flow import Pairs, pack
from retouch.demo.photos import Album
from retouch.demo.steps import half_precision
from retouch.demo.texts import Texts, Tokens

_EDITS_A_SOURCE = 4
_PIXELS_AT_ONCE = 6_300_000


@dataclass(slots=True)
class PairMaker:
    """Makes training pairs: crops, instructions, exact edits, and the latents of both."""

    vae: Any
    tokens: Tokens
    album: Album
    dice: random.Random
    device: str
    mean: Tensor  # (1, z, 1, 1)
    std: Tensor
    whiten: Tensor | None = None  # (4 z, 4 z): from the latents of grain to white noise

    def instruct(self) -> tuple[str, tuple[edits.Change, ...]]:
        """Draw an instruction that fits the text length, and its changes."""
        while True:
            text, changes = phrases.instruct(self.dice)
            if self.tokens.fits(text):
                return text, changes

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Encode images in 0..1 to normalised latents: (b, 3, h, w) -> (b, z, h/8, w/8)."""
        rows = max(1, _PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]))
        with half_precision(self.device):
            parts = [
                autoencoder.encode(self.vae, images[at : at + rows] * 2 - 1).float()
                for at in range(0, len(images), rows)
            ]
        return (torch.cat(parts) - self.mean) / self.std

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """Decode normalised latents to images in 0..1: (b, z, h, w) -> (b, 3, 8h, 8w)."""
        rows = max(1, _PIXELS_AT_ONCE // (latents.shape[2] * latents.shape[3] * 64))
        raw = latents * self.std + self.mean
        with half_precision(self.device):
            parts = [
                autoencoder.decode(self.vae, raw[at : at + rows]).float()
                for at in range(0, len(raw), rows)
            ]
        return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)

    def _grain_noise(self, smooth: Tensor, grainy: Tensor) -> Tensor:
        """Give the white noise that packed latents gained by grain: (b, s, 4 z), variance 1 a row."""
        if self.whiten is None:
            self.whiten = self._measure_grain()
        noise = (grainy - smooth) @ self.whiten
        return noise / noise.std((1, 2), keepdim=True).clamp(1e-6)

    def _measure_grain(self) -> Tensor:
        """Give the inverse root of the covariance of what grain adds to a token: (4 z, 4 z)."""
        edge = 64 if self.device == "cpu" else 256
        images = self.album.varied(64, edge, edge)
        grainy = edits.apply(images, [edits.Change("grain")])
        added = pack(self.latents(grainy)) - pack(self.latents(images))
        spread, axes = torch.linalg.eigh(added.flatten(0, 1).T.cov())
        root: Tensor = axes @ torch.diag(spread.clamp(spread[-1] * 1e-3).rsqrt()) @ axes.T
        return root

    @torch.no_grad()
    def pairs(self, sources: int, height: int, width: int) -> tuple[Pairs, Tensor]:
        """Make `sources` pictures with four edits each; give the pairs in fp16 and the exact edits.

        With b = 4 `sources`: packed latents (b, s, 4 z) and edits (b, 3, height, width) in 0..1.
        """
        images = self.album.varied(sources, height, width)
        asked = [self.instruct() for _ in range(sources * _EDITS_A_SOURCE)]
        changes = [made for _, made in asked]
        grainy = [row for row, made in enumerate(changes) if made and made[-1].name == "grain"]
        others = [row for row in range(len(asked)) if row not in set(grainy)]
        before = [made[:-1] if row in set(grainy) else made for row, made in enumerate(changes)]
        smooth = edits.apply_rows(images.repeat_interleave(_EDITS_A_SOURCE, 0), before)
        wanted = smooth.clone()
        wanted[grainy] = edits.apply_rows(smooth[grainy], [changes[row][-1:] for row in grainy])
        packed = pack(self.latents(torch.cat((images, wanted))))
        source = packed[:sources].repeat_interleave(_EDITS_A_SOURCE, 0)
        target = packed[sources:]
        grain = torch.zeros_like(target)
        # A fixed number of rows: a new shape costs cuDNN seconds.
        rows = (grainy + others)[: len(asked) // 6]
        noise = self._grain_noise(pack(self.latents(smooth[rows])), target[rows])
        made = min(len(rows), len(grainy))
        grain[rows[:made]] = noise[:made]
        texts = self.tokens.rows([text for text, _ in asked], self.device)
        return Pairs(source.half(), target.half(), grain.half(), texts), wanted


@dataclass(slots=True)
class Pool:
    """A ring of pairs of one picture size; `capacity` becomes a multiple of what `make` gives."""

    make: Callable[[], Pairs]
    capacity: int
    filled: int = 0
    _next: int = 0
    _store: list[Tensor] = field(default_factory=list)

    def renew(self) -> None:
        """Put new pairs in place of the oldest."""
        pairs = self.make()
        texts = pairs.texts
        new = (pairs.source, pairs.target, pairs.grain, texts.ids, texts.positions, texts.lengths)
        count = len(pairs.source)
        if not self._store:
            self.capacity = max(1, self.capacity // count) * count
            self._store = [part.new_empty(self.capacity, *part.shape[1:]) for part in new]
        for kept, part in zip(self._store, new, strict=True):
            kept[self._next : self._next + count] = part
        self._next = (self._next + count) % self.capacity
        self.filled = min(self.capacity, self.filled + count)

    def draw(self, count: int) -> Pairs:
        """Take `count` random pairs, in fp32."""
        at = torch.randint(self.filled, (count,), device=self._store[0].device)
        source, target, grain, *texts = (part[at] for part in self._store)
        return Pairs(source.float(), target.float(), grain.float(), Texts(*texts))
