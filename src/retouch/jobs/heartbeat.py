"""Which processes live: each with work writes a small object every 15 s, named by the time.

Whoever reads needs no list of them: it asks for the objects of the last minute, newest first. Clocks
may differ by 15 s.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from retouch.jobs.records import Records
from retouch.schema import Progress

SLOTS = 4
"""A process is lost after so many slots without a heartbeat: 60 s."""

_LEASE_SLOTS = 3


class Heartbeat:
    """Writes this process's heartbeats and reads those of others; `every_s` is the length of a slot."""

    def __init__(self, records: Records, process: str, *, every_s: float = 15.0) -> None:
        self._records = records
        self._process = process
        self.every_s = every_s
        self._written_slot = -1
        self._writing: asyncio.Task[None] | None = None
        self._lease_ends_s = float("-inf")

    @property
    def left_in_slot_s(self) -> float:
        """Seconds until the next heartbeat is due."""
        return self.every_s - time.time() % self.every_s

    @property
    def holds_lease(self) -> bool:
        """Whether no other process can take this one for lost yet.

        Without it a job may be reported as lost already, so that nothing else must be written of it.
        """
        return time.monotonic() < self._lease_ends_s

    async def beat(self, progress: Mapping[str, Progress | None]) -> None:
        """Write the heartbeat of this slot, with the progress of each job, unless it is written.

        Jobs that begin together wait for one that is being written.

        Raises:
            StorageError: it could not be written.
        """
        slot = self._slot()
        while slot != self._written_slot:
            if self._writing is None or self._writing.done():
                self._writing = asyncio.ensure_future(self._write(slot, progress))
            await asyncio.shield(self._writing)

    async def _write(self, slot: int, progress: Mapping[str, Progress | None]) -> None:
        began_s = time.monotonic()
        jobs = {name: one.model_dump() if one else None for name, one in progress.items()}
        await self._records.write(f"alive/{self._process}/{slot}", {"jobs": jobs}, is_urgent=True)
        self._written_slot = slot
        self._lease_ends_s = began_s + _LEASE_SLOTS * self.every_s

    async def find(self, process: str) -> dict[str, Any] | None:
        """Return the newest heartbeat of a process, or None if it is lost.

        Raises:
            StorageError: the store did not answer.
        """
        slot = self._slot()
        for candidate in (slot, slot - 1, slot + 1, *range(slot - 2, slot - SLOTS - 1, -1)):
            beat = await self._records.read(f"alive/{process}/{candidate}")
            if beat is not None:
                return beat
        return None

    def _slot(self) -> int:
        return int(time.time() // self.every_s)
