"""A process of `rank_process`: `python -m retouch.engine.rank_child <file descriptor> <parent>`.

Reads `CheckpointSettings`, loads, and then computes its part of each edit until the pipe is closed.
"""

import logging
import os
import pickle
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from retouch import logs
from retouch.engine.branches import LocalBranches, Velocities
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.engine.parent import watch_parent
from retouch.engine.rank_process import Answer, Begin, Cast, Join, Step
from retouch.engine.ulysses import WHOLE, Share, join
from retouch.errors import EditError
from retouch.logs import event

_log = logging.getLogger(__name__)


def main() -> None:
    """Serve the process that started this one, and end with it."""
    connection = Connection(int(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the other process lets its edits end first
    watch_parent(int(sys.argv[2]))
    try:
        settings: CheckpointSettings = pickle.loads(connection.recv_bytes())  # noqa: S301 - our parent
        logs.install("WARNING", secrets=[settings.hf_token] if settings.hf_token else [])
        engine = load(settings)
    except EditError as error:
        _send(connection, Answer(fault=error.message))
        return
    rank = Rank(engine.local)  # kept: its exchanges do not end while it has a recording of them
    with suppress(EOFError, OSError):  # the other process has ended
        _send(connection, Answer())
        rank.serve(connection)
    os._exit(0)  # without waiting for a GPU that waits for another


class Rank:
    """Computes this process's part of edits with `branches`."""

    def __init__(self, branches: LocalBranches) -> None:
        self._branches = branches
        self._shares: dict[int, Share] = {1: WHOLE}
        self._size = 1
        self._velocities: Velocities | None = None

    def serve(self, connection: Any) -> None:
        """Answer what comes, until the connection ends, or others would wait for a step that failed here.

        Raises:
            EOFError: the other side closed the connection.
            OSError: it is broken.
        """
        with torch.no_grad():
            while True:
                message = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own parent
                if isinstance(message, Cast):
                    self._branches.cast(message.dtype)
                    continue
                answer = self._answer(message)
                _send(connection, answer)
                if answer.fault and isinstance(message, Step) and self._size > 1:
                    self._shares.clear()  # closes what the others wait on
                    return

    def _answer(self, message: Join | Begin | Step) -> Answer:
        try:
            return Answer(self._follow(message))
        except Exception as error:  # noqa: BLE001 - the edit fails, whatever it was
            event(_log, "guidance.failed", level=logging.ERROR, cause=error)
            traceback.clear_frames(error.__traceback__)  # they hold this edit's tensors
            self._velocities = None
            with suppress(Exception):  # on a broken GPU this fails too
                self._branches.release()
            return Answer(
                fault=type(error).__name__, out_of_memory=isinstance(error, torch.OutOfMemoryError)
            )

    def _follow(self, message: Join | Begin | Step) -> list[torch.Tensor]:
        if isinstance(message, Join):
            self._shares |= join(
                message.port,
                message.rank,
                message.size,
                self._branches.device,
                is_resident=self._branches.is_resident,
            )
        elif isinstance(message, Begin):
            # What the last edit's tensors took stays with the allocator: the next needs it again.
            self._velocities, self._size = None, message.size
            self._velocities = self._branches.start(message.inputs, self._shares[message.size])
        elif self._velocities:
            latents = message.latents.to(self._branches.device)
            return [one.cpu() for one in self._velocities(latents, message.number)]
        return []


def _send(connection: Any, answer: Answer) -> None:
    connection.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    main()
