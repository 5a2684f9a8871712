"""A process with the same model on a second GPU, which computes the second guidance branch of each edit.

Latents go there and a velocity comes back once a step, 1 MiB each through a pipe: nothing beside the
0.3 s of a step, and unlike a collective a pipe says at once that the other side has died.
"""

import os
import pickle
import subprocess
import sys
import weakref
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

import torch

from retouch.engine.branches import BranchInputs
from retouch.errors import ModelError, ModelLost, OutOfMemory

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_END_S = 5.0


@dataclass(frozen=True)
class Step:
    """Asks for the velocity of `latents` (1, token, 4 channels), on the host, at a step of the edit."""

    latents: torch.Tensor
    number: int


@dataclass(frozen=True)
class Cast:
    """Tells to convert the transformer's weights."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Answer:
    """What came of loading or of a step: a velocity, or a fault."""

    velocity: torch.Tensor | None = None
    fault: str = ""
    out_of_memory: bool = False


class GuidanceProcess:
    """The other side of `connection`; `process` runs it, unless a test does. `close` ends it."""

    def __init__(self, connection: Any, process: subprocess.Popen[bytes] | None = None) -> None:
        self._connection = connection
        self.close = weakref.finalize(self, _end, connection, process)

    def start(self, inputs: BranchInputs) -> None:
        """Begin an edit there.

        Raises:
            ModelLost: the process has ended.
        """
        self._send(inputs.to("cpu"))

    def begin_step(self, latents: torch.Tensor, step: int) -> None:
        """Have a step computed.

        Raises:
            ModelLost: the process has ended.
        """
        self._send(Step(latents.cpu(), step))

    def finish_step(self) -> torch.Tensor:
        """Wait for the step's velocity.

        If it never comes the edit hangs, and ends as any that hangs: with its process.

        Raises:
            OutOfMemory: the other GPU ran out of memory.
            ModelError: the model failed there.
            ModelLost: the process has ended.
        """
        answer = self._receive()
        if answer.out_of_memory:
            raise OutOfMemory("the second GPU ran out of memory; a smaller image may fit")
        if answer.velocity is None:
            raise ModelError("the model failed on this edit", reason=answer.fault)
        return answer.velocity

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights there.

        Raises:
            ModelLost: the process has ended.
        """
        self._send(Cast(dtype))

    def wait_until_loaded(self) -> None:
        """Wait for the model there.

        Raises:
            ModelError: it could not be loaded.
        """
        try:
            answer = self._receive()
        except ModelLost as error:
            raise ModelError("the process of the second GPU ended while it loaded") from error
        if answer.fault:
            raise ModelError(f"on the second GPU: {answer.fault}")

    def _send(self, message: object) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(message))
        except OSError as error:
            raise ModelLost("the process of the second GPU has ended") from error

    def _receive(self) -> Answer:
        try:
            answer: Answer = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own child
        except (OSError, EOFError) as error:
            raise ModelLost("the process of the second GPU has ended") from error
        return answer


def _end(connection: Any, process: subprocess.Popen[bytes] | None) -> None:
    connection.close()
    if process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        process.kill()
        process.wait()


def start_guidance_process(settings: object, device: torch.device) -> GuidanceProcess:
    """Start the process on the second GPU this one sees, or on the CPU where `device` is that.

    It loads meanwhile: `settings` are `CheckpointSettings`, which this module only passes on.

    Raises:
        ModelError: there is no second GPU.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if device.type == "cuda":
        environment[_VISIBLE] = choose_second_gpu(
            os.environ.get(_VISIBLE, ""), torch.cuda.device_count()
        )
    ours, theirs = Pipe()
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
        [sys.executable, "-m", "retouch.engine.guidance_child", str(theirs.fileno())],
        env=environment,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    with suppress(OSError):  # if it has ended already, waiting for its model says so
        ours.send_bytes(pickle.dumps(settings))
    return GuidanceProcess(ours, process)


def choose_second_gpu(visible: str, count: int) -> str:
    """Return the second GPU as CUDA_VISIBLE_DEVICES names it, of `count` that are visible.

    Raises:
        ModelError: there is none.

    >>> choose_second_gpu("", 2), choose_second_gpu("4,GPU-7", 2)
    ('1', 'GPU-7')
    """
    if count < 2:  # noqa: PLR2004 - a pair
        raise ModelError("PARALLEL=guidance needs two GPUs, and there is one")
    return visible.split(",")[1].strip() if visible else "1"
