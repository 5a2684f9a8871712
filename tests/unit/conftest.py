"""Keeps the tests fast that compute, collect garbage or log."""

import gc
import logging
import sys

import cpuinfo  # type: ignore[import-untyped]

# The Runpod SDK asks it once, when it is imported; the answer is a second Python's, after a second of CPU time.
cpuinfo.get_cpu_info = lambda: {"brand_raw": "a processor"}


# Nearly all that is imported and collected stays, and to look for garbage in it takes a fifth of the time.
gc.disable()


def pytest_collection_finish() -> None:
    """Compute in one thread, and spare each test what grows with all that is imported.

    Tiny tensors gain nothing by more threads, which wait for each other with their cores taken: ten
    times the CPU on a busy machine. Torch's objects alone make each collection of garbage cost a second,
    and its fifty loggers that do not propagate get pytest's handlers six times a test: a millisecond.
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
        for name, logger in logging.root.manager.loggerDict.items():
            if name.startswith("torch") and isinstance(logger, logging.Logger):
                logger.propagate = True
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
