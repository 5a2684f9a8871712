"""A step's work on the GPU, recorded once in an edit and then repeated.

Launching a step of shared tokens takes a CPU 0.12 to 0.3 s, the GPUs compute it in 0.17 s. A CUDA graph
is launched at once, with the exchanges in it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from threading import Lock
from typing import NamedTuple

import torch

from retouch.engine.modulation import ModulationTable, StepModulation

LOCK = Lock()
"""Held while a step is recorded: to end an exchange meanwhile would block the recording, and wait for it."""
_BLOCKS = 10
"""Of a graph: a sixth of the full model's."""
Forward = Callable[..., list[torch.Tensor]]
"""Takes latents (1, token, 4 channels) and a step's `modulation`; returns each branch's velocity.

Calls `after_block` after each block.
"""


class Recording(NamedTuple):
    """`repeat` computes from the `inputs`, as they are then, into the `outputs`."""

    inputs: Sequence[torch.Tensor]
    outputs: Sequence[torch.Tensor]
    repeat: Callable[[], None]


Record = Callable[[Forward, torch.Tensor, StepModulation], Recording]
"""Runs a step, and records it meanwhile."""


class RecordedSteps:
    """Computes an edit's first two steps by `forward`, and the others by repeating the second."""

    def __init__(self, forward: Forward, modulation: ModulationTable, record: Record) -> None:
        self._forward = forward
        self._modulation = modulation
        self._record = record
        self._is_prepared = False
        self._recording: Recording | None = None

    def __call__(self, latents: torch.Tensor, step: int) -> list[torch.Tensor]:
        """Return the velocities of `latents` (1, token, 4 channels)."""
        modulation = self._modulation.of_step(step)
        if not self._is_prepared:  # libraries choose kernels meanwhile, which cannot be recorded
            self._is_prepared = True
            return self._forward(latents, modulation=modulation)
        try:
            if self._recording is None:
                with LOCK:
                    self._recording = self._record(self._forward, latents, modulation)
            else:
                for into, given in zip(self._recording.inputs, (latents, *modulation), strict=True):
                    into.copy_(given)
                self._recording.repeat()
            return [output.clone() for output in self._recording.outputs]
        except Exception:
            self._recording = None  # an exchange cannot be ended while a recording has it
            raise


def record_graphs(
    forward: Forward, latents: torch.Tensor, modulation: StepModulation
) -> Recording:  # pragma: no cover - needs a GPU
    """Run a step as graphs of some blocks each: the GPU runs one while the next is recorded."""
    inputs = latents.clone(), *(part.clone() for part in modulation)
    torch.cuda.empty_cache()  # what is recorded has memory of its own
    computing, recording = torch.cuda.current_stream(), _recording_stream()
    recording.wait_stream(computing)
    with torch.cuda.stream(recording):
        graphs = _Graphs()
        graphs.begin()
        try:
            outputs = forward(
                inputs[0], modulation=StepModulation(*inputs[1:]), after_block=graphs.count_block
            )
        except Exception:
            graphs.abandon()
            raise
        graphs.end()
    computing.wait_stream(recording)
    return Recording(inputs, outputs, graphs.repeat)


class _Graphs:  # pragma: no cover - needs a GPU
    def __init__(self) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._blocks = 0

    def begin(self) -> None:
        """Record what the current stream is given from now on."""
        pool = self._graphs[0].pool() if self._graphs else None
        self._graphs.append(torch.cuda.CUDAGraph())
        # "thread_local": other threads, which watch the exchange, may do what cannot be recorded.
        self._graphs[-1].capture_begin(pool, capture_error_mode="thread_local")

    def end(self) -> None:
        """Record no further, and run what was recorded."""
        self._graphs[-1].capture_end()
        self._graphs[-1].replay()

    def abandon(self) -> None:
        """Record no further."""
        with suppress(RuntimeError):  # the recording has failed
            self._graphs[-1].capture_end()

    def count_block(self) -> None:
        """Begin another graph after some blocks."""
        self._blocks += 1
        if self._blocks % _BLOCKS == 0:
            self.end()
            self.begin()

    def repeat(self) -> None:
        """Run all again."""
        for graph in self._graphs:
            graph.replay()


@cache
def _recording_stream() -> torch.cuda.Stream:  # pragma: no cover - needs a GPU
    return torch.cuda.Stream()  # type: ignore[no-untyped-call] # one for all: cuBLAS keeps memory for each
