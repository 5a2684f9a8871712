"""Bound the memory that readers take to pack weights, on one stream that they share."""

import threading
from typing import Any

import torch

MAX_WHOLE = 4
"""Weights that are on the way to be packed at a time: each is whole on the device until it is."""


class PackingTurns:
    """What readers share to pack: the right to hold a whole weight, and a stream.

    On one stream the allocator uses the memory of the weight before again.
    """

    def __init__(self, devices: set[torch.device]) -> None:
        self.slots = threading.Semaphore(MAX_WHOLE)
        self.lock = threading.Lock()
        self.stream = open_stream(choose_device(devices))


def choose_device(devices: set[torch.device]) -> torch.device:
    """Return the device that converts and packs: the GPU if there is one."""
    return next((one for one in devices if one.type == "cuda"), torch.device("cpu"))


def open_stream(device: torch.device) -> Any:
    """Return a new stream of a GPU, after what is queued already; None on a CPU."""
    if device.type != "cuda":
        return None
    cuda: Any = torch.cuda  # pragma: no cover - needs a GPU
    stream = cuda.Stream(device)  # pragma: no cover - needs a GPU
    stream.wait_stream(torch.cuda.current_stream(device))  # pragma: no cover - needs a GPU
    return stream  # pragma: no cover - needs a GPU
