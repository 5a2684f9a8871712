"""Decide which IP addresses are public: the rule that keeps fetches out of private networks."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

# The special-purpose registries of RFC 6890, multicast, and 168.63.129.16: Azure's host agent,
# although its address is in public space.
_REFUSED_V4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ),
    )
)
# Refused inside 2000::/3: protocol assignments with Teredo, documentation (RFC 3849, RFC 9637), 6to4.
_GLOBAL_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))
# The upper half of an ISATAP interface id (RFC 5214, section 6.1); the lower half is an IPv4 address.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def is_public(address: str) -> bool:
    """Whether a resolved address may be connected to: public, and no embedded private IPv4 address.

    Anything but an address literal is not public.

    `ipaddress.is_global` cannot replace it: on CPython 3.11 it is true for NAT64, 6to4 and multicast
    (github.com/python/cpython/issues/113171 changed some of it between patch releases).

    >>> is_public("93.184.215.14"), is_public("64:ff9b::7f00:1")
    (True, False)
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return False
        if not ip.ipv4_mapped:
            is_refused = ip not in _GLOBAL_V6 or any(ip in network for network in _REFUSED_V6)
            return not is_refused and (int(ip) >> 32) & 0xFFFF_FFFF not in _ISATAP
        ip = ip.ipv4_mapped
    return not any(ip in network for network in _REFUSED_V4)
