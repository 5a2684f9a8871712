"""Read weights from files on many threads, each directly to where it will live.

Invariants: each job (one weight) is taken by one thread, which alone writes its tensor. A thread has
its own open files, staging memory and CUDA stream, and waits for that stream before it reuses the
staging memory, so only the queue, the list of faults and the meter are shared.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

import torch

from retouch.engine.checkpoint.entries import TensorEntry
from retouch.engine.checkpoint.packing_turns import PackingTurns, choose_device, open_stream
from retouch.engine.memory.flat_params import PackedWeight
from retouch.engine.memory.probe import measure_cpus
from retouch.errors import ModelError

CHUNK_BYTES = 16 << 20
"""Read and converted at a time: fits a cache, and keeps the staging memory of all threads small."""
_EXPANDING = 16
"""Bytes a value: what expanding a packed weight takes at its peak on the device, about."""
MIN_THREADS, MAX_THREADS = 8, 16
"""A network disk answers many requests at once, however few CPUs wait for it."""
REPORT_EVERY_S = 5.0


class WholeWeight(Protocol):
    """What takes a weight whole, to pack it, add to it or measure it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        ...

    def write(self, weight: torch.Tensor, factor: float) -> None:
        """Take `weight` (`shape`; float32), which is the taker's to overwrite, times `factor`."""
        ...


Destination = torch.Tensor | WholeWeight
Job = tuple[TensorEntry, Destination, float]
"""A weight, its destination, and the factor it is multiplied by."""


def read_weights(
    stored: Mapping[str, TensorEntry],
    wanted: Mapping[str, Destination],
    *,
    device: torch.device | None = None,
    scale: Callable[[str], float] = lambda _: 1.0,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Fill the `wanted` from `stored`, each times `scale(path)`, a power of two.

    Weights are converted to the tensor's dtype, or packed: on the `device`, else on the GPU if any of
    them lives there. Stored weights that are not wanted are skipped.

    Raises:
        ModelError: a weight is missing or has a wrong shape or dtype, or a file cannot be read.
    """
    require_stored(stored, wanted)
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for path in sorted(wanted, key=lambda path: (stored[path].path, stored[path].offset)):
        jobs.put((stored[path], wanted[path], scale(path)))  # in file order
    meter = _ProgressMeter(sum(stored[path].size_bytes for path in wanted), progress)
    devices = {device} if device else {into.device for into in wanted.values()}
    count = min(MAX_THREADS, max(MIN_THREADS, measure_cpus()), jobs.qsize())
    packing = PackingTurns(devices)
    readers = [_Reader(devices, meter, packing) for _ in range(count)]
    _run(readers, jobs)


def _run(readers: "list[_Reader]", jobs: "queue.SimpleQueue[Job]") -> None:
    """Let the readers empty the queue, each in its thread; raise the first fault."""
    faults: list[BaseException] = []
    # Daemons, so that the process can end while it loads.
    threads = [
        threading.Thread(target=reader.run, args=(jobs, faults), name="reader", daemon=True)
        for reader in readers
    ]
    before = torch.get_num_threads()
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        _empty(jobs)
        torch.set_num_threads(before)  # the readers' own number applies to new threads too
    if faults:
        raise faults[0]


def require_stored(stored: Mapping[str, TensorEntry], wanted: Mapping[str, Destination]) -> None:
    """Check that every weight that is wanted is there, in its shape.

    Raises:
        ModelError: names one that is not, and the file if its part has only one.
    """
    missing = [
        path
        for path, into in wanted.items()
        if path not in stored or stored[path].shape != tuple(into.shape)
    ]
    if missing:
        first = min(missing)
        part = first.partition(".")[0]
        files = {one.file for path, one in stored.items() if path.startswith(f"{part}.")}
        where = files.pop() if len(files) == 1 else f"{part}/"
        fault = f"{len(missing)} weights are missing or have the wrong shape, such as {first}"
        raise ModelError(f"{where}: {fault}")


def _empty(jobs: "queue.SimpleQueue[Job]") -> None:
    with suppress(queue.Empty):
        while True:
            jobs.get_nowait()


class _ProgressMeter:
    """Reports the bytes read every few seconds. `_lock` guards its fields: all readers add to it."""

    def __init__(self, total: int, progress: Callable[[str], None]) -> None:
        self._total, self._progress = total, progress
        self._done, self._reported_s = 0, time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now_s = time.monotonic()
            if now_s - self._reported_s >= REPORT_EVERY_S:
                self._reported_s = now_s
                self._progress(f"weights: {self._done >> 20} of {self._total >> 20} MiB read")


class _Reader:
    """One thread's state: open files, staging memory and, with a GPU, a stream."""

    def __init__(
        self, devices: set[torch.device], meter: _ProgressMeter, packing: PackingTurns
    ) -> None:
        self._meter = meter
        self._packing = packing
        self._files: dict[Path, Any] = {}
        self._device = choose_device(devices)
        self._stream = open_stream(self._device)
        self._staging = torch.empty(0, dtype=torch.uint8)

    def run(self, jobs: "queue.SimpleQueue[Job]", faults: list[BaseException]) -> None:
        """Read until the queue is empty; after a fault, empty it so that the others stop too."""
        torch.set_num_threads(1)  # for this thread: each converts on its own core
        try:
            with suppress(queue.Empty):
                while True:
                    self._read(*jobs.get_nowait())
        except BaseException as error:  # noqa: BLE001 - raised by the thread that joins them
            faults.append(error)
            _empty(jobs)
        finally:
            for file in self._files.values():
                file.close()

    def _read(self, source: TensorEntry, into: Destination, factor: float) -> None:
        if isinstance(into, torch.Tensor):
            self._copy(source, into, factor)
        elif isinstance(into, PackedWeight) and source.is_kept_in(into.encoding):
            self._keep(source, into, factor)
        else:
            self._write_whole(source, into, factor)

    def _keep(self, source: TensorEntry, into: PackedWeight, factor: float) -> None:
        """Read a weight's bytes as they are."""
        place = source.prepare(into.storage, factor)
        step = max(1, CHUNK_BYTES // source.unit_bytes) * source.unit_bytes
        for start in range(0, len(place), step):
            part = place[start : start + step]
            stage = self._stage(len(part)) if part.is_cuda else part
            _fill(self._open(source.path), source, stage, source.offset + start)
            with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                if stage is not part:  # pragma: no cover - needs a GPU
                    part.copy_(stage, non_blocking=True)
                source.require_finite(part)  # which waits for the copy
            self._meter.add(len(part))

    def _write_whole(self, source: TensorEntry, into: WholeWeight, factor: float) -> None:
        """Read a weight whole, to the GPU if there is one, also where it will live on the host."""
        stream = self._packing.stream
        with self._packing.slots:
            with torch.cuda.stream(stream) if stream else nullcontext():
                dtype = source.dtype or torch.float32
                whole = torch.empty(source.shape, dtype=dtype, device=self._device)
            if stream:  # pragma: no cover - needs a GPU
                stream.synchronize()  # the memory may still be read by what was packed before
            self._copy(source, whole, 1.0)
            with self._packing.lock, torch.cuda.stream(stream) if stream else nullcontext():
                into.write(whole.float(), factor)
                if stream:  # pragma: no cover - needs a GPU
                    stream.synchronize()
                del whole

    def _copy(self, source: TensorEntry, into: torch.Tensor, factor: float) -> None:
        file = self._open(source.path)
        flat = into.view(-1)
        direct = flat.dtype == source.dtype and factor == 1.0
        values, size = source.unit_values, source.unit_bytes
        step = values * _count_units(source, flat.dtype)
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step]
            unit = start // values
            size_bytes = part.numel() // values * size
            offset = source.offset + unit * size
            if direct and not part.is_cuda:
                _fill(file, source, part.view(torch.uint8), offset)
                source.require_plain_finite(part)
            else:
                stage = self._stage(size_bytes)
                _fill(file, source, stage, offset)
                source.require_plain_finite(stage)
                self._convert(source, stage, part, unit=unit, factor=factor)
            self._meter.add(size_bytes)

    def _convert(
        self,
        source: TensorEntry,
        stage: torch.Tensor,
        part: torch.Tensor,
        *,
        unit: int,
        factor: float,
    ) -> None:
        """Convert on the GPU if there is one, also weights for the host, which converts slower."""
        target = part
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            if factor == 1.0 and source.dtype == part.dtype:
                part.copy_(stage.view(part.dtype), non_blocking=True)
            else:
                there = stage.to(self._device, non_blocking=True)
                there = source.decode(there, part.dtype, unit=unit, factor=factor)
                if there.device != part.device:  # pragma: no cover - needs a GPU
                    target = self._staging.view(part.dtype)[: part.numel()]
                target.copy_(there, non_blocking=True)
            if self._stream:  # pragma: no cover - needs a GPU
                self._stream.synchronize()
        if target is not part:  # pragma: no cover - needs a GPU
            part.copy_(target)

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = path.open("rb", buffering=0)
        return self._files[path]

    def _stage(self, size_bytes: int) -> torch.Tensor:
        if not self._staging.numel():
            pinned = self._stream is not None
            self._staging = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=pinned)
        return self._staging[:size_bytes]


def _count_units(source: TensorEntry, dtype: torch.dtype) -> int:
    """Return how many units to read at a time: their bytes and their values fit the staging memory."""
    if source.dtype:
        return CHUNK_BYTES // max(source.dtype.itemsize, dtype.itemsize)
    return max(1, CHUNK_BYTES // (_EXPANDING * source.unit_values))


def _fill(file: Any, source: TensorEntry, into: torch.Tensor, offset: int) -> None:
    """Read bytes of a file directly into a tensor on the host.

    Raises:
        ModelError: the file is truncated, or the disk fails.
    """
    array: Any = into.numpy()
    view = memoryview(array)
    done = 0
    name = source.file
    while done < len(view):
        try:
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
        except OSError as error:
            raise ModelError(f"{name} cannot be read") from error
        if not count:
            raise ModelError(f"{name} is damaged or truncated")
        done += count
