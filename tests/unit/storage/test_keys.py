import pytest

from retouch.errors import StorageError
from retouch.storage.keys import MAX_LINK_S, attachment, is_key, require_key, require_link


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
