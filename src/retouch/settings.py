"""Every setting, read once from the environment and `.env`, frozen and checked.

Nothing else reads the environment; `wiring` hands each part what it needs.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_B2_ENDPOINT = re.compile(r"^s3\.([a-z0-9-]+)\.backblazeb2\.com(?::\d+)?$")
_PREFIX = re.compile(r"^([0-9a-z_-][0-9a-z._-]*/)*$")
_HOST_PORT = re.compile(r"^[^\s/@:]+:\d{1,5}$|^\[[0-9a-fA-F:.]+\]:\d{1,5}$")
_BASE_URL = re.compile(
    r"^https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?(?:/[^\s?#\"<>\\]*)?$", re.IGNORECASE
)
_BUCKET = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
_MAX_PORT = 65535
_S3_REQUIRED = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")
DEFAULT_REGION = "us-west-000"

CommaList = Annotated[tuple[str, ...], NoDecode]


class InvalidSettings(SystemExit):
    """A setting is missing or wrong; the one line names it. Ends the process if nobody catches it."""


class Settings(BaseSettings):
    """All settings. A field's name in upper case is its environment variable."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        str_strip_whitespace=True,
    )

    s3_endpoint: str = Field(default="", description="S3 endpoint, with or without scheme")
    s3_access_key: SecretStr = Field(default=SecretStr(""), description="S3 key id")
    s3_secret_key: SecretStr = Field(default=SecretStr(""), description="S3 application key")
    s3_bucket: str = Field(default="", description="bucket for cached sources and results")
    s3_region: str = Field(
        default="",
        description="bucket region; unset: taken from a Backblaze endpoint, else us-west-000",
    )
    s3_secure: bool = Field(default=True, description="use HTTPS to reach the store")
    s3_object_prefix: str = Field(
        default="qwen-image-edit/", description="prefix of every object key"
    )
    presign_expiry: int = Field(
        default=86400, ge=1, le=604800, description="seconds a result's link lives"
    )
    max_image_bytes: int = Field(
        default=26214400, ge=1024, le=1 << 30, description="bytes of a source image at most"
    )
    timeout_seconds: float = Field(
        default=120, gt=0, le=3600, description="seconds for any one operation outside the model"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = Field(
        default="INFO", description="least severe level logged"
    )
    hf_token: SecretStr = Field(
        default=SecretStr(""), description="Hugging Face token for private models"
    )

    model_id: str = Field(
        default="", description="checkpoint: a hub id or a folder; unset: what fits this machine"
    )
    model_revision: str = Field(default="", description="hub revision to pin; unset: main")
    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        default="float16", description="precision of the model on a GPU; a CPU runs float32"
    )
    gpu_memory_gib: float = Field(
        default=0,
        ge=0,
        le=1024,
        description="GiB of GPU memory to plan for; 0: what is free at the start",
    )
    attention_backend: str = Field(
        default="native",
        description="attention kernel by diffusers' name, such as xformers, flash or sage",
    )
    compile: bool = Field(
        default=False,
        description="compile the model's blocks: a slower start, faster edits of the same result",
    )
    max_image_pixels: int = Field(
        default=50_000_000, ge=4096, le=1 << 28, description="pixels of a source image at most"
    )
    source_timeout_seconds: float = Field(
        default=20, gt=0, le=3600, description="seconds for the download of a source image"
    )
    source_ttl_seconds: int = Field(
        default=3600,
        ge=60,
        le=604800,
        description="seconds a cached source is fresh if its origin does not say",
    )
    allowed_source_hosts: CommaList = Field(
        default=(),
        description="host:port entries, by comma, that may be fetched whatever their address",
    )
    job_timeout_seconds: float = Field(
        default=600, gt=0, le=86400, description="seconds for a whole edit, queue included"
    )
    edit_grace_seconds: float = Field(
        default=15,
        gt=0,
        le=3600,
        description="seconds past its limit after which an edit counts as hung",
    )
    max_queue: int = Field(default=32, ge=0, le=10000, description="edits that may wait")
    prefetch_jobs: int = Field(
        default=0,
        ge=0,
        le=4,
        description="ignored; accepted so that old configurations start",
    )
    api_keys: CommaList = Field(
        default=(),
        repr=False,
        description="keys, by comma, of which a caller needs one; unset: open",
    )
    public_url: str = Field(
        default="", description="base of local links; unset: the request's Host header"
    )
    local_store_dir: Path = Field(
        default=Path(".local-store"), description="folder of the local store, used without S3"
    )
    link_secret: SecretStr = Field(
        default=SecretStr(""), description="signs local links; unset: kept in the local store"
    )

    @field_validator("allowed_source_hosts", "api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = tuple(word for part in value.split(",") if (word := part.strip()))
        if not words:
            raise ValueError("is set and names nothing")
        return words

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.strip().upper() if isinstance(value, str) else value

    @field_validator("dtype", "s3_secure", "compile", mode="before")
    @classmethod
    def _strip(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value

    @field_validator("allowed_source_hosts")
    @classmethod
    def _require_host_port(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not _HOST_PORT.match(entry) or int(entry.rpartition(":")[2]) > _MAX_PORT:
                raise ValueError(f"{entry!r} is not host:port")
        return tuple(entry.lower() for entry in value)

    @field_validator("api_keys")
    @classmethod
    def _require_ascii(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(key.isascii() and key.isprintable() for key in value):
            raise ValueError("keys must be printable ASCII")
        return value

    @field_validator("s3_object_prefix")
    @classmethod
    def _require_prefix(cls, value: str) -> str:
        value = value.strip("/") + "/" if value.strip("/") else ""
        if not _PREFIX.match(value) or ".." in value:
            raise ValueError("must be segments of a-z, 0-9, '.', '_' and '-', each ended by '/'")
        return value

    @field_validator("public_url")
    @classmethod
    def _require_base_url(cls, value: str) -> str:
        if value and not _BASE_URL.match(value):
            raise ValueError("must be an http or https URL without a query")
        return value.rstrip("/")

    @field_validator("s3_bucket")
    @classmethod
    def _require_bucket(cls, value: str) -> str:
        if value and not _BUCKET.match(value):
            raise ValueError("is no name of a bucket: up to 63 letters, digits, '.', '_' and '-'")
        return value

    @field_validator("local_store_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        folder = value.expanduser()
        if folder.exists() and not folder.is_dir():
            raise ValueError("is no folder")
        return folder

    @model_validator(mode="after")
    def _require_whole_s3(self) -> Self:
        missing = [name.upper() for name in _S3_REQUIRED if not self._plain(name)]
        if 0 < len(missing) < len(_S3_REQUIRED):
            raise ValueError(f"{', '.join(missing)} missing: set all four S3 settings, or none")
        if self.s3_endpoint:
            _ = self.s3_host, self.s3_effective_region
        return self

    def _plain(self, name: str) -> str:
        value = getattr(self, name)
        return str(value.get_secret_value()) if isinstance(value, SecretStr) else str(value)

    @property
    def uses_s3(self) -> bool:
        """Whether results go to S3, and not to the local store."""
        return bool(self.s3_endpoint)

    @property
    def s3_host(self) -> str:
        """The endpoint as `host[:port]`.

        Raises:
            ValueError: it is no endpoint, or its scheme contradicts S3_SECURE.
        """
        text = self.s3_endpoint if "://" in self.s3_endpoint else f"//{self.s3_endpoint}"
        wrong = "S3_ENDPOINT must be a host, with or without https:// and a port"
        try:
            parts = urlsplit(text)
            _ = parts.port  # read, so that a wrong one is refused here
        except ValueError:
            raise ValueError(wrong) from None
        if not parts.hostname or not parts.netloc.isprintable() or " " in parts.netloc:
            raise ValueError(wrong)
        if parts.path.strip("/") or parts.query or "@" in parts.netloc:
            raise ValueError(wrong)
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
    def secrets(self) -> list[str]:
        """Every secret value that is set; the log redacts them."""
        fields = (self.s3_access_key, self.s3_secret_key, self.hf_token, self.link_secret)
        values = [field.get_secret_value() for field in fields]
        return [*filter(None, values), *self.api_keys]

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a request body at most: a whole image as base64, and room for the rest."""
        return self.max_image_bytes * 4 // 3 + 65536


def require_local_store(settings: Settings) -> None:
    """Check that the local store can be written, where it is the one in use.

    Raises:
        WrongSetting: it cannot.
    """
    folder = settings.local_store_dir.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not settings.uses_s3 and not os.access(there, os.W_OK | os.X_OK):
        raise InvalidSettings(f"wrong settings: LOCAL_STORE_DIR: {there} may not be written")


def load_settings() -> Settings:
    """Read the environment and `.env`.

    Raises:
        WrongSetting: with one line that names each setting that is wrong.
    """
    try:
        return Settings()
    except ValidationError as error:
        faults = [
            f"{'_'.join(map(str, fault['loc'][:1])).upper()}: {_message(fault['msg'])}".lstrip(": ")
            for fault in error.errors(include_input=False, include_url=False)
        ]
        raise InvalidSettings("wrong settings: " + "; ".join(faults)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"wrong settings: .env cannot be read: {error}") from None


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")
