"""Decode through the service's own sandbox and report the outcome and what each child used."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from retouch import errors
from retouch.images import decode, sandbox
from support.images.decoding import LIMITS, PATIENCE_S

SETTINGS = sandbox.DecoderSettings()
# The kernel checks the CPU limit at clock ticks; the interpreter's own memory is extra.
MAX_CPU_S = SETTINGS.cpu_seconds + 0.1
MAX_RSS_BYTES = SETTINGS.memory_bytes


class MeteredChild(subprocess.Popen[bytes]):
    """A process whose cost is read as it is reaped, when the kernel tells it once."""

    cpu_s = 0.0
    rss_bytes = 0  # at least the most that this process has used: Linux starts the count from it

    def poll(self) -> int | None:
        self._reap(os.WNOHANG)
        return super().poll()

    def wait(self, timeout: float | None = None) -> int:
        self._reap(0)
        return super().wait(timeout)

    def _reap(self, options: int) -> None:
        if self.returncode is None:
            pid, status, usage = os.wait4(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self.cpu_s, self.rss_bytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10


class MeteredDecoder:
    """A decoder of one child at a time that keeps the children which ended; `script` replaces them."""

    def __init__(self, script: str | None = None) -> None:
        self._script = script
        self._started: list[MeteredChild] = []
        settings = replace(SETTINGS, children=1)
        self._decoder = sandbox.Decoder(LIMITS, settings, spawn=self._spawn)
        self.close = self._decoder.close

    async def decode(self, body: bytes) -> decode.Decoded:
        return await self._decoder.decode(body, timeout_s=4 * PATIENCE_S)

    def take_ended(self) -> list[MeteredChild]:
        """Return the children that ended since the last call."""
        ended = [child for child in self._started if child.returncode is not None]
        self._started = [child for child in self._started if child.returncode is None]
        return ended

    def _spawn(self, command: list[str]) -> sandbox.Child:
        if self._script is not None:
            command = [sys.executable, "-c", self._script]
        child = sandbox.start_child(command, MeteredChild)
        assert isinstance(child, MeteredChild)
        self._started.append(child)
        return child


@dataclass(frozen=True, slots=True)
class Outcome:
    number: int
    attack: str
    code: str  # of the refusal; empty if decoded
    cpu_s: float
    rss_bytes: int
    faults: tuple[str, ...]


@contextmanager
def metered(
    count: int = SETTINGS.children, script: str | None = None
) -> Iterator[list[MeteredDecoder]]:
    with ExitStack() as exits:
        decoders = [MeteredDecoder(script) for _ in range(count)]
        for each in decoders:
            exits.callback(each.close)
        yield decoders


async def judge(decoding: MeteredDecoder, number: int, attack: str, body: bytes) -> Outcome:
    """Decode `body`; anything but an image or a `BadInput` at a bearable cost is a fault."""
    code, faults = "", []
    try:
        faults += _dishonest(await decoding.decode(body))
    except errors.BadInput as refusal:
        code = refusal.code
        if not refusal.message.isprintable():
            faults.append("the refusal is not printable")
    except Exception as error:  # noqa: BLE001  # whatever else comes out is what is looked for
        code = type(error).__name__
        faults.append(f"raised {error!r}")
    ended = decoding.take_ended()
    if len(ended) != 1:
        return Outcome(number, attack, code, 0.0, 0, (*faults, f"{len(ended)} children decoded it"))
    (child,) = ended
    if child.returncode not in (0, -signal.SIGKILL, -signal.SIGXCPU):
        faults.append(f"the child died with {child.returncode}")
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
        and 0 < decoded.width_px * decoded.height_px <= LIMITS.max_pixels_of(decoded.format)
    )
    return [] if fits else [f"a picture of {image.mode}, {image.size}"]


async def judge_all(
    decoders: list[MeteredDecoder], attacks: Iterable[tuple[int, str, bytes]]
) -> list[Outcome]:
    """Judge as many at a time as there are decoders."""
    outcomes: list[Outcome] = []
    waiting = iter(attacks)

    async def work(decoding: MeteredDecoder) -> None:
        for attack in waiting:
            outcomes.append(await judge(decoding, *attack))  # noqa: PERF401  # one iterator, shared

    await asyncio.gather(*(work(each) for each in decoders))
    return outcomes
