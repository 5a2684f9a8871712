"""Measure free GPU memory, host memory and CPU quota."""

import os
import re
from pathlib import Path
from typing import Any

from retouch.engine.memory.plan import GIB, FreeMemory
from retouch.engine.memory.shared_memory import HostShare
from retouch.errors import ModelError

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Variable that names the GPUs a process may use."""
DRIVER = Path("/dev/nvidiactl")
"""Exists where a GPU driver is loaded."""
_CGROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Files of limit, usage and detail in control groups of version 2 and 1."""
_CPU_CGROUPS = (
    ("sys/fs/cgroup/cpu.max",),
    ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Quota and period in microseconds: "200000 100000" are two CPUs."""


def find_device() -> Any:
    """Return the torch device to run on: the GPU if there is one, else the CPU."""
    import torch  # takes seconds

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_driver() -> None:
    """Refuse a GPU that torch cannot use: a full model would run on the CPU, in twice the memory.

    Raises:
        ModelError: there is a driver, but torch finds no GPU.
    """
    import torch

    if torch.cuda.is_available() or not DRIVER.exists():
        return
    needs = "is built without CUDA: install requirements.txt with pip in a new environment"
    if torch.version.cuda:
        needs = f"needs a driver for CUDA {torch.version.cuda}"
    raise ModelError(f"the GPU cannot be used: torch {torch.__version__} {needs}")


def measure_free(gpu_memory_gib: float = 0.0, host_memory_gib: float = 0.0) -> FreeMemory:
    """Measure free memory: of GPU and host at most so much, unless it is 0.

    What other processes share with this one counts as free: it will have the same. Of the GPU also at
    most what `torch.cuda.set_per_process_memory_fraction` allows the process.
    """
    device, gpu_bytes = find_device(), 0
    if device.type == "cuda":
        from torch import cuda

        free_bytes, total_bytes = cuda.mem_get_info(device)
        # Unlike the others this does not take a device without an index.
        allowed_bytes = int(total_bytes * cuda.get_per_process_memory_fraction(device.index))
        gpu_bytes = min(free_bytes, allowed_bytes - cuda.memory_reserved(device))
        if gpu_memory_gib:
            gpu_bytes = min(gpu_bytes, int(gpu_memory_gib * GIB))
    share = HostShare.find()
    host_bytes = measure_host() + (share.used_bytes if share else 0)
    if host_memory_gib:
        host_bytes = min(host_bytes, int(host_memory_gib * GIB))
    return FreeMemory(gpu_bytes, host_bytes, share)


def measure_host(root: Path = Path("/")) -> int:
    """Return the host memory in bytes that this process may still take, within its container's limit."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used, stat in _CGROUPS:
        try:
            limited = int((root / limit).read_text())  # "max" means no limit
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
    """Return how many CPUs this process can keep busy within its container's quota."""
    count = os.cpu_count() or 1
    for limit in _CPU_CGROUPS:
        try:
            quota, period = (
                int(part) for path in limit for part in (root / path).read_text().split()
            )
        except (OSError, ValueError):  # "max" means no limit
            continue
        if quota > 0:
            count = min(count, -(-quota // period))
    return count
