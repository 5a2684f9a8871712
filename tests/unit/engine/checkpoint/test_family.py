import pytest

from retouch.engine.checkpoint.family import Family, choose_family, family_of
from retouch.errors import ModelError

PLUS = "QwenImageEditPlusPipeline"


@pytest.mark.parametrize(
    ("pipeline", "transformer", "family"),
    [
        ("QwenImageEditPipeline", {}, "edit"),
        (PLUS, {}, "2509"),
        (PLUS, {"zero_cond_t": False}, "2509"),
        (PLUS, {"zero_cond_t": True}, "2511"),
    ],
)
def test_a_checkpoint_says_its_family(
    pipeline: str, transformer: dict[str, bool], family: str
) -> None:
    assert family_of(pipeline, transformer) == family


@pytest.mark.parametrize(
    ("base", "named", "is_2511", "chosen"),
    [
        ("edit", "edit", False, "edit"),
        ("2509", "2509", False, "2509"),
        ("2511", "2509", False, "2509"),
        ("2509", "2511", False, "2511"),
        ("2509", "", True, "2511"),
        ("2511", "", True, "2511"),
        ("2511", "2511", True, "2511"),
    ],
)
def test_a_file_is_of_the_family_that_is_marked_or_named(
    base: Family, named: str, is_2511: bool, chosen: str
) -> None:
    assert choose_family(base=base, named=named, is_2511=is_2511) == chosen


@pytest.mark.parametrize(
    ("base", "named", "is_2511", "fault"),
    [
        ("2511", "", False, "set MODEL_FAMILY to edit, 2509 or 2511"),
        ("2511", "2509", True, "marked as 2511"),
        ("edit", "", True, "set MODEL_ID to Qwen/Qwen-Image-Edit-2511"),
        ("2509", "edit", False, "set MODEL_ID to Qwen/Qwen-Image-Edit$"),
    ],
)
def test_a_file_of_no_family_or_of_another_is_refused(
    base: Family, named: str, is_2511: bool, fault: str
) -> None:
    with pytest.raises(ModelError, match=fault):
        choose_family(base=base, named=named, is_2511=is_2511)
