import pytest

from retouch.net.cache_headers import (
    FOREVER_S,
    heuristic_lifetime_s,
    parse_date,
    read_cache_headers,
    read_max_stale_s,
)


@pytest.mark.parametrize(
    ("value", "age", "expected"),
    [
        ("", "", (None, True)),
        ("max-age=60", "", (60, True)),
        ("Max-Age = 60", "", (60, True)),
        ('max-age="60"', "", (60, True)),
        ("max-age=60, s-maxage=30", "", (30, True)),
        ("max-age=60, max-age=90", "", (60, True)),
        ("max-age=60", "45", (15, True)),
        ("max-age=60", "100", (0, True)),
        ("max-age=60", "45, 90", (15, True)),
        ("max-age=60", "soon", (60, True)),
        ("max-age=soon", "", (0, True)),
        ("max-age", "", (0, True)),
        ("max-age=-5", "", (0, True)),
        ("max-age=٣", "", (0, True)),
        (f"max-age={'9' * 5000}", "", (2**31, True)),
        ("no-cache, max-age=60", "", (0, True)),
        ("no-store", "", (None, False)),
        ("NO-STORE, max-age=5", "", (5, False)),
        ('private="x, y", max-age=5', "", (5, False)),
        ('ext="no-store, private", max-age=5', "", (5, True)),
        ("x-no-store, max-age-x=7", "", (None, True)),
        (',,;="', "", (None, True)),
    ],
)
def test_cache_control_is_read_as_by_a_shared_cache(
    value: str, age: str, expected: tuple[int | None, bool]
) -> None:
    headers = {"cache-control": value, "age": age}
    assert read_cache_headers(lambda name: headers.get(name.decode(), "")) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, FOREVER_S),
        ({"cache-control": "public, max-age=60"}, FOREVER_S),
        ({"cache-control": "max-age=60, Must-Revalidate"}, 0),
        ({"cache-control": "max-age=60, proxy-revalidate"}, 0),
        ({"cache-control": "no-cache"}, 0),
        ({"cache-control": 'no-cache="set-cookie"'}, 0),
        ({"cache-control": "max-age=60, s-maxage=30"}, 0),
        ({"cache-control": "x-must-revalidate, max-age=60"}, FOREVER_S),
        ({"cache-control": "max-age=60, stale-if-error=90"}, 90),
        ({"cache-control": "max-age=60, stale-if-error=soon"}, 0),
        ({"cache-control": "must-revalidate, stale-if-error=90"}, 0),
        ({"pragma": "no-cache"}, 0),
        ({"pragma": "no-cache", "cache-control": "max-age=60"}, FOREVER_S),
    ],
)
def test_a_stale_response_may_be_used_as_long_as_its_origin_says(
    headers: dict[str, str], expected: int
) -> None:
    assert read_max_stale_s(lambda name: headers.get(name.decode(), "")) == expected


NOON = "Thu, 26 Nov 2026 12:00:00 GMT"
ONE = "Thu, 26 Nov 2026 13:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, (None, True)),
        ({"pragma": "no-cache"}, (0, True)),
        ({"pragma": "no-cache", "cache-control": "max-age=9"}, (9, True)),
        ({"expires": ONE, "date": NOON}, (3600, True)),
        ({"expires": ONE, "date": NOON, "age": "60"}, (3540, True)),
        ({"expires": NOON, "date": ONE}, (0, True)),
        ({"expires": "0"}, (0, True)),
        ({"expires": "-1", "date": NOON}, (0, True)),
        ({"expires": ONE, "date": NOON, "cache-control": "private"}, (3600, False)),
        ({"expires": ONE, "date": NOON, "cache-control": "max-age=9"}, (9, True)),
        ({"cache-control": "max-age=9", "vary": "Accept, Cookie"}, (9, True)),
        ({"cache-control": "max-age=9", "vary": "*"}, (9, False)),
        ({"cache-control": "max-age=9", "vary": "Accept, *"}, (9, False)),
    ],
)
def test_expires_and_pragma_hold_where_cache_control_says_nothing(
    headers: dict[str, str], expected: tuple[int | None, bool]
) -> None:
    assert read_cache_headers(lambda name: headers.get(name.decode(), "")) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"date": ONE}, None),
        ({"date": ONE, "last-modified": NOON}, 360),
        ({"date": NOON, "last-modified": NOON}, 0),
        ({"date": NOON, "last-modified": ONE}, 0),
        ({"date": NOON, "last-modified": "soon"}, None),
    ],
)
def test_the_heuristic_is_a_tenth_of_the_age(headers: dict[str, str], expected: int | None) -> None:
    assert heuristic_lifetime_s(lambda name: headers.get(name.decode(), "")) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "soon", "Thu, 99 Nov 2026 12:00:00 GMT", "\x00", "1" * 99]
)
def test_a_date_that_cannot_be_read_is_none(text: str) -> None:
    assert parse_date(text) is None
