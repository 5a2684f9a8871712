"""A bound on the header of a safetensors file, before any parser sees it.

The library takes 100 MB: a million names, which cost minutes, half of them with the interpreter's lock
held, so that nothing else answers.
"""

from pathlib import Path

MAX_HEADER_BYTES = 4 << 20
"""The largest files of this family have 2,500 tensors, whose names and places take 0.6 MB."""
_LENGTH_BYTES = 8


def has_long_header(path: Path) -> bool:
    """Whether a file's header is over the limit. Raises OSError where it cannot be read.

    A length that goes beyond the end of the file is damage, which the library refuses at once.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    return MAX_HEADER_BYTES < length < path.stat().st_size
