"""A process with the same model on a further GPU, which computes a branch of each edit or a share of it.

Once a step latents go to a branch's first process and velocities come back, 1 MiB each through a pipe:
nothing beside the 0.3 s of a step, and unlike a collective a pipe says at once that the other side has
died. Those that share its tokens exchange both with it.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from typing import Any

import torch

from retouch.engine.branches import BranchInputs
from retouch.engine.memory.probe import VISIBLE
from retouch.engine.memory.shared_memory import HostShare
from retouch.errors import ModelLost

ENDED = "the process of another GPU has ended"
_END_S = 5.0


@dataclass(frozen=True)
class Join:
    """Asks to meet the others at a port of this host: this is the process at `rank` of `size`."""

    port: int
    rank: int
    size: int


@dataclass(frozen=True)
class Begin:
    """Asks to begin an edit, with one of `size` shares of the tokens."""

    inputs: BranchInputs
    size: int


@dataclass(frozen=True)
class Step:
    """Asks for the velocities of `latents` (1, token, 4 channels), on the host, at a step of the edit.

    Both have no tokens where another process is the first of those that share them.
    """

    latents: torch.Tensor
    number: int


@dataclass(frozen=True)
class Cast:
    """Tells to convert the transformer's weights."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Answer:
    """What came of loading or of a message other than `Cast`: velocities after a step, or a fault."""

    velocities: Sequence[torch.Tensor] = ()
    fault: str = ""
    out_of_memory: bool = False
    lost: bool = False


class RankProcess:
    """The other side of `connection`; `process` runs it, unless a test does."""

    def __init__(self, connection: Any, process: Any = None) -> None:
        self._connection = connection
        self.process = process

    def send(self, message: object) -> None:
        """Send a message.

        Raises:
            ModelLost: the process has ended.
        """
        try:
            self._connection.send_bytes(pickle.dumps(message))
        except OSError as error:
            raise ModelLost(ENDED) from error

    def receive(self) -> Answer:
        """Wait for an answer; it is `lost` if the process ends first.

        If it never comes the edit hangs, and ends as any that hangs: with its process.
        """
        try:
            answer: Answer = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - our own child
        except (OSError, EOFError):
            return Answer(fault=ENDED, lost=True)
        return answer

    def kill(self) -> None:
        """End the process at once. What it has answered can still be received."""
        if self.process:
            self.process.kill()

    def close(self) -> None:
        """End the process in its own time, or after `_END_S` seconds."""
        self._connection.close()
        if self.process:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_S)
            self.process.kill()
            self.process.wait()


def start_process(settings: object, gpu: str) -> RankProcess:
    """Start a process that loads what `settings` say, on `gpu` as CUDA_VISIBLE_DEVICES names it, or as this one.

    It shares the memory of the host that this one shares.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if gpu:
        environment[VISIBLE] = gpu
    share = HostShare.find()
    shared = [share.descriptor] if share else []
    ours, theirs = Pipe()
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
        [sys.executable, "-m", "retouch.engine.rank_child", str(theirs.fileno()), str(os.getpid())],
        env=environment,
        pass_fds=[theirs.fileno(), *shared],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()
    with suppress(OSError):  # if it has ended already, waiting for its model says so
        ours.send_bytes(pickle.dumps(settings))
    return RankProcess(ours, process)
