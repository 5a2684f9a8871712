"""A process of another GPU, from its start to its end, in this process and without a model."""

import os
import pickle
import signal
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from retouch.engine import rank_child
from retouch.engine.checkpoint.find import CheckpointSettings


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_process_ends_before_the_exchange_that_it_has_recorded(
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_gone: bool,
) -> None:
    """Without a trace where the process that started it has gone while it loaded."""
    events: list[str] = []

    class Rank(rank_child.Rank):
        def __del__(self) -> None:
            events.append("exchanges ended")

    ours, theirs = socket.socketpair()
    settings = pickle.dumps(CheckpointSettings(model_id="any"))
    ours.sendall(len(settings).to_bytes(4, "big") + settings)  # as `Connection` frames it
    ours.shutdown(socket.SHUT_RDWR if is_gone else socket.SHUT_WR)
    monkeypatch.setattr(sys, "argv", ["", str(theirs.detach()), "1234"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "_exit", lambda status: events.append(f"exit {status}"))
    watched: list[int] = []
    monkeypatch.setattr(rank_child, "watch_parent", watched.append)
    monkeypatch.setattr(rank_child.logs, "install", lambda *_, **__: None)
    engine: Any = SimpleNamespace(local=None)
    monkeypatch.setattr(rank_child, "load", lambda _: engine)
    monkeypatch.setattr(rank_child, "Rank", Rank)
    with ours:
        rank_child.main()
    assert events == ["exit 0", "exchanges ended"]
    assert watched == [1234]
