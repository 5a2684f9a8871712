"""Decoding in a child process that can be killed: a picture from a stranger never meets the model's.

A child is started ahead, decodes one picture and ends, as its CPU limit counts over its whole life.
It has no environment, opens nothing, and its answer is believed only as far as it can be checked.
"""

import asyncio
import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import PIL

import retouch
from retouch import errors
from retouch.images import sandbox_child
from retouch.images.decode import Decoded, Limits

_ENTRY: Final = (
    "import sys; sys.path[:] = [sys.argv[1], *sys.path, sys.argv[2]];"
    "from retouch.images.sandbox_child import main; main()"
)
_PIPE_BYTES: Final = 1 << 20
_START_TIMEOUT_S: Final = 20.0
_START_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """How many pictures are decoded at a time, and what one may cost.

    `memory_bytes` come on top of the interpreter's own: 50 MP of WebP need 840 MB.
    """

    children: int = 2
    cpu_seconds: int = 5
    memory_bytes: int = 1 << 30
    timeout_s: float = 10.0


class Decoder:
    """`images.decode` in child processes. Works in any event loop, and in several at a time."""

    def __init__(self, limits: Limits, settings: DecoderSettings | None = None) -> None:
        self._limits = limits
        self._settings = settings or DecoderSettings()
        self._command = _command(limits, self._settings)
        self._closed = False
        self._jobs: set[_Job] = set()
        children = self._settings.children
        self._workers = ThreadPoolExecutor(children, thread_name_prefix="decoder")
        self._starters = ThreadPoolExecutor(children, thread_name_prefix="decoder-start")
        self._spares = deque(self._starters.submit(self._start) for _ in range(children))

    async def decode(self, body: bytes, *, timeout_s: float) -> Decoded:
        """Decode `body` as `images.decode` does; cancelling ends the child.

        Raises:
            BadInput: as `images.decode`, and `ImageTooCostly` past the limits of the settings.
            Overloaded: no child was free within `timeout_s`.
            DeadlineExceeded: `timeout_s` ended a decode that was still within its own limits.
            NotReady: the decoder is being closed.
            InternalError: no child could be started.
        """
        job = _Job(body, time.monotonic() + timeout_s)
        try:
            future = self._workers.submit(self._run, job)
        except RuntimeError as error:
            raise _stopping() from error
        answer = asyncio.wrap_future(future)
        try:
            await asyncio.wait([answer], timeout=timeout_s)
            if future.cancel():  # still in the queue
                retry_after_s = max(1, round(self._settings.timeout_s))
                raise errors.Overloaded(
                    "too many images are being decoded", details={"retry_after": retry_after_s}
                )
            return await answer  # a job that runs ends by itself at its deadline
        except asyncio.CancelledError:
            answer.cancel()
            job.cancel()
            raise

    def close(self) -> None:
        """End every child and thread. What is being decoded ends with `NotReady`."""
        self._closed = True
        for job in tuple(self._jobs):
            job.cancel()
        self._workers.shutdown()
        self._starters.shutdown()
        for spare in self._spares:
            _end(spare)

    def _run(self, job: "_Job") -> Decoded:
        self._jobs.add(job)
        try:
            if self._closed:
                raise _stopping()
            spare = self._spares.popleft()  # never empty: there is one for each worker
            try:
                job.child = self._take(spare, job.deadline_s)
                return self._decode(job, job.child)
            finally:
                if job.child:
                    job.child.end()
                # Only now: a start takes 0.1 s of processor time, and the picture came first.
                self._spares.append(self._starters.submit(self._start))
        finally:
            self._jobs.discard(job)

    def _decode(self, job: "_Job", child: "_Child") -> Decoded:
        own_deadline_s = time.monotonic() + self._settings.timeout_s
        deadline_s = min(job.deadline_s, own_deadline_s)
        try:
            if job.cancelled:
                child.kill()
            child.write(sandbox_child.LENGTH.pack(len(job.body)), deadline_s)
            child.write(job.body, deadline_s)
            return sandbox_child.receive(lambda count: child.read(count, deadline_s), self._limits)
        except TimeoutError as error:
            if deadline_s < own_deadline_s:
                raise _out_of_time() from error
            raise errors.DecodeLimitExceeded(
                f"decoding the image took more than {self._settings.timeout_s:g} s"
            ) from error
        except (EOFError, OSError) as error:
            if self._closed:
                raise _stopping() from error
            raise errors.DecodeLimitExceeded(
                f"decoding the image took more than {self._settings.cpu_seconds} s of processor time"
                f" or {self._settings.memory_bytes >> 20} MiB of memory",
                returncode=child.end(),
            ) from error

    def _take(self, spare: "Future[_Child]", deadline_s: float) -> "_Child":
        for _ in range(_START_TRIES):
            try:
                child = spare.result(max(0.0, deadline_s - time.monotonic()))
            except TimeoutError as error:
                spare.add_done_callback(_end)
                raise _out_of_time() from error
            except errors.InternalError as error:
                failure = error
            else:
                if child.is_alive():
                    return child
                failure = _no_child(child.end())  # killed while it waited
            spare = self._starters.submit(self._start)
        spare.add_done_callback(_end)
        raise failure

    def _start(self) -> "_Child":
        try:
            child = _Child(self._command)
        except OSError as error:
            raise _no_child() from error
        try:
            child.read(len(sandbox_child.READY), time.monotonic() + _START_TIMEOUT_S)
        except (EOFError, OSError) as error:
            raise _no_child(returncode=child.end()) from error
        return child


class _Job:
    """One call of `decode`, shared by the loop that may cancel it and the thread that does it."""

    def __init__(self, body: bytes, deadline_s: float) -> None:
        self.body = body
        self.deadline_s = deadline_s
        self.cancelled = False
        self.child: _Child | None = None

    def cancel(self) -> None:
        # The thread sets `child` first and reads `cancelled` after: one of the two sees the other.
        self.cancelled = True
        if self.child is not None:
            self.child.kill()


class _Child:
    """A process and its two pipes, read and written with deadlines."""

    def __init__(self, command: list[str]) -> None:
        # A session of its own keeps the terminal's Ctrl-C, meant for the service, from it.
        self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and entry
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={},
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101  # for mypy: both are pipes
        assert self._process.stdout is not None  # noqa: S101
        self._in, self._out = self._process.stdin, self._process.stdout
        for pipe in (self._in, self._out):
            os.set_blocking(pipe.fileno(), False)
            with suppress(OSError, AttributeError):  # over the user's quota, or not Linux
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def write(self, data: bytes, deadline_s: float) -> None:
        view = memoryview(data)
        while view:
            _wait(self._in.fileno(), select.POLLOUT, deadline_s)
            view = view[os.write(self._in.fileno(), view) :]

    def read(self, count: int, deadline_s: float) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while view:
            _wait(self._out.fileno(), select.POLLIN, deadline_s)
            got = os.readv(self._out.fileno(), [view])
            if not got:
                raise EOFError
            view = view[got:]
        return data

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> int:
        """Kill and reap the process, close the pipes. Again is allowed."""
        self._process.kill()
        self._in.close()
        self._out.close()
        return self._process.wait()


def _command(limits: Limits, settings: DecoderSettings) -> list[str]:
    # -I: no PYTHON* variables, no user's packages, not this folder; -S: no .pth file runs, so the two
    # folders that are needed are named; -B: no bytecode is written.
    package, pillow = (str(Path(module.__path__[0]).parent) for module in (retouch, PIL))
    options = json.dumps(
        {
            "limits": asdict(limits),
            "cpu_seconds": settings.cpu_seconds,
            "memory_bytes": settings.memory_bytes,
        }
    )
    flags = ["-I", "-S", "-B", "-W", "ignore"]
    return [sys.executable, *flags, "-c", _ENTRY, package, pillow, options]


def _wait(pipe: int, event: int, deadline_s: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    left_s = deadline_s - time.monotonic()
    if left_s <= 0 or not poll.poll(left_s * 1000):
        raise TimeoutError


def _end(spare: "Future[_Child]") -> None:
    with suppress(errors.InternalError):
        spare.result().end()


def _no_child(returncode: int | None = None) -> errors.InternalError:
    return errors.InternalError("the image decoder could not be started", returncode=returncode)


def _out_of_time() -> errors.DeadlineExceeded:
    return errors.DeadlineExceeded("the time was up before the image was decoded")


def _stopping() -> errors.NotReady:
    return errors.NotReady("the service is stopping")
