import pytest
import torch

from retouch.engine import ulysses
from retouch.engine.recording import LOCK
from retouch.engine.team import Team, choose_gpus
from retouch.engine.ulysses import Share
from retouch.errors import ModelError


def test_each_process_has_one_of_the_gpus_that_are_visible() -> None:
    assert choose_gpus("3,1,0", 3, 2) == ["3", "1"]
    with pytest.raises(ModelError, match="needs 2 GPUs; found 1"):
        choose_gpus("3", 1, 2)


def test_an_exchange_is_not_ended_while_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group:
        ends = 0

        def abort(self) -> None:
            assert LOCK.locked()
            self.ends += 1

    group, team = Group(), Team([], guidance=False)
    monkeypatch.setattr(ulysses, "join", lambda *_, **__: {2: Share(0, 2, group)})
    team.join(torch.device("cpu"), is_resident=True)
    team.end()
    team.close()
    assert group.ends == 2
    assert not LOCK.locked()
