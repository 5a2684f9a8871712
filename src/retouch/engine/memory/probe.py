"""Measure free GPU memory, host memory and CPU quota."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 1 << 30
MIB = 1 << 20
_CGROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Limit, use and detail of the two kinds of control groups."""
_CPU_CGROUPS = (
    ("sys/fs/cgroup/cpu.max",),
    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Microseconds of computing in so many: "200000 100000" are two CPUs."""


@dataclass(frozen=True)
class FreeMemory:
    """Free bytes of the GPU and of the host."""

    gpu_bytes: int
    host_bytes: int


def measure_memory(device: Any, gpu_memory_gib: float = 0.0) -> FreeMemory:
    """Measure what is free, on the GPU at most `gpu_memory_gib` unless that is 0.

    Nor more than the process may take there, where `torch.cuda.set_per_process_memory_fraction` was
    called.
    """
    gpu_bytes = 0
    if device.type == "cuda":
        from torch import cuda

        free_bytes, total_bytes = cuda.mem_get_info(device)
        # Unlike the others it takes no device without an index.
        allowed_bytes = int(total_bytes * cuda.get_per_process_memory_fraction(device.index))
        gpu_bytes = min(free_bytes, allowed_bytes - cuda.memory_reserved(device))
        if gpu_memory_gib:
            gpu_bytes = min(gpu_bytes, int(gpu_memory_gib * GIB))
    return FreeMemory(gpu_bytes, measure_host())


def measure_free(gpu_memory_gib: float = 0.0) -> FreeMemory:
    """Measure this machine's first GPU, if it has one, and its host as `measure_memory` does."""
    import torch  # takes seconds

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return measure_memory(device, gpu_memory_gib)


def measure_host(root: Path = Path("/")) -> int:
    """Return the bytes of host memory that this process may still take, its container's limit included."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used, stat in _CGROUPS:
        try:
            limited = int((root / limit).read_text())  # "max" where there is none
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)$", (root / stat).read_text(), re.MULTILINE
            )
            free.append(
                limited - int((root / used).read_text()) + (int(cached[1]) if cached else 0)
            )
        except (OSError, ValueError):
            continue
    return max(0, min(free))


def measure_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process can keep busy, by its container's quota."""
    count = os.cpu_count() or 1
    for limit in _CPU_CGROUPS:
        try:
            quota, period = (
                int(part) for path in limit for part in (root / path).read_text().split()
            )
        except (OSError, ValueError):  # "max" where there is none
            continue
        if quota > 0:
            count = min(count, -(-quota // period))
    return count
