"""What bounds downloads, and how they introduce themselves."""

from dataclasses import dataclass

from retouch import __version__


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one download, and of those from one host.

    `allowed_hosts` are exact lower-case `host:port` entries exempt from the address and port rule.
    `max_lookups` is well over the number of downloads, because a look-up that hangs outlives its
    download: it ends when the system's resolver gives up.
    """

    max_bytes: int = 26_214_400
    connect_timeout_s: float = 5.0
    max_redirects: int = 5
    max_dials: int = 4
    max_per_host: int = 8
    max_lookups: int = 512
    user_agent: str = f"retouch/{__version__}"
    allowed_hosts: frozenset[str] = frozenset()
