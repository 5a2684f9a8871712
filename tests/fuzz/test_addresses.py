import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import h11
import pytest
from hypothesis import given, strategies as st

from retouch.net.address import is_public
from retouch.net.connect import resolve_host
from retouch.net.url import SourceUrl, parse_url, resolve_redirect

pytestmark = pytest.mark.fuzz

REFUSED = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32",
        "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    )
]  # fmt: skip

refused = st.sampled_from(REFUSED).flatmap(lambda network: st.ip_addresses(network=network))
any_v4 = st.ip_addresses(v=4)
prefixes = st.integers(0, 2**64 - 1).map(lambda half: half << 64)

anything = st.text(st.characters(exclude_categories=()), max_size=80)
FRAGMENTS = [
    "http://", "https://", "HTTP:", "//", "/", "@", ":", "[", "]", "::1", "%25", "?", "#", "\\",
    "xn--", "a", "é", "ß", "。", ".", "..", "80", "99999", "example.com",
]  # fmt: skip
ODD = ["\u200d", "\ud800", "\0", " "]
pieces = st.lists(st.sampled_from(FRAGMENTS + ODD) | anything, max_size=8).map("".join)
urls = pieces | pieces.map("http://".__add__) | pieces.map("https://example.com/".__add__)


def mapped(v4: IPv4Address) -> str:
    return str(IPv6Address(0xFFFF << 32 | int(v4)))


def embeddings(v4: IPv4Address, prefix: int) -> list[str]:
    """The address inside NAT64, 6to4, ISATAP, IPv4-compatible, SIIT and Teredo addresses."""
    inner = int(v4)
    numbers = [
        0x64_FF9B << 96 | inner,
        0x64_FF9B_0001 << 80 | inner,
        0x2002 << 112 | inner << 80,
        prefix | 0x5EFE << 32 | inner,
        prefix | 0x0200_5EFE << 32 | inner,
        inner,
        0xFFFF << 48 | inner,
        0x2001 << 112 | inner << 64,
        0x2001 << 112 | (inner ^ 0xFFFF_FFFF),
    ]
    return [str(IPv6Address(number)) for number in numbers]


def spellings(v4: IPv4Address) -> list[str]:
    """What inet_aton takes for the same address."""
    a, b, c, d = v4.packed
    low = int(v4) & 0xFF_FFFF
    return [str(v4), str(int(v4)), hex(int(v4)), f"0{int(v4):o}", f"{a}.{low}", f"{a:#x}.{low:#o}".replace("0o", "0"),
            f"{a}.{b}.{c << 8 | d}", f"0{a:o}.0{b:o}.{c}.{d:#x}"]  # fmt: skip


@given(refused)
def test_no_spelling_of_a_refused_address_resolves_to_a_public_one(v4: IPv4Address) -> None:
    for host in spellings(v4):
        url = parse_url(f"http://{host}/")
        try:
            answers = resolve_host(url.host, url.port)
        except socket.gaierror:
            continue
        assert answers == [str(v4)]
        assert not is_public(answers[0])


@given(refused)
def test_a_refused_address_stays_refused_when_mapped(v4: IPv4Address) -> None:
    assert not is_public(str(v4))
    assert not is_public(mapped(v4))


@given(any_v4, prefixes)
def test_no_address_that_embeds_another_is_public(v4: IPv4Address, prefix: int) -> None:
    assert not any(map(is_public, embeddings(v4, prefix)))


@given(any_v4)
def test_an_address_outside_the_refused_networks_is_public_plain_and_mapped(
    v4: IPv4Address,
) -> None:
    expected = not any(v4 in network for network in REFUSED)
    assert is_public(str(v4)) is is_public(mapped(v4)) is expected


@given(st.ip_addresses(v=6).map(str) | anything)
def test_nothing_outside_the_global_block_is_public(address: str) -> None:
    if is_public(address) and ":" in address:
        v6 = IPv6Address(address)
        assert int(v6) >> 125 == 1 or v6.ipv4_mapped


def attempt(parse: Callable[..., SourceUrl], *values: object) -> SourceUrl | str:
    """Call `parse`; give the message of its ValueError in place of a result."""
    try:
        return parse(*values)
    except ValueError as error:
        return str(error)


@given(urls)
def test_any_text_is_a_url_or_an_error_that_does_not_repeat_it(text: str) -> None:
    url = attempt(parse_url, text)
    if isinstance(url, str):
        assert url.startswith("must ")
        return
    assert parse_url(url.canonical) == url
    assert url.canonical.isascii()
    assert "@" not in url.authority
    h11.Request(method="GET", target=url.target, headers=[("Host", url.authority)])


@given(urls)
def test_any_location_resolves_or_is_an_error_that_does_not_repeat_it(location: str) -> None:
    url = attempt(resolve_redirect, parse_url("https://example.com/a?b"), location)
    if isinstance(url, str):
        assert url.startswith("must ")
    else:
        assert url.scheme == "https"
