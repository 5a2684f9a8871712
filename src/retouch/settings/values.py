"""Types of settings that pydantic does not have."""

import base64
import re
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, AnyHttpUrl, BeforeValidator, Field, SecretStr, TypeAdapter
from pydantic_settings import NoDecode

from retouch.settings.environment import strip_quotes

_PREFIX = re.compile(r"^([0-9a-z_-][0-9a-z._-]*/)*$")
_HOST_PORT = re.compile(r"^([a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]):[1-9][0-9]{0,4}$")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_MAX_PORT = 65535
_MIN_KEY_CHARACTERS = 16
_MIN_WEBHOOK_KEY_BYTES, _MAX_WEBHOOK_KEY_BYTES = 24, 64  # Standard Webhooks
T = TypeVar("T")


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith('["'):
        raise ValueError("must be entries by comma, not JSON")
    items = tuple(item for part in value.split(",") if (item := strip_quotes(part.strip())))
    if not items:
        raise ValueError("has no entries")
    return items


def _require_host_port(entry: str) -> str:
    host, _, port = entry.lower().rpartition(":")
    if not _HOST_PORT.match(entry.lower()) or int(port) > _MAX_PORT:
        raise ValueError(f"{entry!r} is not host:port in ASCII")
    return f"[{IPv6Address(host[1:-1])}]:{port}" if "[" in host else f"{host}:{port}"


def _require_key(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ValueError("keys must be printable ASCII")
    if len(key) < _MIN_KEY_CHARACTERS:  # short ones can be guessed, and cannot be kept out of logs
        raise ValueError(f"keys must have at least {_MIN_KEY_CHARACTERS} characters")
    return key


def _require_base_url(value: str) -> str:
    url = TypeAdapter(AnyHttpUrl).validate_python(value)
    if url.query is not None or url.fragment is not None or url.username is not None:
        raise ValueError("must be an http or https URL without a query")
    return str(url).rstrip("/")


def _require_prefix(value: str) -> str:
    value = value.strip("/") + "/" if value.strip("/") else ""
    if not _PREFIX.match(value) or ".." in value:
        raise ValueError("must be segments of a-z, 0-9, '.', '_' and '-', each ended by '/'")
    return value


def _require_secret_key(key: SecretStr) -> SecretStr:
    _require_key(key.get_secret_value())
    return key


def _require_bucket(value: str) -> str:
    if not _BUCKET.match(value):
        raise ValueError("is not a bucket name: up to 63 letters, digits, '.', '_' and '-'")
    return value


def _require_directory(value: Path) -> Path:
    directory = value.expanduser()
    if directory.exists() and not directory.is_dir():
        raise ValueError("is not a directory")
    return directory


def decode_webhook_secret(text: str) -> bytes:
    """Return the key in a secret as Standard Webhooks write it: `whsec_` and base64.

    >>> decode_webhook_secret("whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")[:3].hex()
    '31f290'
    """
    return base64.b64decode(text.removeprefix("whsec_"), validate=True)


def _require_webhook_secret(value: SecretStr) -> SecretStr:
    fault = "must be whsec_ and the base64 of 24 to 64 random bytes"
    try:
        key = decode_webhook_secret(value.get_secret_value())
    except ValueError:
        raise ValueError(fault) from None
    if not _MIN_WEBHOOK_KEY_BYTES <= len(key) <= _MAX_WEBHOOK_KEY_BYTES:
        raise ValueError(fault)
    return value


CommaList = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_split)]
HostPort = Annotated[str, AfterValidator(_require_host_port)]
ApiKey = Annotated[str, AfterValidator(_require_key)]
WebhookSecret = Annotated[SecretStr, AfterValidator(_require_webhook_secret)]
SecretKey = Annotated[SecretStr, AfterValidator(_require_secret_key)]
BaseUrl = Annotated[str, AfterValidator(_require_base_url)]
KeyPrefix = Annotated[str, AfterValidator(_require_prefix)]
Bucket = Annotated[str, AfterValidator(_require_bucket)]
Directory = Annotated[Path, AfterValidator(_require_directory)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
