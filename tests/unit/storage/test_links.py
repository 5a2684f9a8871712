from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from retouch.errors import LinkExpired, LinkInvalid, RouteNotFound
from retouch.storage.local import LocalStore

KEY = "retouch/results/0f/job-1.png"
TTL_S = 3600


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.5

    def __call__(self) -> float:
        return self.now_s


def build(folder: Path, clock: Clock | None = None, public_url: str = "") -> LocalStore:
    return LocalStore(
        folder,
        secret=b"s" * 32,
        public_url=public_url,
        result_ttl_s=TTL_S,
        clock=clock or Clock(),
    )


def put(store: LocalStore, key: str = KEY, body: bytes = b"picture") -> None:
    store.put(key, body, content_type="image/png", metadata={"n": "1"}, timeout_s=1)


def signed(store: LocalStore, expires_in_s: int = 60) -> tuple[str, str]:
    url = store.link(KEY, expires_in_s=expires_in_s)
    return KEY, urlsplit(url).query


def test_a_link_opens_the_object(tmp_path: Path) -> None:
    store = build(tmp_path)
    put(store)
    file = store.open_link(*signed(store))
    assert file.body == b"picture"
    assert (file.content_type, file.left_s) == ("image/png", 60)


def test_a_link_is_a_path_without_a_public_url_and_under_it_with_one(tmp_path: Path) -> None:
    for public_url, start in (("", "/files/"), ("https://a.b/c/", "https://a.b/c/files/")):
        store = build(tmp_path, public_url=public_url)
        url = store.link(KEY, expires_in_s=1)
        assert url.startswith(start + KEY + "?")


def test_a_link_expires_to_the_second(tmp_path: Path) -> None:
    clock = Clock()
    store = build(tmp_path, clock)
    put(store)
    link = signed(store, expires_in_s=10)
    clock.now_s += 9
    assert store.open_link(*link).left_s == 1
    clock.now_s += 1
    with pytest.raises(LinkExpired):
        store.open_link(*link)


def test_a_changed_link_is_invalid_even_if_it_has_expired(tmp_path: Path) -> None:
    clock = Clock()
    store = build(tmp_path, clock)
    put(store)
    put(store, "other")
    _, query = signed(store)
    clock.now_s += 1000
    expires = parse_qs(query)["expires"][0]
    signature = query.rpartition("=")[2]
    changed = [
        ("other", query),
        ("../link_secret", query),
        (KEY, query.replace(expires, "9999999999")),
        (KEY, query.replace(expires, "soon")),
        (KEY, query.replace(signature, "")),
        (KEY, query.replace(signature, signature.upper() + "é")),
        (KEY, query + "&x=1"),
        (KEY, query + "&signature=" + signature),
        (KEY, query.replace("expires=", "Expires=")),
        (KEY, query + "&"),
        (KEY, query + "&" * 2000),
        (KEY, "expires"),
        (KEY, ""),
    ]
    for key, text in changed:
        with pytest.raises(LinkInvalid):
            store.open_link(key, text)


def test_a_link_of_another_secret_is_invalid(tmp_path: Path) -> None:
    store = build(tmp_path)
    put(store)
    other = LocalStore(tmp_path, secret=b"t" * 32, public_url="", result_ttl_s=TTL_S)
    with pytest.raises(LinkInvalid):
        store.open_link(*signed(other))


def test_a_link_to_a_deleted_object_is_not_found(tmp_path: Path) -> None:
    store = build(tmp_path)
    with pytest.raises(RouteNotFound):
        store.open_link(*signed(store))
