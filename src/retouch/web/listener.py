"""Whether this worker accepts connections on the port that all workers of the service share.

The kernel gives a connection to any process that waits for one. So a worker that is not ready, or has
more to do than another, stops waiting: connections go to the least busy one, and none to a worker that
would refuse an edit while another could run it.
"""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from functools import partial
from typing import Any

import uvicorn

from retouch.lifecycle import ModelHost, State
from retouch.logs import event
from retouch.web.metrics import Metrics
from retouch.web.workers import NOT_READY, Board

_log = logging.getLogger(__name__)
_CHECK_EVERY_S = 0.02
_OBSERVE_EVERY = 10
"""Checks between two updates of the gauges, which another worker may report."""
_MANY = 1 << 16
"""More edits or connections than there are."""
_ASKS_FOR_EDIT = {"POST", "PUT"}


def weigh(edits: int, unknown: int, connections: int) -> int:
    """Return how busy a worker is with so many edits, and connections that may ask for one.

    An edit that is there weighs more than one that may come, and that more than all other connections.
    """
    return ((edits + unknown) * _MANY + edits) * _MANY + connections


class Listener:
    """Accepts a server's connections while no other worker on the `board` is less busy.

    This worker is the one at `index`. How busy it is its edits say, also those of jobs, and requests
    whose sources are still on the way: else a burst would go to the worker whose first one is there
    last. A connection, which lasts for one request, counts as an edit until it is known what it asks
    for, or nothing has come for `fresh_s`.
    """

    def __init__(
        self,
        server: uvicorn.Server,
        board: Board,
        index: int,
        host: ModelHost,
        metrics: Metrics,
        *,
        fresh_s: float = 1.0,
    ) -> None:
        self._server = server
        self._board = board
        self._index = index
        self._host = host
        self._metrics = metrics
        self._fresh_s = fresh_s
        self._socket: socket.socket | None = None
        self._connecting: dict[asyncio.Task[Any], list[asyncio.Protocol]] = {}
        self._accepted_s: deque[float] = deque()  # when, of the latest ones

    async def run(self) -> None:
        """Pause and resume as the board says, until the server stops.

        After a fault the server stops, and the supervisor starts another worker: one that stays on the
        board and never resumes would stall the others.
        """
        try:
            await self._share()
        except Exception as error:  # noqa: BLE001 - the task ends here, whatever it was
            event(_log, "listener.failed", level=logging.CRITICAL, cause=error)
            self._server.should_exit = True
        finally:
            self._pause()
            if self._socket:
                self._socket.close()
            self._board.forget(os.getpid())

    async def _share(self) -> None:
        checks = 0
        self.report()
        while not self._server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_CHECK_EVERY_S)
        self._take_socket()
        while not self._server.should_exit:
            self.report()
            if checks % _OBSERVE_EVERY == 0:
                self._metrics.observe()
            checks += 1
            if self._board.may_listen(self._index):
                self._resume()
            else:
                self._pause()
            await asyncio.sleep(_CHECK_EVERY_S)

    def report(self) -> None:
        """Say on the board what there is to do."""
        is_ready = self._host.state in (State.READY, State.BUSY)
        connections: set[Any] = self._server.server_state.connections
        coming = sum(connections.isdisjoint(made) for made in self._connecting.values())
        methods = [(one.scope or {}).get("method") for one in connections]
        # A request that waits for its edit is among both.
        edits = max(len(self._host.edits), sum(method in _ASKS_FOR_EDIT for method in methods))
        while self._accepted_s and self._accepted_s[0] < time.monotonic() - self._fresh_s:
            self._accepted_s.popleft()
        unknown = min(methods.count(None) + coming, len(self._accepted_s))
        busy = weigh(edits, unknown, len(connections) + coming)
        self._board.report(self._index, busy if is_ready else NOT_READY)

    def _take_socket(self) -> None:
        """Accept in place of uvicorn: its asyncio servers take all that wait, and cannot be paused."""
        for server in self._server.servers:
            self._socket = socket.socket(fileno=os.dup(server.sockets[0].fileno()))
            self._socket.setblocking(False)
            server.close()
        self._server.servers = []

    def _resume(self) -> None:
        if self._socket:
            asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _pause(self) -> None:
        if self._socket:
            asyncio.get_running_loop().remove_reader(self._socket)

    def _accept(self) -> None:
        """Accept one connection. If this worker is then busier than another, the next goes there."""
        assert self._socket is not None  # noqa: S101 - it is read
        try:
            accepted, _ = self._socket.accept()
        except BlockingIOError:  # another worker has it
            return
        except OSError:  # the caller has gone, or no descriptor is left
            self._pause()
            return
        self._accepted_s.append(time.monotonic())
        made: list[asyncio.Protocol] = []
        connecting = asyncio.get_running_loop().connect_accepted_socket(
            partial(self._connect, made), accepted, ssl=self._server.config.ssl
        )
        task = asyncio.ensure_future(connecting)
        self._connecting[task] = made
        task.add_done_callback(self._forget)
        self.report()
        if not self._board.may_listen(self._index):
            self._pause()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        del self._connecting[task]
        if not task.cancelled():
            task.exception()  # of a TLS handshake: the caller's fault, and its connection is closed

    def _connect(self, made: list[asyncio.Protocol]) -> asyncio.Protocol:
        """Return the protocol of a new connection, as uvicorn's `Server.startup` makes it, and add it to `made`."""
        protocol: Any = self._server.config.http_protocol_class
        connection: asyncio.Protocol = protocol(
            config=self._server.config,
            server_state=self._server.server_state,
            app_state=self._server.lifespan.state,
        )
        made.append(connection)
        return connection
