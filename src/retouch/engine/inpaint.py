"""Start from a source instead of from noise, and keep the source outside a mask.

The sums of diffusers' `QwenImageEditInpaintPipeline`, with the posterior's mode in place of a sample.
"""

from dataclasses import dataclass

import torch

from retouch.engine.hooks import StepHook, StepState


@dataclass(frozen=True)
class SourceStart:
    """An edit's start from a source, all in float32 tokens (1, token, 4 c).

    `source` has the source's latents at the result's size, `noise` is the initial noise, `mask` is 1
    where the model may paint. `sigmas` (step + 1,) are the noise levels before the first step that
    runs and after each; the last is 0.
    """

    source: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    mask: torch.Tensor | None = None

    def at(self, step: int) -> torch.Tensor:
        """Return the source with the noise that is left after `step` steps."""
        sigma = float(self.sigmas[step])
        return sigma * self.noise + (1 - sigma) * self.source

    def keep_source(self, state: StepState) -> torch.Tensor | None:
        """Put the source's own latents back outside the mask; a `StepHook`."""
        if self.mask is None or state.done == 0:
            return None
        return torch.lerp(self.at(state.done), state.latents, self.mask)


def start_latents(
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    source: torch.Tensor | None,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, list[StepHook]]:
    """Return the latents before the first step, and the hooks that keep the source in them.

    The arguments are as `SourceStart` has them; without a source the latents are the noise.
    """
    if source is None:
        return noise, []
    start = SourceStart(source, noise, sigmas, None if mask is None else mask.to(noise.device))
    return start.at(0), [start.keep_source]
