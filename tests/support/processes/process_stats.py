"""Memory, descriptors, threads and children of a running service, from outside."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

import psutil

ROLES = ("supervisor", "worker", "decoders")
"""`bentoml serve` itself; the process with the model; the sum of the latter's children."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Figures of one role; resident bytes count a shared page once for each process."""

    processes: int
    rss_bytes: int
    descriptors: int
    threads: int


def measure(pid: int) -> dict[str, Holding]:
    """Return the figures of each role of the service whose first process is `pid`."""
    first = psutil.Process(pid)
    groups = ([first], first.children(), [])
    for worker in groups[1]:
        groups[2].extend(worker.children(recursive=True))
    return {role: _sum(group) for role, group in zip(ROLES, groups, strict=True)}


def _sum(group: list[psutil.Process]) -> Holding:
    found = []
    for process in group:
        with suppress(
            psutil.NoSuchProcess, psutil.ZombieProcess
        ):  # a decoder child ends with its image
            found.append((process.memory_info().rss, process.num_fds(), process.num_threads()))
    rss_bytes, descriptors, threads = (
        (sum(values) for values in zip(*found, strict=True)) if found else (0, 0, 0)
    )
    return Holding(len(found), rss_bytes, descriptors, threads)


class Watch:
    """Records a service's figures every `every_s` while `watching`."""

    def __init__(self, pid: int, every_s: float) -> None:
        self.samples: list[dict[str, object]] = []
        self._pid = pid
        self._every_s = every_s
        self._began_s = time.monotonic()
        self._stop = threading.Event()

    def take(self) -> dict[str, Holding]:
        held = measure(self._pid)
        at_s = round(time.monotonic() - self._began_s, 3)
        roles = {role: asdict(holding) for role, holding in held.items()}
        self.samples.append({"at_s": at_s, **roles})
        return held

    def run(self) -> None:
        while not self._stop.wait(self._every_s):
            with suppress(psutil.NoSuchProcess):
                self.take()

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def watching(pid: int, *, every_s: float) -> Iterator[Watch]:
    watch = Watch(pid, every_s)
    thread = threading.Thread(target=watch.run, name="watch")
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join()
