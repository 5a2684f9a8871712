import pytest
from starlette.datastructures import Headers

from retouch.errors import Unauthorized
from retouch.web.auth import ApiKeyAuth

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
