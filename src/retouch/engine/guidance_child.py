"""The process of `guidance_process`: `python -m retouch.engine.guidance_child <file descriptor>`.

Reads `CheckpointSettings`, loads, and then computes one branch of each edit until the pipe is closed.
"""

import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

from retouch import logs
from retouch.engine.branches import BranchInputs, LocalBranches, Velocities
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.engine.guidance_process import Answer, Cast, Step
from retouch.errors import EditError
from retouch.logs import event

_log = logging.getLogger(__name__)
_CHECK_EVERY_S = 1.0


def main() -> None:
    """Serve the process that started this one, and end with it."""
    connection = Connection(int(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the other process lets its edits end first
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        settings: CheckpointSettings = pickle.loads(connection.recv_bytes())  # noqa: S301 - our parent
        logs.install("WARNING", secrets=[settings.hf_token] if settings.hf_token else [])
        engine = load(settings)
    except EditError as error:
        _send(connection, Answer(fault=error.message))
        return
    _send(connection, Answer())
    try:
        serve(connection, engine.local)
    except (EOFError, OSError):
        return  # the other process has ended


def serve(connection: Any, branches: LocalBranches) -> None:
    """Compute what comes, until the connection ends.

    A fault is the answer to the next step, which is the only message that has one.

    Raises:
        EOFError: the other side closed the connection.
        OSError: it is broken.
    """
    velocities: Velocities | None = None
    answer = fault = Answer(fault="no edit has begun")
    with torch.no_grad():
        while True:
            message = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own parent
            if isinstance(message, Cast):
                branches.cast(message.dtype)
                continue
            try:
                if isinstance(message, BranchInputs):
                    velocities = None
                    branches.release()
                    velocities = branches.start(message)
                elif velocities is None:
                    answer = fault
                else:
                    latents = message.latents.to(branches.device)
                    answer = Answer(velocities(latents, message.number)[0].cpu())
            except Exception as error:  # noqa: BLE001 - the edit fails, whatever it was
                event(_log, "guidance.failed", level=logging.ERROR, cause=error)
                traceback.clear_frames(error.__traceback__)  # they hold this edit's tensors
                velocities = None
                answer = fault = Answer(
                    fault=type(error).__name__,
                    out_of_memory=isinstance(error, torch.OutOfMemoryError),
                )
            if isinstance(message, Step):
                _send(connection, answer)


def _send(connection: Any, answer: Answer) -> None:
    connection.send_bytes(pickle.dumps(answer))


def _end_with(parent: int) -> None:
    """End when the parent has, also in the middle of a step that hangs."""
    while os.getppid() == parent:
        time.sleep(_CHECK_EVERY_S)
    os._exit(0)


if __name__ == "__main__":
    main()
