"""How the service's processes end: on a signal, without their supervisor, and with a line in the log.

`bentoml serve` is a supervisor, circus, and one process below it that serves.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from circus.watcher import Watcher  # type: ignore[import-untyped]

from retouch.lifecycle import ModelHost, State
from retouch.logs import event

_log = logging.getLogger(__name__)
_SERVING = "_bentoml_impl.worker.service"
_LAST_ANSWERS_S = 1
"""For answers that clients have not read yet when every edit has ended."""
_CHECK_EVERY_S = 1.0


def stop_on_signals(host: ModelHost) -> None:
    """Close `host` on SIGTERM and SIGINT, and only then let uvicorn stop. Call it in the event loop.

    uvicorn itself closes its socket at once and waits for answers without a limit: probes would be
    refused a connection, and an edit could outlast the platform's patience. A second signal skips
    the wait.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        handle_exit: Any = signal.getsignal(number)
        server = getattr(handle_exit, "__self__", None)
        if isinstance(server, uvicorn.Server):  # it handles no signals outside the main thread
            server.config.timeout_graceful_shutdown = _LAST_ANSWERS_S
            loop.add_signal_handler(number, _stop, host, partial(handle_exit, number, None))


def _stop(host: ModelHost, stop_serving: Callable[[], object]) -> None:
    if host.state is State.STOPPING:
        stop_serving()
        return
    asyncio.ensure_future(host.close()).add_done_callback(lambda _: stop_serving())


def end_without_supervisor() -> None:
    """Stop this process as by SIGTERM when the supervisor dies: it would hold the port and the GPU."""
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.name == _SERVING:
        threading.Thread(target=_watch_supervisor, args=(os.getppid(),), daemon=True).start()


def _watch_supervisor(pid: int) -> None:
    while os.getppid() == pid:
        time.sleep(_CHECK_EVERY_S)
    event(_log, "supervisor.died", level=logging.ERROR, pid=pid)
    os.kill(os.getpid(), signal.SIGTERM)


def log_dead_processes() -> None:
    """Have the supervisor log a process that ended unasked; circus starts the next one silently."""
    notify_event = Watcher.notify_event

    def notify(watcher: Any, topic: str, message: dict[str, Any]) -> None:
        if topic == "reap" and not watcher.is_stopping():
            event(
                _log,
                "process.died",
                level=logging.ERROR,
                pid=message["process_pid"],
                exit_status=message["exit_code"],
            )
        notify_event(watcher, topic, message)

    Watcher.notify_event = notify
