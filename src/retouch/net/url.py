"""Parse and resolve source URLs: http and https only, no credentials, checked hosts and ports."""

import contextlib
import re
import socket
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import quote, urljoin

import idna

from retouch.errors import InvalidRequest, SourceUnreachable
from retouch.net.address import is_public

MAX_URL_LENGTH = 4096
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Those that no URI may hold are encoded (RFC 3986, 2): some servers refuse them, such as Tomcat.
_PRINTABLE = "".join(set(map(chr, range(0x21, 0x7F))) - set('"<>^`{|}'))

_FORBIDDEN = re.compile(r"[\\\x00-\x1f\x7f]")
_TABS_AND_LINES = str.maketrans("", "", "\t\r\n")
_BLANKS = "".join(map(chr, range(0x21)))
_URL = re.compile(r"(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::([0-9]*))?")
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True, repr=False)
class SourceUrl:
    """A well-formed source URL. `require_destination` checks its port and an address in it.

    `canonical` is for hashing only: its query may hold a secret, so `str` and `repr` show only the
    host. `host` is ASCII, an IPv6 literal without brackets; `target` is the path and query in ASCII.
    """

    canonical: str
    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """The host for a Host header: IPv6 in brackets, no default port."""
        return self.canonical.split("/", 3)[2]

    @property
    def host_port(self) -> str:
        """The host and always its port, the form of `allowed_hosts`."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def names_private_address(self) -> bool:
        """Whether the host is an address literal, in any spelling that libc reads, that is not public."""
        if ":" in self.host:
            return not is_public(self.host)
        try:
            return not is_public(socket.inet_ntoa(socket.inet_aton(self.host)))
        except OSError:  # it is a name
            return False

    def __repr__(self) -> str:
        return f"SourceUrl({self.scheme}://{self.host_port})"

    __str__ = __repr__


def parse_url(text: str) -> SourceUrl:
    """Parse and normalise an absolute http or https URL of at most 4096 characters.

    As browsers do, it drops blanks at both ends, tabs and line breaks, and encodes spaces
    (url.spec.whatwg.org). Raises ValueError for anything else; its message never repeats the URL.

    >>> parse_url("HTTPS://Bücher.example:443?a=B c#top").canonical
    'https://xn--bcher-kva.example/?a=B%20c'
    """
    return _parse(text, errors="strict")


def _parse(text: str, *, errors: str) -> SourceUrl:
    if len(text) > MAX_URL_LENGTH:
        raise ValueError(f"must not be longer than {MAX_URL_LENGTH} characters")
    parts = _URL.fullmatch(_tidy(text))
    if not parts:
        raise ValueError("must be an http or https URL")
    scheme, authority, path, query = parts[1].lower(), parts[2], parts[3], parts[4] or ""
    host, port = _parse_authority(authority, default_port=_DEFAULT_PORTS[scheme])
    try:
        target = quote(_remove_dots(path) + query, safe=_PRINTABLE, errors=errors)
    except UnicodeEncodeError:
        raise ValueError("must not hold lone surrogates") from None
    suffix = "" if port == _DEFAULT_PORTS[scheme] else f":{port}"
    canonical = f"{scheme}://{_bracketed(host)}{suffix}{target}"
    if len(canonical) > MAX_URL_LENGTH:
        raise ValueError(f"must not be longer than {MAX_URL_LENGTH} characters once encoded")
    return SourceUrl(canonical, scheme, host, port, target)


def resolve_redirect(url: SourceUrl, location: str) -> SourceUrl:
    """Resolve a Location header, relative or absolute, against `url`.

    `location` is decoded as UTF-8 with `surrogateescape`: raw bytes in it are percent-encoded. Raises
    ValueError as `parse_url` does, and for a step down from https to http.

    >>> resolve_redirect(parse_url("https://example.com/a/b?c"), "../d").canonical
    'https://example.com/d'
    """
    tidy = _tidy(location)
    try:
        joined = urljoin(url.canonical, tidy)
    except ValueError:
        raise ValueError("must be an http or https URL") from None
    resolved = _parse(joined, errors="surrogateescape")
    if (url.scheme, resolved.scheme) == ("https", "http"):
        raise ValueError("must not lead from https to http")
    return resolved


def require_destination(url: SourceUrl, *, allowed_hosts: frozenset[str]) -> None:
    """Refuse a destination that the URL itself shows to be forbidden. Looks up no name.

    The exact `host:port` entries of `allowed_hosts` are exempt.

    Raises:
        InvalidRequest: the port is neither 80 nor 443.
        SourceUnreachable: the host is an address that is not public.
    """
    if url.host_port in allowed_hosts:
        return
    if url.port not in _DEFAULT_PORTS.values():
        raise InvalidRequest.for_fields({"image_url": "must use port 80 or 443"}, host=url.host)
    if url.names_private_address:
        raise SourceUnreachable(host=url.host, reason="refused")


def _tidy(text: str) -> str:
    text = text.strip(_BLANKS).translate(_TABS_AND_LINES)
    if _FORBIDDEN.search(text):
        raise ValueError("must not hold control characters or backslashes")
    return text


def _remove_dots(path: str) -> str:
    """Resolve the segments `.` and `..` (RFC 3986, 5.2.4): not every server does, such as S3.

    >>> _remove_dots("/a/./b/../c/.."), _remove_dots("/../a.b/"), _remove_dots("")
    ('/a/', '/a.b/', '/')
    """
    kept: list[str] = []
    for segment in path.split("/")[1:]:
        if segment == "..":
            kept[-1:] = []
        elif segment != ".":
            kept.append(segment)
    return "/" + "/".join([*kept, ""] if path.endswith(("/.", "/..")) else kept)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _parse_authority(authority: str, *, default_port: int) -> tuple[str, int]:
    """Return the host, in lower-case ASCII without brackets, and the port."""
    if "@" in authority:
        raise ValueError("must not hold a user name or password")
    parts = _AUTHORITY.fullmatch(authority)
    if not parts:
        raise ValueError("must have a valid host and port")
    literal, name, digits = parts.groups()
    port = int(digits) if digits else default_port
    if not 1 <= port <= 65535:  # noqa: PLR2004 - the range of a TCP port
        raise ValueError("must have a port from 1 to 65535")
    return (_parse_literal(literal) if literal else _parse_name(name)), port


def _parse_literal(literal: str) -> str:
    try:
        return IPv6Address(literal).compressed
    except AddressValueError:
        raise ValueError("must have a valid host and port") from None


def _parse_name(name: str) -> str:
    """Encode a host name. A trailing dot is dropped: SNI must not have it (RFC 6066, section 3)."""
    host = name if name.isascii() else _to_ascii(name)
    host = host.lower().removesuffix(".")
    if len(host) > 253 or not _HOST.fullmatch(host):  # noqa: PLR2004 - RFC 1035, section 2.3.4
        raise ValueError("must have a valid host and port")
    return host


def _to_ascii(name: str) -> str:
    """Encode by IDNA 2008; what that refuses, such as emoji, by UTS 46 alone, as browsers do."""
    with contextlib.suppress(UnicodeError):
        return idna.encode(name, uts46=True).decode("ascii")
    try:
        labels = idna.uts46_remap(name, std3_rules=False).split(".")
        if max(map(len, labels)) > 63:  # noqa: PLR2004 - RFC 1035; punycode takes quadratic time
            raise ValueError("must have a valid host and port")
        encoded = [
            label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"
            for label in labels
        ]
    except UnicodeError:
        raise ValueError("must have a valid host and port") from None
    return ".".join(encoded)
