"""Hooks that run between the steps of an edit, and the one that reports and times them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class StepState:
    """State of an edit between two steps: steps done, of how many, and latents (1, token, 4 c).

    `predict` computes the result's latents as the last step expects them; None before the first.
    """

    done: int
    steps: int
    latents: torch.Tensor
    predict: Callable[[], torch.Tensor] | None = None


StepHook = Callable[[StepState], torch.Tensor | None]
"""Called before the first step and after each; returns new latents, or None to keep them."""


def run_hooks(hooks: Sequence[StepHook], state: StepState) -> torch.Tensor:
    """Run the hooks in order, each on the latents that the one before left; return the latents."""
    for hook in hooks:
        changed = hook(state)
        if changed is not None:
            state = replace(state, latents=changed)
    return state.latents


def predict_result(
    latents: torch.Tensor, velocity: torch.Tensor, noise_share: torch.Tensor
) -> torch.Tensor:
    """Return the latents at the end of a straight line along `velocity`: all of one shape."""
    return latents - velocity * noise_share


def preview_steps(steps: int, count: int) -> frozenset[int]:
    """Return after which steps to show `count` previews: evenly spread, fewer where steps are few.

    >>> sorted(preview_steps(30, 3)), sorted(preview_steps(2, 3)), preview_steps(1, 3)
    ([8, 15, 22], [1], frozenset())
    """
    wanted = {round(steps * nth / (count + 1)) for nth in range(1, count + 1)}
    return frozenset(wanted & set(range(1, steps)))


class EditTimer:
    """Reports steps through `on_step(done, steps)`; remembers what that raised in `raised`."""

    def __init__(self, on_step: Callable[[int, int], None], *, device: torch.device) -> None:
        self.raised: Exception | None = None
        self._on_step = on_step
        self._device = device
        self._ends_s: list[float] = []

    def start(self) -> None:
        """Start the first phase; an edit that is run again is timed from here."""
        self._ends_s = [time.perf_counter()]

    def end_phase(self) -> None:
        """End a phase, once the GPU has done its work."""
        if self._device.type == "cuda":  # pragma: no cover - a CPU never lags behind its caller
            torch.cuda.synchronize(self._device)
        self._ends_s.append(time.perf_counter())

    def phases_ms(self) -> tuple[float, ...]:
        """Return the milliseconds of each phase."""
        pairs = zip(self._ends_s, self._ends_s[1:], strict=False)
        return tuple((end - start) * 1000 for start, end in pairs)

    def report_step(self, state: StepState) -> None:
        """Report the steps done; a `StepHook`."""
        try:
            self._on_step(state.done, state.steps)
        except Exception as error:
            self.raised = error
            raise
