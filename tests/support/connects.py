"""Sees the connections that this process opens."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def watch_connects(see: Callable[[Any], None]) -> Iterator[None]:
    """Call `see` with each address before a socket connects to it; the caller gets what it raises.

    An audit hook would stay for good, and CPython 3.11 under coverage fails to start a thread
    while another one runs a hook ("another trace function is being installed").
    """
    plain = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        see(address)
        plain(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        yield
