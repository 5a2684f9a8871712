import pytest

from retouch.errors import StorageError
from retouch.storage.keys import (
    is_key,
    is_source_key,
    require_key,
    result_key,
    source_key,
)


@pytest.mark.parametrize(
    "key", ["a", "a/b", "retouch/results/0f9a/job-1.png", "a.b_c-d", "...", "a/..b", "a" * 1024]
)
def test_a_plain_path_is_a_key(key: str) -> None:
    assert is_key(key)
    require_key(key)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "/a", "a/", "a//b", ".", "..", "a/.", "a/../b", "../a", "A", "a b", "a%2eb"),
        *("a\\b", "a\n", "a\0", "é", "a?b", "a" * 1025),
    ],
)
def test_anything_else_is_not_a_key(key: str) -> None:
    assert not is_key(key)
    with pytest.raises(StorageError, match="key"):
        require_key(key)


def test_a_result_key_names_prefix_source_job_and_extension() -> None:
    key = result_key("qwen-image-edit/", "ab12", "8f14e45f", "webp")
    assert key == "qwen-image-edit/results/ab12/8f14e45f.webp"


@pytest.mark.parametrize(
    "job_id",
    ["", "../x", "a/b", "A", "a\n", "x" * 129, "é", ".a", "-a", "a.png", "sync-1-e1", "a b"],
)
def test_a_job_id_of_any_form_gives_a_key_of_its_own(job_id: str) -> None:
    key = result_key("p/", "ab12", job_id, "png")
    assert is_key(key)
    assert key.startswith("p/results/ab12/")
    assert key != result_key("p/", "ab12", job_id + "x", "png")


def test_a_plain_job_id_is_in_the_key_as_it_is() -> None:
    assert result_key("", "ab", "x" * 128, "png") == f"results/ab/{'x' * 128}.png"
    assert "sync-1-e1" in result_key("", "ab", "sync-1-e1", "png")


def test_a_source_key_is_told_from_one_of_a_result() -> None:
    key = source_key("qwen-image-edit/", "ab" * 32)
    assert key == f"qwen-image-edit/sources/v1/ab/{'ab' * 32}"
    assert is_key(key)
    assert is_source_key(key)
    assert not is_source_key(result_key("sources/", "ab12", "job-1", "png"))


def test_no_two_jobs_share_the_key_of_a_result() -> None:
    ids = ["a", "a-0", "a-1", "a-1-0", "a-1-1", "a-4", "A", "b"]
    keys = [
        result_key("p/", "ab12", job_id, "png", number=number)
        for job_id in ids
        for number in range(4)
    ]
    assert len(set(keys)) == len(keys)
