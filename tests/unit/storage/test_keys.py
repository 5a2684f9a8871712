import pytest

from retouch.errors import StorageError
from retouch.storage.keys import (
    MAX_LINK_S,
    attachment,
    is_key,
    is_result_key,
    require_key,
    require_link,
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
def test_anything_else_is_no_key(key: str) -> None:
    assert not is_key(key)
    with pytest.raises(StorageError, match="key"):
        require_key(key)


@pytest.mark.parametrize("expires_in_s", [1, MAX_LINK_S])
def test_a_link_may_live_from_a_second_to_a_week(expires_in_s: int) -> None:
    require_link("a", content_type="image/svg+xml", expires_in_s=expires_in_s)


@pytest.mark.parametrize("content_type", ["", "image", "image/png; a=b", "image/png\r\nX: y"])
def test_a_link_has_a_bare_content_type(content_type: str) -> None:
    with pytest.raises(StorageError, match="content type"):
        require_link("a", content_type=content_type, expires_in_s=60)


@pytest.mark.parametrize(
    ("filename", "saved_as"),
    [
        ("edit-1.png", "edit-1.png"),
        ("", "file"),
        ("../../etc/passwd", "etc-passwd"),
        (".bashrc", "bashrc"),
        ('a"; filename="b', "a-filename-b"),
        ("a\r\nSet-Cookie: b", "a-Set-Cookie-b"),
        ("日本.png", "png"),
        ("x" * 200 + ".png", "x" * 96 + ".png"),
    ],
)
def test_a_file_is_saved_under_a_harmless_name(filename: str, saved_as: str) -> None:
    assert attachment(filename) == f'attachment; filename="{saved_as}"'


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


def test_a_source_key_is_a_key_and_not_one_of_a_result() -> None:
    key = source_key("qwen-image-edit/", "ab" * 32)
    assert key == f"qwen-image-edit/sources/v1/ab/{'ab' * 32}"
    assert is_key(key)
    assert not is_result_key(key)
    assert is_result_key(result_key("results/", "ab12", "job-1", "png"))
