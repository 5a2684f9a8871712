import hashlib

import pytest
from starlette.datastructures import Headers

from retouch.errors import HostNotAllowed, Unauthorized
from retouch.web.auth import ApiKeyAuth, HostCheck

KEYS = ApiKeyAuth(("first-key", "second-key"))


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"Authorization": "Bearer second-key"},
        {"authorization": "bearer  first-key "},
        {"X-API-Key": "first-key"},
        {"Authorization": "Basic abc", "X-API-Key": "second-key"},
        {"Authorization": "Bearer of a gateway", "X-API-Key": "first-key"},
        {"Authorization": "Bearer first-key", "X-API-Key": "wrong"},
    ],
)
def test_any_of_the_keys_opens_by_either_header(headers: dict[str, str]) -> None:
    KEYS.require(Headers(headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-key,second-key"},
        {"Authorization": "Bearer wrong", "X-API-Key": "wrong"},
        {"X-API-Key": ""},
        {"X-API-Key": "FIRST-KEY"},
        {"X-API-Key": "ÿ"},
    ],
)
def test_no_key_or_a_wrong_one_is_turned_away_with_both_ways_named(
    headers: dict[str, str],
) -> None:
    with pytest.raises(Unauthorized) as caught:
        KEYS.require(Headers(headers))
    assert "Authorization: Bearer <key>" in caught.value.message
    assert "X-API-Key: <key>" in caught.value.message


def test_without_keys_the_door_stands_open() -> None:
    ApiKeyAuth(()).require(Headers({"Authorization": "Bearer anything"}))
    ApiKeyAuth(()).require(Headers({}))


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bool] = []

    def compare(one: bytes, other: bytes) -> bool:
        assert len(one) == len(other) == 32
        compared.append(one == other)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    KEYS.require(Headers({"X-API-Key": "first-key"}))
    assert compared == [False, False, True, False]


def test_a_key_is_named_by_the_beginning_of_its_digest() -> None:
    name = KEYS.identify(Headers({"X-API-Key": "first-key"}))
    assert name == hashlib.sha256(b"first-key").hexdigest()[:8]
    assert name == KEYS.require(Headers({"Authorization": "Bearer first-key"}))
    assert name != KEYS.identify(Headers({"X-API-Key": "second-key"}))
    assert KEYS.identify(Headers({"X-API-Key": "wrong"})) is None


LOCAL = "127.0.0.1"


def arrive(check: HostCheck, *, at: str = LOCAL, **headers: str) -> None:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    check.require({"type": "http", "server": (at, 3000), "headers": raw})


OPEN = HostCheck(
    ["Shop.example", "", "https://Page.example:8443/", "port.example:443", "bad["], ApiKeyAuth(())
)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost:3000"},
        {"host": "LOCALHOST"},
        {"host": "127.0.0.1:3000"},
        {"host": "127.8.8.8"},
        {"host": "[::1]:3000"},
        {"host": "app.localhost:3000"},
        {"host": "192.168.1.5:3000"},
        {"host": "shop.example"},
        {"host": "localhost:3000", "origin": "http://localhost:3000"},
        {"host": "localhost:3000", "origin": "http://127.0.0.1:8080"},
        {"host": "192.168.1.5:3000", "origin": "http://192.168.1.5:3000"},
        {"host": "127.0.0.1:3000", "origin": "https://shop.example"},
        {"host": "page.example"},
        {"host": "port.example:3000"},
    ],
)
def test_this_machine_and_allowed_hosts_may_call_a_loopback_address(
    headers: dict[str, str],
) -> None:
    arrive(OPEN, **headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:3000", "origin": "http://evil.example:3000"},
        {"host": "localhost.evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "notlocalhost"},
        {"host": ""},
        {"host": "[::1"},
        {"host": "shop.example@evil.example"},
        {"host": "localhost:3000", "origin": "http://evil.example"},
        {"host": "localhost:3000", "origin": "http://203.0.113.5"},
        {"host": "localhost:3000", "origin": "null"},
    ],
)
@pytest.mark.parametrize("at", [LOCAL, "127.0.0.2", "::1", "::ffff:127.0.0.1"])
def test_a_foreign_host_or_origin_is_refused_there(headers: dict[str, str], at: str) -> None:
    with pytest.raises(HostNotAllowed, match="ALLOWED_HOSTS"):
        arrive(OPEN, at=at, **headers)


@pytest.mark.parametrize("at", ["10.0.0.1", "::", "service.example", "/run/retouch.sock"])
def test_at_another_address_any_host_may_call(at: str) -> None:
    arrive(OPEN, at=at, host="evil.example")


def test_a_valid_key_or_a_star_lets_any_host_call() -> None:
    arrive(HostCheck([], KEYS), host="evil.example", x_api_key="first-key")
    arrive(HostCheck(["*"], KEYS), host="evil.example")
    with pytest.raises(HostNotAllowed):
        arrive(HostCheck([], KEYS), host="evil.example", x_api_key="wrong")
