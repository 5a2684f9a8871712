"""A file that came with a request, in place of a URL."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of a file and their SHA-256 (64 hex digits)."""

    body: bytes
    sha256: str

    @classmethod
    def of(cls, body: bytes) -> "Upload":
        """Return `body` with its hash."""
        return cls(body, hashlib.sha256(body).hexdigest())

    @property
    def reference(self) -> str:
        """What stands in a request for the file. No caller can write it, as it is not a URL."""
        return f"upload:{self.sha256}"
