"""Decode in a child process that can be killed: a stranger's image never shares a process with the model.

A child is started ahead of its image, decodes one and exits, because a CPU limit counts over a whole
process. It has no environment and opens nothing, and its answer is checked before it is believed.
"""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Final

import PIL

import retouch
from retouch import errors
from retouch.images import sandbox_child
from retouch.images.decode import Decoded, Limits
from retouch.images.kind import Kind

_ENTRY: Final = (
    "import sys; sys.path[:] = [sys.argv[1], *sys.path, sys.argv[2]];"
    "from retouch.images.sandbox_child import main; main()"
)
_MAX_WALL_S: Final = 60.0
"""A decode that blocks without using the processor gives its child back after this."""
_TRIES: Final = 2
"""Where the kernel's OOM killer ended a child, it is likely to end the next one too."""
# A child that is killed from outside, as by the kernel's OOM killer, says nothing about its image. Other
# signals do: the CPU limit's, and crashes, since not every library checks allocations.
_KILLED: Final = (-signal.SIGKILL, -signal.SIGTERM)
Child = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """How many images are decoded at a time, and what one may cost.

    `memory_bytes` come on top of the interpreter's own: 50 megapixels of WebP need 840 MB.
    """

    children: int = 2
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30


def start_child(command: list[str], kind: type[Child] = subprocess.Popen) -> Child:
    """Start `command` without environment, with pipes, as a `kind` of process.

    It gets a session of its own, so that Ctrl-C in the service's terminal does not reach it.
    """
    child = kind(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={},
        cwd="/",
        start_new_session=True,
    )
    os.set_blocking(_fileno(child.stdin), False)
    return child


class _Job:
    """One call of `decode`, shared by the loop that may cancel it and the thread that runs it."""

    def __init__(self, body: bytes, kind: Kind, deadline_s: float) -> None:
        self.body = body
        self.kind: Kind = kind
        self.deadline_s = deadline_s
        self.is_cancelled = False
        self._child: Child | None = None

    def cancel(self) -> None:
        # `use` sets `_child` before it reads the flag: one of the two threads sees the other's write.
        self.is_cancelled = True
        if self._child is not None:
            self._child.kill()

    def use(self, child: Child) -> None:
        self._child = child
        if self.is_cancelled:
            child.kill()


class Decoder:
    """`decode.decode` in child processes; usable from any event loop, and from several at a time.

    `spawn` starts a child from its command line.
    """

    def __init__(
        self,
        limits: Limits,
        settings: DecoderSettings | None = None,
        *,
        spawn: Callable[[list[str]], Child] = start_child,
    ) -> None:
        self._limits = limits
        self._settings = settings or DecoderSettings()
        self._spawn = partial(spawn, _command(limits, self._settings))
        self._is_closed = False
        self._jobs: set[_Job] = set()
        self._workers = ThreadPoolExecutor(self._settings.children, thread_name_prefix="decoder")
        self._spares: deque[Child] = deque()
        for _ in range(self._settings.children):
            self._add_spare()

    async def decode(self, body: bytes, *, timeout_s: float, kind: Kind = "picture") -> Decoded:
        """Decode `body` as `decode.decode` does; cancelling kills the child.

        Raises:
            BadInput: as `decode.decode`; `DecodeLimitExceeded` also past the limits of the settings.
            DecoderBusy: no child was free, or done, within `timeout_s` and a minute, or each was killed.
            NotReady: the decoder is closed.
            InternalError: children cannot be started.
        """
        timeout_s = min(timeout_s, _MAX_WALL_S)
        job = _Job(body, kind, time.monotonic() + timeout_s)
        try:
            future = self._workers.submit(self._run, job)
        except RuntimeError as error:
            raise _stopping() from error
        answer = asyncio.wrap_future(future)
        try:
            await asyncio.wait([answer], timeout=timeout_s)
            if future.cancel():  # still queued
                raise errors.DecoderBusy
            return await answer  # a running job ends by itself at its deadline
        except asyncio.CancelledError:
            answer.cancel()
            job.cancel()
            raise

    def close(self) -> None:
        """End every child and thread; running decodes raise `NotReady`."""
        self._is_closed = True
        for job in tuple(self._jobs):
            job.cancel()
        self._workers.shutdown()
        while self._spares:
            _end(self._spares.popleft())

    def _run(self, job: _Job) -> Decoded:
        self._jobs.add(job)
        try:
            return self._decode(job)
        except TimeoutError as error:
            raise errors.DecoderBusy from error
        except OSError as error:
            raise errors.InternalError("the image decoder could not be started") from error
        finally:
            self._jobs.discard(job)
            self._add_spare()  # only now: starting takes 0.1 s of CPU, and this image came first

    def _decode(self, job: _Job) -> Decoded:
        status = 0
        for _ in range(_TRIES):  # a child may be killed from outside
            if self._is_closed or job.is_cancelled:
                raise _stopping()
            child = self._take()
            job.use(child)
            try:
                return self._exchange(job, child)
            except (EOFError, BrokenPipeError) as error:
                status = _end(child)
                if status < 0 and status not in _KILLED:
                    raise errors.DecodeLimitExceeded(
                        f"decoding the image took more than {self._settings.cpu_seconds} s of"
                        f" processor time or {self._settings.memory_bytes >> 20} MiB of memory",
                        returncode=status,
                    ) from error
            finally:
                _end(child)
        if status in _KILLED:
            raise errors.DecoderBusy(returncode=status)
        raise ChildProcessError(f"the decoder exits with status {status}")

    def _take(self) -> Child:
        with suppress(IndexError):
            while True:
                child = self._spares.popleft()
                if child.poll() is None:
                    return child
                _end(child)  # killed while it waited, which says nothing about this image
        return self._spawn()

    def _add_spare(self) -> None:
        with suppress(OSError):  # the next job starts its own child, and reports the failure
            self._spares.append(self._spawn())

    def _exchange(self, job: _Job, child: Child) -> Decoded:
        request = sandbox_child.REQUEST.pack(job.kind == "mask", len(job.body))
        _write(child, request, job.deadline_s)
        _write(child, job.body, job.deadline_s)
        return sandbox_child.receive(partial(_read, child, job.deadline_s), self._limits, job.kind)


def _command(limits: Limits, settings: DecoderSettings) -> list[str]:
    # -I: no PYTHON* variables, no user site, no working directory; -S: no .pth files, so the two
    # directories that are needed are named; -B: no bytecode is written.
    package, pillow = (str(Path(module.__path__[0]).parent) for module in (retouch, PIL))
    options = json.dumps({"limits": asdict(limits), "settings": asdict(settings)})
    flags = ["-I", "-S", "-B", "-W", "ignore"]
    return [sys.executable, *flags, "-c", _ENTRY, package, pillow, options]


def _write(child: Child, data: bytes, deadline_s: float) -> None:
    pipe, view = _fileno(child.stdin), memoryview(data)
    while view:
        _wait(pipe, select.POLLOUT, deadline_s)
        view = view[os.write(pipe, view) :]


def _read(child: Child, deadline_s: float, count: int) -> bytearray:
    pipe, data = _fileno(child.stdout), bytearray(count)
    view = memoryview(data)
    while view:
        _wait(pipe, select.POLLIN, deadline_s)
        got = os.readv(pipe, [view])
        if not got:
            raise EOFError
        view = view[got:]
    return data


def _end(child: Child) -> int:
    """Kill and reap the process and close its pipes; return the status with which it ended."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    return child.wait()


def _fileno(pipe: IO[bytes] | None) -> int:
    assert pipe is not None  # noqa: S101  # for mypy
    return pipe.fileno()


def _wait(pipe: int, event: int, deadline_s: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    left_s = deadline_s - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1000):
        raise TimeoutError


def _stopping() -> errors.NotReady:
    return errors.NotReady("the service is stopping")
