"""Time the phases of a start."""

import os
import time
from pathlib import Path

_START_TICKS = 21
"""Place of a process's start among the fields of /proc/self/stat (proc_pid_stat(5)), from zero."""


class PhaseClock:
    """Seconds of each phase, by its name; the first phase begins with the clock."""

    def __init__(self) -> None:
        self.phases_s: dict[str, float] = {}
        self._began_s = time.perf_counter()

    def end(self, name: str) -> None:
        """End the phase `name`, and begin the next."""
        now_s = time.perf_counter()
        self.phases_s[name] = now_s - self._began_s
        self._began_s = now_s


def measure_process_age() -> float:
    """Return the seconds since this process started. Linux only."""
    name_and_rest = Path("/proc/self/stat").read_text()
    ticks = int(name_and_rest.rpartition(")")[2].split()[_START_TICKS - 2])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
