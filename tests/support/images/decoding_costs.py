"""Decodes through the service's own decoder and says what became of it and what each child used."""

import asyncio
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from retouch import errors
from retouch.images import decode, sandbox
from support.images.decoding import LIMITS, PATIENCE_S

SETTINGS = sandbox.DecoderSettings()
# A limit of processor time is looked at when the clock ticks; the interpreter's own memory is extra.
MAX_CPU_S = SETTINGS.cpu_seconds + 0.1
MAX_RSS_BYTES = SETTINGS.memory_bytes


class MeteredChild(sandbox._Child):  # noqa: SLF001  # only the parent of a process learns its cost
    cpu_s = 0.0
    rss_bytes = 0  # at least the most that this process has used: Linux starts the count from it

    def end(self) -> int:
        process = self._process
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_s, self.rss_bytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
        return super().end()


class MeteredDecoder(sandbox.Decoder):
    def __init__(self, *args: Any) -> None:
        self.ended: dict[int, MeteredChild] = {}
        super().__init__(*args)

    def _run(self, job: sandbox._Job) -> decode.Decoded:
        try:
            return super()._run(job)
        finally:
            if isinstance(job.child, MeteredChild):
                self.ended[id(job.body)] = job.child


@dataclass(frozen=True, slots=True)
class Outcome:
    number: int
    attack: str
    code: str  # of the refusal; empty if decoded
    cpu_s: float
    rss_bytes: int
    faults: tuple[str, ...]


@contextmanager
def metered() -> Iterator[MeteredDecoder]:
    with mock.patch.object(sandbox, "_Child", MeteredChild):
        decoding = MeteredDecoder(LIMITS, SETTINGS)
        try:
            yield decoding
        finally:
            decoding.close()


async def judge(decoding: MeteredDecoder, number: int, attack: str, body: bytes) -> Outcome:
    """Decode `body` and list each way in which that was not a picture or a `BadInput`, at a bearable cost."""
    code, faults = "", []
    try:
        faults += _dishonest(await decoding.decode(body, timeout_s=PATIENCE_S))
    except errors.BadInput as refusal:
        code = refusal.code
        if not refusal.message.isprintable():
            faults.append("the refusal is not printable")
    except Exception as error:  # noqa: BLE001  # whatever else comes out is what is looked for
        code = type(error).__name__
        faults.append(f"raised {error!r}")
    child = decoding.ended.pop(id(body), None)
    if child is None:
        return Outcome(number, attack, code, 0.0, 0, (*faults, "no child decoded it"))
    if child.end() not in (0, -signal.SIGKILL, -signal.SIGXCPU):
        faults.append(f"the child died with {child.end()}")
    if child.cpu_s > MAX_CPU_S:
        faults.append(f"{child.cpu_s:.2f} s of processor time")
    if child.rss_bytes > MAX_RSS_BYTES:
        faults.append(f"{child.rss_bytes >> 20} MiB of memory")
    return Outcome(number, attack, code, child.cpu_s, child.rss_bytes, tuple(faults))


def _dishonest(decoded: decode.Decoded) -> list[str]:
    image = decoded.image
    fits = (
        image.mode == "RGB"
        and 0 < image.width * image.height <= LIMITS.working_pixels
        and 0 < decoded.width_px * decoded.height_px <= LIMITS.max_pixels
    )
    return [] if fits else [f"a picture of {image.mode}, {image.size}"]


async def judge_all(
    decoding: MeteredDecoder, attacks: Iterable[tuple[int, str, bytes]]
) -> list[Outcome]:
    """Judge as many at a time as there are children."""
    outcomes: list[Outcome] = []
    waiting = iter(attacks)

    async def work() -> None:
        for attack in waiting:
            outcomes.append(await judge(decoding, *attack))  # noqa: PERF401  # one iterator, shared

    await asyncio.gather(*(work() for _ in range(SETTINGS.children)))
    return outcomes
