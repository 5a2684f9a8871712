import pytest

from retouch.engine.team import choose_gpus
from retouch.errors import ModelError


def test_each_process_has_one_of_the_gpus_that_are_visible() -> None:
    assert choose_gpus("3,1,0", 3, 2) == ["3", "1"]
    with pytest.raises(ModelError, match="needs 2 GPUs; found 1"):
        choose_gpus("3", 1, 2)
