"""The entries of LORAS: `[!]name=source[#sha256][@scale]`."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator

_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_MAX_SCALE = 4.0
_HUB_PAGE = re.compile(r"(https://(?:huggingface|hf)\.co/[^/]+/[^/]+)/blob/")


@dataclass(frozen=True, slots=True)
class LoraSetting:
    """A LoRA file to load: a path, a hub's `owner/repository/file`, or an https URL.

    `sha256` is empty or the hash that the file must have. With `always` it is applied to every request.
    """

    name: str
    source: str
    sha256: str = ""
    scale: float = 1.0
    always: bool = False


def parse_lora(text: str) -> LoraSetting:
    """Parse an entry. A comma in its source is written as %2C.

    Raises:
        ValueError: it is malformed; the text says where.

    >>> parse_lora("!grain=https://example.com/a@b.safetensors@0.5")
    LoraSetting(name='grain', source='https://example.com/a@b.safetensors', sha256='', scale=0.5, always=True)
    """
    name, equals, rest = text.removeprefix("!").partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise ValueError(f"{text!r} must begin with name=, of a-z, 0-9, '_' and '-'")
    source, at, number = rest.rpartition("@")
    scale = 1.0
    if not at or "/" in number:  # the @ of a path or URL
        source = rest
    else:
        scale = _parse_scale(name, number)
    stem, mark, digest = source.rpartition("#")
    if mark and not _SHA256.fullmatch(digest):
        raise ValueError(f"{name}: after # stand the 64 hex digits of the file's SHA-256")
    source = (stem if mark else source).replace("%2C", ",")
    source = _HUB_PAGE.sub(r"\1/resolve/", source)  # the page about a file, as a browser shows it
    if not source or source.startswith("http://"):
        raise ValueError(f"{name}: must name a file, a hub's owner/repository/file or an https URL")
    return LoraSetting(name, source, digest.lower() if mark else "", scale, text.startswith("!"))


def _parse_scale(name: str, text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = float("nan")
    if not -_MAX_SCALE <= scale <= _MAX_SCALE:
        raise ValueError(f"{name}: the scale after @ must be a number from -4 to 4")
    return scale


def _parse(value: object) -> object:
    return parse_lora(value) if isinstance(value, str) else value


Lora = Annotated[LoraSetting, BeforeValidator(_parse)]
