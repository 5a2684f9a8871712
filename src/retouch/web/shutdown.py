"""How the service's processes end: on a signal, without their supervisor, and with a line in the log.

`bentoml serve` is a supervisor, circus, and a process a GPU below it that serves.
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
from retouch.web.standby import Standby
from retouch.web.workers import Workers

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
    if server := find_server():
        server.config.timeout_graceful_shutdown = _LAST_ANSWERS_S
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            stop_serving = partial(server.handle_exit, number, None)
            loop.add_signal_handler(number, _stop, host, stop_serving)


def find_server() -> uvicorn.Server | None:
    """Return the server that this process runs, before its signals are taken from it."""
    handle_exit: Any = signal.getsignal(signal.SIGTERM)
    server = getattr(handle_exit, "__self__", None)
    # It handles no signals outside the main thread.
    return server if isinstance(server, uvicorn.Server) else None


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


def watch_processes(workers: Workers, standby: Standby | None = None) -> None:
    """Have the supervisor log a process that ended unasked; circus starts the next one silently.

    `standby` begins with the first process.
    BentoML has a container end with its process. One of several workers is replaced there too.
    """
    notify_event = Watcher.notify_event

    def notify(watcher: Any, topic: str, message: dict[str, Any]) -> None:
        if topic == "spawn" and standby:
            standby.start()
        if topic == "reap":
            pid, status = message["process_pid"], message["exit_code"]
            workers.forget(pid, watcher.env)
            watcher.respawn = watcher.respawn or workers.several
            if not watcher.is_stopping():
                event(_log, "process.died", level=logging.ERROR, pid=pid, exit_status=status)
        notify_event(watcher, topic, message)

    Watcher.notify_event = notify
