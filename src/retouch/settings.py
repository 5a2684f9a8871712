"""All settings, read once from the environment and `.env`, validated and frozen.

Nothing else reads the environment; `wiring` hands each part what it needs.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AnyHttpUrl,
    BeforeValidator,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_B2_ENDPOINT = re.compile(r"^s3\.([a-z0-9-]+)\.backblazeb2\.com(?::\d+)?$")
_PREFIX = re.compile(r"^([0-9a-z_-][0-9a-z._-]*/)*$")
_HOST_PORT = re.compile(r"^([^\s/@:]+|\[[0-9a-fA-F:.]+\]):\d{1,5}$")
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_MAX_PORT = 65535
_S3_REQUIRED = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")
DEFAULT_REGION = "us-west-000"
T = TypeVar("T")


class InvalidSettings(SystemExit):
    """A setting is missing or wrong; the message names each in one line.

    A `SystemExit`, so that the process ends with that line if nobody catches it.
    """


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    items = tuple(item for part in value.split(",") if (item := part.strip()))
    if not items:
        raise ValueError("has no entries")
    return items


def _require_host_port(entry: str) -> str:
    if not _HOST_PORT.match(entry) or int(entry.rpartition(":")[2]) > _MAX_PORT:
        raise ValueError(f"{entry!r} is not host:port")
    return entry.lower()


def _require_ascii(key: str) -> str:
    if not (key.isascii() and key.isprintable()):
        raise ValueError("keys must be printable ASCII")
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


def _require_bucket(value: str) -> str:
    if not _BUCKET.match(value):
        raise ValueError("is not a bucket name: up to 63 letters, digits, '.', '_' and '-'")
    return value


def _require_directory(value: Path) -> Path:
    directory = value.expanduser()
    if directory.exists() and not directory.is_dir():
        raise ValueError("is not a directory")
    return directory


CommaList = Annotated[tuple[T, ...], NoDecode, BeforeValidator(_split)]
HostPort = Annotated[str, AfterValidator(_require_host_port)]
ApiKey = Annotated[str, AfterValidator(_require_ascii)]
BaseUrl = Annotated[str, AfterValidator(_require_base_url)]
KeyPrefix = Annotated[str, AfterValidator(_require_prefix)]
Bucket = Annotated[str, AfterValidator(_require_bucket)]
Directory = Annotated[Path, AfterValidator(_require_directory)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
_UNSET = SecretStr("")


class Settings(BaseSettings):
    """All settings. The environment variable of a field is its name in upper case."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=False,
    )

    s3_endpoint: str = Field("", description="S3 endpoint, with or without scheme")
    s3_access_key: SecretStr = Field(_UNSET, description="S3 key id")
    s3_secret_key: SecretStr = Field(_UNSET, description="S3 application key")
    s3_bucket: Bucket = Field("", description="bucket for cached sources and results")
    s3_region: str = Field(
        "", description="bucket region; unset: from a Backblaze endpoint, else us-west-000"
    )
    s3_secure: bool = Field(True, description="use HTTPS to reach the store")
    s3_object_prefix: KeyPrefix = Field("qwen-image-edit/", description="prefix of all object keys")
    presign_expiry: int = Field(86400, ge=1, le=604800, description="seconds a link lives")
    max_image_bytes: int = Field(
        26214400, ge=1024, le=1 << 30, description="most bytes of a source"
    )
    timeout_seconds: Seconds = Field(120, description="seconds for any operation outside the model")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        "INFO", description="lowest level that is logged"
    )
    hf_token: SecretStr = Field(_UNSET, description="Hugging Face token for private models")

    model_id: str = Field("", description="hub id or directory; unset: what fits this machine")
    model_revision: str = Field("", description="hub revision to pin; unset: main")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="precision of the model on a GPU; on a CPU it is float32"
    )
    gpu_memory_gib: float = Field(
        0, ge=0, le=1024, description="GPU memory to use; 0: what is free"
    )
    attention_backend: str = Field(
        "auto",
        description="attention kernel: auto measures at the start; fa3, or a name in diffusers",
    )
    compile: bool = Field(False, description="slower start, faster edits of the same result")
    max_image_pixels: int = Field(
        50_000_000, ge=4096, le=1 << 28, description="most pixels of a source"
    )
    source_timeout_seconds: Seconds = Field(20, description="seconds for a source's download")
    source_ttl_seconds: int = Field(
        3600,
        ge=60,
        le=604800,
        description="seconds that a cached source is fresh if its origin does not say",
    )
    source_max_stale_seconds: int = Field(
        86400,
        ge=0,
        le=604800,
        description="seconds that a stale copy may answer while its origin is down",
    )
    source_user_agent: str = Field(
        "", pattern=r"^[ -~]*$", max_length=512, description="User-Agent of downloads"
    )
    allowed_source_hosts: CommaList[HostPort] = Field(
        (), description="host:port entries that may be fetched whatever their address"
    )
    job_timeout_seconds: float = Field(
        600, gt=0, le=86400, description="seconds for an edit and its queue"
    )
    edit_grace_seconds: Seconds = Field(
        15, description="seconds past its limit until an edit is hung"
    )
    max_downloads: int = Field(64, ge=1, le=10000, description="sources loaded at once")
    max_download_bytes: int = Field(
        0, ge=0, le=1 << 40, description="their bytes together; 0: 33 x MAX_IMAGE_BYTES"
    )
    downloads_per_host: int = Field(8, ge=1, le=1000, description="connections to one origin")
    stop_grace_seconds: Seconds = Field(
        25, description="seconds for edits to end when the process stops"
    )
    max_queue: int = Field(32, ge=0, le=10000, description="edits that may wait")
    prefetch_jobs: int = Field(
        0, ge=0, le=4, description="ignored; accepted so that old configurations start"
    )
    api_keys: CommaList[ApiKey] = Field(
        (), repr=False, description="keys that callers may use; unset: open to all"
    )
    public_url: BaseUrl = Field(
        "", description="base of local links; unset: the request's Host header"
    )
    local_store_dir: Directory = Field(
        Path(".local-store"), description="directory of the local store, used without S3"
    )
    link_secret: SecretStr = Field(
        _UNSET, description="signs local links; unset: one is made in the local store"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _require_whole_s3(self) -> Self:
        # A SecretStr is false where it is empty, as a str is.
        missing = [name.upper() for name in _S3_REQUIRED if not getattr(self, name)]
        if 0 < len(missing) < len(_S3_REQUIRED):
            raise ValueError(f"{', '.join(missing)} missing: set all four S3 settings, or none")
        if self.s3_endpoint:
            _ = self.s3_host, self.s3_effective_region
        return self

    @property
    def uses_s3(self) -> bool:
        """Whether results go to S3, not to the local store."""
        return bool(self.s3_endpoint)

    @property
    def s3_host(self) -> str:
        """The endpoint as `host[:port]`.

        Raises:
            ValueError: it is not an endpoint, or its scheme contradicts S3_SECURE.
        """
        text = self.s3_endpoint if "://" in self.s3_endpoint else f"//{self.s3_endpoint}"
        fault = "S3_ENDPOINT must be a host, with or without https:// and a port"
        try:
            parts = urlsplit(text)
            _ = parts.port  # raises if it is not a port
        except ValueError:
            raise ValueError(fault) from None
        has_more = parts.path.strip("/") or parts.query or "@" in parts.netloc
        is_printable = parts.netloc.isprintable() and " " not in parts.netloc
        if not parts.hostname or has_more or not is_printable:
            raise ValueError(fault)
        if parts.scheme not in ("", "http", "https"):
            raise ValueError("S3_ENDPOINT must be http or https")
        if parts.scheme and (parts.scheme == "https") != self.s3_secure:
            raise ValueError(f"S3_ENDPOINT says {parts.scheme}, S3_SECURE says {self.s3_secure}")
        return parts.netloc

    @property
    def s3_effective_region(self) -> str:
        """The region: as set, else the one in a Backblaze endpoint, else us-west-000.

        Raises:
            ValueError: the setting and a Backblaze endpoint name different regions.
        """
        found = _B2_ENDPOINT.match(self.s3_host.lower())
        if found and self.s3_region and self.s3_region != found[1]:
            raise ValueError(f"S3_REGION is {self.s3_region}, the endpoint's region is {found[1]}")
        return self.s3_region or (found[1] if found else DEFAULT_REGION)

    @property
    def max_body_bytes(self) -> int:
        """Largest request body in bytes: a whole image as base64, and 64 KiB for the rest."""
        return self.max_image_bytes * 4 // 3 + 65536

    @property
    def secrets(self) -> list[str]:
        """Every secret value, to keep out of the logs."""
        named = (self.s3_access_key, self.s3_secret_key, self.hf_token, self.link_secret)
        return [text for secret in named if (text := secret.get_secret_value())] + [*self.api_keys]

    @property
    def warnings(self) -> list[str]:
        """What is set without effect, a sentence each; log it once logging is installed."""
        return ["PREFETCH_JOBS is ignored: unset it"] if self.prefetch_jobs else []


def require_local_store(settings: Settings) -> None:
    """Check that the local store can be written, if it is the one in use.

    Raises:
        InvalidSettings: it cannot.
    """
    directory = settings.local_store_dir.absolute()
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not settings.uses_s3 and not os.access(nearest, os.W_OK | os.X_OK):
        raise InvalidSettings(f"wrong settings: LOCAL_STORE_DIR: {nearest} is not writable")


def load_settings() -> Settings:
    """Read the environment and `.env`.

    Raises:
        InvalidSettings: one or more settings are wrong; the message names each in one line.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = []
        for fault in error.errors(include_input=False, include_url=False):
            name = str(fault["loc"][0]).upper() + ": " if fault["loc"] else ""
            faults.append(name + fault["msg"].removeprefix("Value error, "))
        raise InvalidSettings("wrong settings: " + "; ".join(faults)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"wrong settings: .env cannot be read: {error}") from None
