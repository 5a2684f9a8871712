"""Reads safetensors files on many threads, each weight straight to where it will live."""

import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retouch.engine.checkpoint.files import WEIGHTED, list_weights
from retouch.engine.memory.probe import measure_cpus
from retouch.errors import ModelError

CHUNK_BYTES = 16 << 20
"""Read and converted at a time: little enough for a cache, and for many threads' staging memory."""
MIN_THREADS, MAX_THREADS = 8, 16
"""A disk far away answers many at once, however few CPUs wait for it."""
REPORT_EVERY_S = 5.0
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_OLD_NAMES = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(?!language_model\.|visual\.)"), "model.language_model."),
)
"""Qwen2.5-VL's checkpoints keep the names of transformers before 4.52; as its conversion_mapping.py."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A weight in a file; `kind` is safetensors' name of its type."""

    path: Path
    offset: int
    size_bytes: int
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        """Its type.

        Raises:
            ModelError: none that a weight of this family has.
        """
        if self.kind not in _DTYPES:
            raise ModelError(f"{self.path.parent.name}/{self.path.name} holds {self.kind} weights")
        return _DTYPES[self.kind]


Job = tuple[TensorEntry, torch.Tensor, float]
"""A weight, where it will live, and what it is multiplied by on the way."""


def read_headers(folder: Path) -> dict[str, TensorEntry]:
    """Return every weight in a checkpoint's files by its path, `vae.encoder.conv_in.weight`.

    Raises:
        ModelError: a file is missing or damaged.
    """
    return {
        f"{part}.{name}": stored
        for part in WEIGHTED
        for name, stored in read_part(folder / part).items()
    }


def read_part(folder: Path) -> dict[str, TensorEntry]:
    """Return every weight in the files of one part by its present name.

    Raises:
        ModelError: a file is missing or damaged.
    """
    found = {}
    for path in list_weights(folder):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            found[_rename(name)] = TensorEntry(
                path,
                8 + length + begin,
                end - begin,
                tuple(entry["shape"]),
                entry["dtype"],
            )
    return found


def read_weights(
    stored: Mapping[str, TensorEntry],
    wanted: Mapping[str, torch.Tensor],
    *,
    scale: Callable[[str], float] = lambda _: 1.0,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Fill the tensors `wanted` from what is `stored`, each times `scale` of its path, a power of two.

    Conversion to a tensor's own type is done on the way. What is stored beside is left out.

    Raises:
        ModelError: a weight is missing, of another shape or of a type that none has, or a file cannot
            be read.
    """
    lacking = [
        path
        for path, into in wanted.items()
        if path not in stored or stored[path].shape != tuple(into.shape)
    ]
    if lacking:
        count, first = len(lacking), min(lacking)
        raise ModelError(f"{count} weights are missing or of another shape, such as {first}")
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for path in sorted(wanted, key=lambda path: (stored[path].path, stored[path].offset)):
        jobs.put((stored[path], wanted[path], scale(path)))  # in the order of the files
    meter = _ProgressMeter(sum(stored[path].size_bytes for path in wanted), progress)
    devices = {into.device for into in wanted.values()}
    count = min(MAX_THREADS, max(MIN_THREADS, measure_cpus()), jobs.qsize())
    readers = [_Reader(devices, meter) for _ in range(count)]
    faults: list[BaseException] = []
    # Daemons: a process that shall end while it loads ends.
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
        torch.set_num_threads(before)  # which the readers' own number is, for threads to come
    if faults:
        raise faults[0]


def _empty(jobs: "queue.SimpleQueue[Job]") -> None:
    with suppress(queue.Empty):
        while True:
            jobs.get_nowait()


class _ProgressMeter:
    """Tells how far the reading is, every few seconds."""

    def __init__(self, total: int, progress: Callable[[str], None]) -> None:
        self._total, self._progress = total, progress
        self._done, self._told_s = 0, time.monotonic()
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            now_s = time.monotonic()
            if now_s - self._told_s >= REPORT_EVERY_S:
                self._told_s = now_s
                self._progress(f"weights: {self._done >> 20} of {self._total >> 20} MiB read")


class _Reader:
    """One thread's share: its open files, its staging memory and on a GPU its stream."""

    def __init__(self, devices: set[torch.device], meter: _ProgressMeter) -> None:
        self._meter = meter
        self._files: dict[Path, Any] = {}
        self._device = next((one for one in devices if one.type == "cuda"), torch.device("cpu"))
        self._stream: Any = None
        if self._device.type == "cuda":  # pragma: no cover - needs a GPU
            cuda: Any = torch.cuda
            self._stream = cuda.Stream(self._device)
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._staging = torch.empty(0, dtype=torch.uint8)

    def run(self, jobs: "queue.SimpleQueue[Job]", faults: list[BaseException]) -> None:
        """Read until nothing is left; after a fault, leave nothing for the others to do."""
        torch.set_num_threads(1)  # of this thread: each of them converts on its own core
        try:
            with suppress(queue.Empty):
                while True:
                    self._read(*jobs.get_nowait())
        except BaseException as error:  # noqa: BLE001 - raised where the threads are waited for
            faults.append(error)
            _empty(jobs)
        finally:
            for file in self._files.values():
                file.close()

    def _read(self, source: TensorEntry, into: torch.Tensor, factor: float) -> None:
        if source.path not in self._files:
            self._files[source.path] = source.path.open("rb", buffering=0)
        file = self._files[source.path]
        flat = into.view(-1)
        straight = flat.dtype == source.dtype and factor == 1.0
        step = CHUNK_BYTES // max(source.dtype.itemsize, flat.dtype.itemsize)
        for start in range(0, flat.numel(), step):
            part = flat[start : start + step]
            size_bytes = part.numel() * source.dtype.itemsize
            offset = source.offset + start * source.dtype.itemsize
            if straight and not part.is_cuda:
                _fill(file, source, part.view(torch.uint8), offset)
            else:
                stage = self._stage(size_bytes)
                _fill(file, source, stage, offset)
                self._convert(stage.view(source.dtype), part, factor)
            self._meter.add(size_bytes)

    def _convert(self, stage: torch.Tensor, part: torch.Tensor, factor: float) -> None:
        """Convert on the GPU if there is one, also what will live on the host: that is slower at it."""
        home = part
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            if factor == 1.0 and stage.dtype == part.dtype:
                part.copy_(stage, non_blocking=True)
            else:
                there = stage.to(self._device, non_blocking=True).mul_(factor).to(part.dtype)
                if there.device != part.device:  # pragma: no cover - needs a GPU
                    home = self._staging.view(part.dtype)[: part.numel()]
                home.copy_(there, non_blocking=True)
            if self._stream:  # pragma: no cover - needs a GPU
                self._stream.synchronize()
        if home is not part:  # pragma: no cover - needs a GPU
            part.copy_(home)

    def _stage(self, size_bytes: int) -> torch.Tensor:
        if not self._staging.numel():
            pinned = self._stream is not None
            self._staging = torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=pinned)
        return self._staging[:size_bytes]


def _fill(file: Any, source: TensorEntry, into: torch.Tensor, offset: int) -> None:
    """Read bytes of a file straight into a tensor of the host.

    Raises:
        ModelError: the file ends too early, or the disk fails.
    """
    array: Any = into.numpy()
    view = memoryview(array)
    done = 0
    name = f"{source.path.parent.name}/{source.path.name}"
    while done < len(view):
        try:
            count = os.preadv(file.fileno(), [view[done:]], offset + done)
        except OSError as error:
            raise ModelError(f"{name} cannot be read") from error
        if not count:
            raise ModelError(f"{name} is damaged or cut short")
        done += count


def _rename(name: str) -> str:
    for pattern, replacement in _OLD_NAMES:
        name = pattern.sub(replacement, name)
    return name
