"""Shared by both training stages: optimizer, schedule, captured steps, progress lines."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Optimizer:
    """AdamW with a learning rate that a captured step reads again each time."""

    def __init__(self, params: list[Tensor], lr: float) -> None:
        on_gpu = params[0].is_cuda
        self.peak_lr = lr
        self.params = params
        self.adam = torch.optim.AdamW(
            params,
            lr=torch.tensor(lr, device=params[0].device) if on_gpu else lr,
            betas=(0.9, 0.98),
            weight_decay=1e-4,
            fused=on_gpu,
            capturable=on_gpu,
        )

    def set_lr(self, factor: float) -> None:
        """Set the learning rate to `factor` times its peak."""
        for group in self.adam.param_groups:
            if isinstance(group["lr"], Tensor):  # pragma: no cover - needs a GPU
                group["lr"].fill_(self.peak_lr * factor)
            else:
                group["lr"] = self.peak_lr * factor

    def step(self) -> None:
        """Clip the gradient to norm 1, update, clear the gradients.

        A non-finite gradient changes nothing: the fused kernel skips the step.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        if norm.is_cuda:  # pragma: no cover - needs a GPU
            self.adam.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)


def capture_graph(step: Callable[[], Tensor], device: str) -> Callable[[], Tensor]:
    """Capture a whole training step on fixed buffers as one CUDA graph; on a CPU return it as it is.

    Kernel launches dominate small models: a graph makes these steps several times faster.
    """
    return _capture(step) if device == "cuda" else step


def _capture(step: Callable[[], Tensor]) -> Callable[[], Tensor]:  # pragma: no cover - needs a GPU
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # lazy initialization must happen before the capture
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()

    def replay(_kept: object = step) -> Tensor:  # the graph reads memory that the step owns
        graph.replay()
        return out

    return replay


def half_precision(device: str) -> Any:
    """Run matrix products in bf16 on a GPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda", cache_enabled=False)


def warm_cosine(iteration: int, share: float, warm_up: int) -> float:
    """Rise linearly over `warm_up` iterations, then fall to zero as `share` of the time goes to 1.

    >>> warm_cosine(0, 0.0, 100), warm_cosine(500, 1.0, 100)
    (0.01, 0.0)
    """
    return min(1, (iteration + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * min(1, share)))


@dataclass(slots=True)
class StageClock:
    """Counts a stage's training seconds over all its runs, and writes progress lines."""

    name: str
    total_s: float
    spent_s: float = 0.0
    iteration: int = 0
    started: float = field(default_factory=time.monotonic)
    logged: float = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, including earlier runs."""
        return self.spent_s + time.monotonic() - self.started

    @property
    def share(self) -> float:
        """The share of the stage that is done, 0 to 1."""
        return min(1.0, self.elapsed_s / self.total_s) if self.total_s > 0 else 1.0

    def log(self, text: str, *, every_s: float = 5.0) -> None:
        """Write a progress line to standard error, at most one in `every_s` seconds."""
        now = time.monotonic()
        if now - self.logged >= every_s:
            self.logged = now
            at = f"{self.name} {self.share:4.0%} {self.elapsed_s:6.0f} s, step {self.iteration}"
            sys.stderr.write(f"{at}: {text}\n")
            sys.stderr.flush()
