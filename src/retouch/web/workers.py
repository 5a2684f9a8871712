"""The service's worker processes, one a GPU: how many, which GPU each has, and what they know of each other.

BentoML's supervisor imports the service too. There it is counted; each worker joins.
"""

import mmap
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import pynvml  # type: ignore[import-untyped]
from bentoml._internal.context import server_context
from prometheus_client.multiprocess import mark_process_dead

from retouch.engine.memory.plan import GIB
from retouch.engine.memory.probe import VISIBLE, measure_cpus, measure_host
from retouch.engine.memory.shared_memory import HostShare
from retouch.settings import InvalidSettings

NOT_READY = 1 << 60
"""The load of a worker that cannot edit: above any number of edits and connections."""
_STALE_S = 2.0
"""A worker that has not reported for so long hangs: it would accept no connection that is left to it."""
_CELLS = 3
"""Numbers of a worker on the board, each of eight bytes: process id, load, and when it said so."""
_BOARD = "RETOUCH_BOARD"
"""Variable by which the supervisor hands the board's file descriptor to its workers."""
_METRICS = "PROMETHEUS_MULTIPROC_DIR"


class Board:
    """The process id and the load of each worker, in memory that all processes of the service share.

    The file has no name and ends with them. `clock_s` is the host's, the same in all of them.
    """

    def __init__(
        self, descriptor: int, count: int, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._cells = memoryview(mmap.mmap(descriptor, 8 * _CELLS * count)).cast("q")
        self._clock_s = clock_s

    @staticmethod
    def open_file(count: int) -> int:
        """Return the descriptor of the file for so many workers, which child processes inherit."""
        descriptor = os.memfd_create("workers", 0)
        os.truncate(descriptor, 8 * _CELLS * count)
        return descriptor

    def report(self, index: int, load: int) -> None:
        """Say how much this process has to do, which is the worker at `index`, or `NOT_READY`."""
        self._cells[_CELLS * index + 2] = int(1000 * self._clock_s())
        self._cells[_CELLS * index + 1] = load
        self._cells[_CELLS * index] = os.getpid()

    def forget(self, pid: int) -> None:
        """Take a process off that has ended."""
        for at in range(0, len(self._cells), _CELLS):
            if self._cells[at] == pid:
                self._cells[at] = 0

    @property
    def pids(self) -> dict[int, int]:
        """The process ids of the workers that live, by index."""
        pids = self._cells[::_CELLS].tolist()
        return {index: pid for index, pid in enumerate(pids) if pid}

    @property
    def loads(self) -> list[int]:
        """What each worker last reported; that of a dead one counts no more."""
        return self._cells[1::_CELLS].tolist()

    def may_listen(self, index: int) -> bool:
        """Whether no other worker has less to do, or is ready where this one is not.

        One that hangs does not count.
        """
        loads, reported_ms = self.loads, self._cells[2::_CELLS].tolist()
        since_ms = 1000 * (self._clock_s() - _STALE_S)
        return all(
            loads[index] <= loads[other] or reported_ms[other] < since_ms for other in self.pids
        )


@dataclass(frozen=True, slots=True)
class Workers:
    """How many there are, with how many GPUs each, and which this process is.

    `index` is None in the supervisor. There is a board where there are several.
    """

    count: int = 1
    gpus: int = 1
    index: int | None = None
    board: Board | None = None

    @property
    def several(self) -> bool:
        """Whether this process shares its port with others."""
        return self.count > 1

    def forget(self, pid: int, environment: Mapping[str, str]) -> None:
        """Take a worker that has ended off the board, and its gauges off the metrics."""
        if self.board:
            self.board.forget(pid)
            mark_process_dead(pid, environment[_METRICS])  # type: ignore[no-untyped-call]


def join_workers(gpus: int | Literal["all"], *, each: int = 1, host_gib: float = 0) -> Workers:
    """Return the workers over so many GPUs; in one of several, see only its own from now on.

    Each has `each` of them, and `host_gib` of host memory or else its share of what is free. Call it
    before torch is imported.

    Raises:
        InvalidSettings: there are fewer GPUs.
    """
    if server_context.worker_index is None:
        count = count_workers(gpus, len(list_gpus()), each=each)
        board = _prepare_workers(count, each, host_gib) if count > 1 else None
        return Workers(count, each, board=board)
    if _BOARD not in os.environ:
        return Workers(gpus=each)
    descriptor, count = map(int, os.environ[_BOARD].split(","))
    os.set_inheritable(descriptor, False)
    # A worker in place of a dead one has its number; while one is replaced, numbers go on.
    index = (server_context.worker_index - 1) % count
    names = [str(number) for number in range(count * each)]
    if VISIBLE in os.environ:
        names = os.environ[VISIBLE].split(",")
    os.environ[VISIBLE] = ",".join(names[index * each : (index + 1) * each])
    board = Board(descriptor, count)
    board.report(index, NOT_READY)
    return Workers(count, each, index, board)


def count_workers(gpus: int | Literal["all"], found: int, *, each: int = 1) -> int:
    """Return how many workers with `each` GPUs to start where so many are found: without any, on the CPU.

    The default of one GPU is one worker, whatever it needs.

    Raises:
        InvalidSettings: there are fewer GPUs, or a worker would have too few.

    >>> count_workers("all", 4), count_workers("all", 0), count_workers(2, 4), count_workers(2, 0)
    (4, 1, 2, 2)
    >>> count_workers("all", 5, each=2), count_workers(4, 4, each=2), count_workers(1, 2, each=2)
    (2, 2, 1)
    """
    if gpus == "all":
        return max(1, found // each)
    if 0 < found < gpus:
        raise InvalidSettings(f"wrong settings: GPUS: is {gpus}, but there are {found} GPUs")
    if gpus > 1 and gpus % each:
        raise InvalidSettings(
            f"wrong settings: GPUS: is {gpus}, but PARALLEL takes {each} for each edit: set a multiple of {each}"
        )
    return max(1, gpus // each)


def list_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    if VISIBLE in os.environ:
        names = [name.strip() for name in os.environ[VISIBLE].split(",")]
        return [name for name in names if name not in ("", "-1")]
    try:
        pynvml.nvmlInit()
        return [str(number) for number in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _prepare_workers(count: int, each: int, host_gib: float) -> Board:
    """Make the board, and share the host's memory and CPUs out before the first worker takes any."""
    descriptor = Board.open_file(count)
    os.environ[_BOARD] = f"{descriptor},{count}"
    # Also where it is there: `--env-file` sets 0 too, and what `.env` says is not in the environment.
    os.environ["HOST_MEMORY_GIB"] = f"{host_gib or measure_host() / count / GIB:.3f}"
    HostShare.create(count * each)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, measure_cpus() // count)))
    return Board(descriptor, count)
