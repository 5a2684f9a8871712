"""The transformer's forward pass: every guidance branch goes through a block before the next block.

The same arithmetic as diffusers' `transformer_qwenimage.py` over the same modules, without masks of
ones, without clipping, without recomputing at each step what is constant within an edit, and with
the modulation read from a table.

Shapes as in `block`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from retouch.engine.adapters.terms import NO_TERMS, Terms
from retouch.engine.block import BlockCall, modulate
from retouch.engine.linear import linear
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import StepModulation
from retouch.engine.rotary import Grid, rotary_embedding
from retouch.engine.ulysses import WHOLE, Exchange, Share


def _do_nothing() -> None:
    pass


@dataclass(frozen=True)
class GuidanceBranch:
    """Embedded text (1, t, dim) of a branch, and cosine and sine of its tokens (t + i, 1, c/2, 2).

    `exchange` is there where they are a share.
    """

    text: torch.Tensor
    angles: torch.Tensor
    exchange: Exchange | None


@dataclass(frozen=True)
class Conditioning:
    """Step-independent inputs of the transformer, of the tokens in its `share`.

    `condition` has the tokens of all condition images (1, token, 4 latent channels). `is_condition`
    (i, 1) marks them among the image tokens, for models that modulate them as at time zero.
    """

    condition: torch.Tensor
    branches: Sequence[GuidanceBranch]
    is_condition: torch.Tensor | None
    terms: Terms = NO_TERMS
    share: Share = WHOLE


class Transformer:
    """The denoiser over `weights`; `run_block` runs each of its blocks."""

    def __init__(self, weights: Weights, run_block: BlockCall) -> None:
        self._weights = weights
        self._module = weights.transformer
        self._run_block = run_block

    def prepare_conditioning(
        self,
        *,
        conditions: Sequence[torch.Tensor],
        texts: Sequence[torch.Tensor],
        grids: Sequence[Grid],
        terms: Terms = NO_TERMS,
        share: Share = WHOLE,
    ) -> Conditioning:
        """Embed the texts (1, t, width), one a branch, and compute the angles of the tokens in `share`.

        `terms` are of the edit's adapters. `grids` are the result's and then those of the `conditions`
        (1, token, 4 latent channels).
        """
        module, weight = self._module, self._module.txt_in.weight
        condition = torch.cat(list(conditions), dim=1).to(weight.device, weight.dtype)
        counts = prod(grids[0]), condition.shape[1]
        is_condition = None
        if module.config.zero_cond_t:
            marks = torch.tensor([False, True]).repeat_interleave(torch.tensor(counts))
            is_condition = share.take(marks[:, None], 0, counts).to(weight.device)  # (i,) -> (i, 1)
        return Conditioning(
            condition=share.take(condition, 1),
            branches=[self._prepare_branch(text, grids, counts, terms, share) for text in texts],
            is_condition=is_condition,
            terms=terms,
            share=share,
        )

    def _prepare_branch(
        self,
        text: torch.Tensor,
        grids: Sequence[Grid],
        image_counts: tuple[int, int],
        terms: Terms,
        share: Share,
    ) -> GuidanceBranch:
        module, weight = self._module, self._module.txt_in.weight
        counts = text.shape[1], *image_counts
        angles = rotary_embedding(module.pos_embed, grids, text.shape[1])
        exchange = None
        if share.size > 1:
            exchange = Exchange(share, share.count(counts), share.count(image_counts[:1]))
        normed = module.txt_norm(share.take(text, 1).to(weight.device, weight.dtype))
        return GuidanceBranch(
            text=linear(module.txt_in, normed, terms.others.get("txt_in")),
            angles=share.take(angles, 0, counts).to(weight.device),
            exchange=exchange,
        )

    def forward(
        self,
        latents: torch.Tensor,
        conditioning: Conditioning,
        modulation: StepModulation,
        *,
        after_block: Callable[[], None] = _do_nothing,
    ) -> list[torch.Tensor]:
        """Return each branch's velocity in float32 for `latents` (1, token, 4 channels).

        Calls `after_block` after each block. Of the processes that share the tokens the first has all of both, and the others none.
        """
        module, terms, share = self._module, conditioning.terms, conditioning.share
        exchange = conditioning.branches[0].exchange
        counts = exchange.outputs if exchange else ()
        latents = share.spread(latents, counts)
        tokens = torch.cat([latents.to(conditioning.condition.dtype), conditioning.condition], 1)
        image = linear(module.img_in, tokens, terms.others.get("img_in"))  # (1, i, dim)
        streams = [(image, branch.text) for branch in conditioning.branches]
        last = len(module.transformer_blocks) - 1
        for index, block in enumerate(self._weights.blocks()):
            for at, branch in enumerate(conditioning.branches):
                streams[at] = self._run_block(
                    block,
                    *streams[at],
                    (modulation.image[index], modulation.text[index]),
                    branch.angles,
                    conditioning.is_condition,
                    latents.shape[1] if index == last else None,
                    terms.of_block(index),
                    exchange=branch.exchange,
                )
            after_block()
        scale, shift = modulation.last
        norm = module.norm_out.norm
        term = terms.others.get("proj_out")
        return [
            share.gather(
                linear(module.proj_out, modulate(image, norm, shift, scale), term).float(), counts
            )
            for image, _ in streams
        ]
