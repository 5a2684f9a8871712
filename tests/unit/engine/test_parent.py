import os

import pytest

from retouch.engine.parent import end_with


def test_a_child_ends_once_its_parent_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception): ...

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended):
        end_with(os.getppid() + 1)
