"""Addresses no fetch may dial in every form they have, public ones beside them, and ways to lead to one.

The networks are those of the IANA special-purpose registries and RFC 5735/6890; what embeds IPv4 in
IPv6 follows RFC 4291 (mapped, compatible), 2765 (translated), 6052 and 8215 (NAT64), 3056 (6to4),
5214 (ISATAP) and 4380 (Teredo). Written independently of `retouch.net.address`, so that neither repeats a mistake of the other.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import quote

V4_NETWORKS = {
    "this network": "0.0.0.0/8",
    "private 10": "10.0.0.0/8",
    "carrier NAT": "100.64.0.0/10",
    "loopback": "127.0.0.0/8",
    "link-local": "169.254.0.0/16",
    "private 172": "172.16.0.0/12",
    "protocol assignments": "192.0.0.0/24",
    "documentation 1": "192.0.2.0/24",
    "6to4 relay": "192.88.99.0/24",
    "private 192": "192.168.0.0/16",
    "benchmark": "198.18.0.0/15",
    "documentation 2": "198.51.100.0/24",
    "documentation 3": "203.0.113.0/24",
    "multicast": "224.0.0.0/4",
    "reserved": "240.0.0.0/4",
}
METADATA_V4 = {
    "metadata of most clouds": "169.254.169.254",
    "metadata of containers": "169.254.170.2",
    "metadata of Alibaba": "100.100.100.200",
    "metadata of Oracle": "192.0.0.192",
    "metadata of Azure": "168.63.129.16",
    "localhost": "127.0.0.1",
    "broadcast": "255.255.255.255",
}
V6_NETWORKS = {
    "unspecified": "::/128",
    "loopback v6": "::1/128",
    "discard": "100::/64",
    "dummy prefix": "100:0:0:1::/64",
    "Teredo": "2001::/32",
    "benchmark v6": "2001:2::/48",
    "AMT": "2001:3::/32",
    "AS112": "2001:4:112::/48",
    "ORCHID": "2001:10::/28",
    "ORCHID 2": "2001:20::/28",
    "drone ids": "2001:30::/28",
    "documentation v6": "2001:db8::/32",
    "documentation v6, new": "3fff::/20",
    "segment routing": "5f00::/16",
    "unassigned": "4000::/3",
    "unique local": "fc00::/7",
    "metadata of AWS v6": "fd00:ec2::254/128",
    "metadata of Google v6": "fd20:ce::254/128",
    "link-local v6": "fe80::/10",
    "site-local": "fec0::/10",
    "multicast of the interface": "ff01::/16",
    "multicast of the link": "ff02::/16",
    "multicast of the site": "ff05::/16",
    "multicast, global": "ff0e::/16",
}
SCOPED = ("fe80::1%eth0", "fe80::1%1", "::1%lo", "2606:4700::1%1", "2606:4700::1%")
PUBLIC = (
    *("1.1.1.1", "8.8.8.8", "93.184.215.14", "100.63.255.255", "100.128.0.1", "126.255.255.255"),
    *("128.0.0.1", "169.253.0.1", "172.15.255.255", "172.32.0.1", "168.63.129.17", "192.0.1.1"),
    *("198.17.255.255", "198.20.0.1", "223.255.255.255", "::ffff:8.8.8.8"),
    *("2606:4700:4700::1111", "2a00:1450:4001:830::200e", "2001:200::1", "2001:4860:4860::8888"),
)
REDIRECTS = (301, 302, 303, 307, 308)
STEP, STEP_V6 = "93.184.0.1", "2606:4700:4700::1001"
"""Public addresses of the origin that redirects."""


@dataclass(frozen=True)
class Target:
    """An address as a resolver gives it, and what a URL may have in its place."""

    kind: str
    address: str
    hosts: Sequence[str]


@dataclass(frozen=True)
class Case:
    """One URL to fetch, what names resolve to at each look-up, and how often a dial is right."""

    way: str
    target: Target
    url: str
    names: Mapping[str, Sequence[Sequence[str]]]
    steps: int = 0


def embed(v4: IPv4Address) -> dict[str, IPv6Address]:
    inner = int(v4)
    high, low = inner >> 8, inner & 0xFF
    numbers = {
        "mapped": 0xFFFF << 32 | inner,
        "compatible": inner,
        "translated": 0xFFFF << 48 | inner,
        "NAT64": 0x64_FF9B << 96 | inner,
        "NAT64, local": 0x64_FF9B_0001 << 80 | inner,
        "NAT64, local, /56": 0x64_FF9B_0001_00 << 72 | high << 72 | low << 56,
        "6to4": 0x2002 << 112 | inner << 80,
        "6to4, with interface": 0x2002 << 112 | inner << 80 | 1,
        "ISATAP": 0x2606_4700 << 96 | 0x5EFE << 32 | inner,
        "ISATAP, universal": 0x2606_4700 << 96 | 0x0200_5EFE << 32 | inner,
        "ISATAP, link-local": 0xFE80 << 112 | 0x5EFE << 32 | inner,
        "Teredo server": 0x2001_0000 << 96 | inner << 64,
        "Teredo client": 0x2001_0000 << 96 | (inner ^ 0xFFFF_FFFF),
    }
    return {form: IPv6Address(number) for form, number in numbers.items()}


def spell_v4(v4: IPv4Address) -> list[str]:
    """What libc's inet_aton takes for the address, and what IDNA turns into it."""
    a, b, c, d = v4.packed
    number = int(v4)
    dotted = str(v4)
    full_width = dotted.translate({ord("0") + n: 0xFF10 + n for n in range(10)})
    circled = "".join(chr(0x2460 + int(x) - 1) if x in "123456789" else x for x in dotted)
    return [
        *(dotted, f"{dotted}.", str(number), hex(number), f"0{number:o}", hex(number).upper()),
        *(f"{a}.{number & 0xFF_FFFF}", f"{a:#x}.{number & 0xFF_FFFF:#x}", f"{a}.{b}.{c << 8 | d}"),
        *(f"0{a:o}.0{b:o}.0{c:o}.0{d:o}", f"{a:#x}.{b:#x}.{c:#x}.{d:#x}", f"00{a:o}.{b:#04x}.{c}.{d}"),
        *(full_width, circled, dotted.replace(".", "。"), dotted.replace(".", "\uff0e")),
    ]  # fmt: skip


def spell_v6(v6: IPv6Address) -> list[str]:
    head = ":".join(v6.exploded.split(":")[:6])
    tail = IPv4Address(int(v6) & 0xFFFF_FFFF)
    forms = [v6.compressed, v6.exploded, v6.exploded.upper(), f"{head}:{tail}"]
    return [f"[{form}]" for form in forms]


def _pick(network: IPv4Network | IPv6Network, chance: random.Random, extra: int) -> list[int]:
    first, last = int(network.network_address), int(network.broadcast_address)
    numbers = [first, last, *(chance.randint(first, last) for _ in range(extra))]
    return list(dict.fromkeys(numbers))


def list_targets(chance: random.Random, *, extra: int) -> Iterator[Target]:
    """The first and last address of each refused network and `extra` more, in every embedding."""
    v4s = [(kind, IPv4Address(text)) for kind, text in METADATA_V4.items()]
    for kind, text in V4_NETWORKS.items():
        v4s += [(kind, IPv4Address(n)) for n in _pick(IPv4Network(text), chance, extra)]
    for kind, v4 in v4s:
        yield Target(kind, str(v4), spell_v4(v4))
        for form, v6 in embed(v4).items():
            yield Target(f"{kind}, {form}", str(v6), spell_v6(v6))
    for kind, text in V6_NETWORKS.items():
        for number in _pick(IPv6Network(text), chance, extra):
            v6 = IPv6Address(number)
            yield Target(kind, str(v6), spell_v6(v6))
    for text in SCOPED:
        yield Target("scope id", text, [f"[{text}]", f"[{text.replace('%', '%25')}]"])


def list_public() -> Iterator[Target]:
    for text in PUBLIC:
        spelled = spell_v6(IPv6Address(text)) if ":" in text else spell_v4(IPv4Address(text))
        yield Target("public", text, spelled)


def _literals(target: Target) -> Iterator[Case]:
    for host in target.hosts:
        yield Case("literal", target, f"http://{host}/", {})
    yield Case("literal, TLS port", target, f"http://{target.hosts[0]}:443/", {})


def _names(target: Target) -> Iterator[Case]:
    for way, answer in {
        "name": [target.address],
        "public answer first": [STEP, target.address],
        "public answer last": [target.address, STEP],
        "public IPv6 answer first": [STEP_V6, target.address],
        "among many": [STEP, STEP_V6, *[STEP] * 6, target.address],
    }.items():
        if way != "among many" or target.address not in {STEP, STEP_V6}:
            yield Case(way, target, "http://a.example/", {"a.example": [answer]})
    v6 = target.address if ":" in target.address else None
    if v6:
        yield Case("IPv6 only", target, "http://a.example/", {"a.example": [[STEP_V6, v6, v6]]})


def _redirects(target: Target) -> Iterator[Case]:
    step = {"step.example": [[STEP]]}
    for code in REDIRECTS:
        goals = {"literal": target.hosts[code % len(target.hosts)], "name": "a.example"}
        for goal, host in goals.items():
            location = quote(f"http://{host}/", safe="")
            names = {**step, "a.example": [[target.address]]}
            url = f"http://step.example/{code}/{location}"
            yield Case(f"redirect {code} to a {goal}", target, url, names, steps=1)


def _rebinding(target: Target) -> Iterator[Case]:
    names = {"a.example": [[STEP], [target.address]]}
    yield Case("rebound", target, "http://a.example/302/%2Fagain", names, steps=1)
    names = {"a.example": [[STEP], [STEP, target.address]]}
    yield Case("rebound to mixed", target, "http://a.example/307/%2Fagain", names, steps=1)


WAYS: tuple[Callable[[Target], Iterator[Case]], ...] = (_literals, _names, _redirects, _rebinding)


def list_cases(targets: Iterator[Target]) -> Iterator[Case]:
    for target in targets:
        for way in WAYS:
            yield from way(target)
