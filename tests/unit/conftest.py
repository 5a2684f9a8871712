"""Keeps the tests fast that compute or collect garbage."""

import gc
import sys


def pytest_collection_finish() -> None:
    """Compute in one thread, and exempt what the imports created from collections of garbage.

    Tiny tensors gain nothing by more threads, which wait for each other with their cores taken: ten
    times the CPU on a busy machine. Torch's objects alone make each collection cost a second.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
