"""The fields of all settings, validated and frozen."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import DotEnvSettingsSource, SettingsConfigDict

from retouch.settings.adapters import AdapterSettings
from retouch.settings.engine import EngineSettings
from retouch.settings.environment import find_warnings
from retouch.settings.gpus import GpuSettings
from retouch.settings.remote import RemoteEngineSettings
from retouch.settings.s3_endpoint import DEFAULT_REGION, S3Endpoint, parse_endpoint
from retouch.settings.values import (
    ApiKey,
    BaseUrl,
    Bucket,
    CommaList,
    Directory,
    HostPort,
    KeyPrefix,
    Seconds,
    SecretKey,
    WebhookSecret,
)

_S3_REQUIRED = ("s3_endpoint", "s3_access_key", "s3_secret_key", "s3_bucket")
_UNSET = SecretStr("")
_CHOICES = ("dtype", "quantization", "parallel", "gpus", "model_family", "link_disposition")


class Settings(RemoteEngineSettings, GpuSettings, AdapterSettings, EngineSettings):
    """All settings. The environment variable of a field is its name in upper case."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=False,
    )

    s3_secure: bool = Field(True, description="use HTTPS to reach the store")
    s3_bucket: Bucket = Field("", description="bucket for cached sources and results")
    s3_access_key: SecretStr = Field(_UNSET, description="S3 key id")
    s3_secret_key: SecretStr = Field(_UNSET, description="S3 application key")
    s3_endpoint: str = Field("", description="S3 endpoint, with or without scheme")
    s3_region: str = Field(
        "",
        validate_default=True,
        description="bucket region; unset: from the endpoint if it names one, else us-west-000",
    )
    s3_public_endpoint: str = Field(
        "", description="endpoint in links, if callers reach the store by another endpoint"
    )
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
    transformer_file: str = Field(
        "", description="GGUF or safetensors file with the transformer's weights; needs MODEL_ID"
    )
    text_encoder_file: str = Field(
        "", description="safetensors file with the text encoder's weights; needs MODEL_ID"
    )
    model_family: Literal["", "edit", "2509", "2511"] = Field(
        "", description="model of TRANSFORMER_FILE, if the file is not marked: edit, 2509 or 2511"
    )
    max_image_pixels: int = Field(
        52_000_000, ge=4096, le=1 << 28, description="most pixels of a source; 4 times in a JPEG"
    )
    decoder_children: int = Field(2, ge=1, le=64, description="sources decoded at a time")
    decoder_cpu_seconds: int = Field(
        10, ge=1, le=600, description="processor time for decoding a source"
    )
    decoder_memory_mib: int = Field(
        1024, ge=256, le=65536, description="memory for decoding a source, in MiB"
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
    reuse_results: bool = Field(
        True, description="answer equal requests with an explicit seed from the stored result"
    )
    job_retention_seconds: int = Field(
        86400, ge=60, le=604800, description="seconds that a job can be read after its acceptance"
    )
    webhook_secret: WebhookSecret = Field(
        _UNSET, description="signs webhooks, as Standard Webhooks say; unset: none are offered"
    )
    allowed_webhook_hosts: CommaList[HostPort] = Field(
        (), description="host:port entries that webhooks may reach whatever their address"
    )
    prefetch_jobs: int = Field(
        0, ge=0, le=4, description="ignored; accepted so that old configurations start"
    )
    api_keys: CommaList[ApiKey] = Field(
        (), repr=False, description="keys that callers may use; unset: open to all"
    )
    metrics_key: SecretKey = Field(_UNSET, description="key for /metrics; unset: one of API_KEYS")
    allowed_hosts: CommaList[str] = Field(
        (), description="hosts that callers of a loopback address may name; *: any"
    )
    public_url: BaseUrl = Field(
        "", description="base of local links; unset: the request's Host header"
    )
    local_store_dir: Directory = Field(
        Path(".local-store"), description="directory of the local store, used without S3"
    )
    local_store_max_gib: float = Field(
        10, gt=0, le=65536, description="GiB of the local store; the oldest objects go first"
    )
    link_disposition: Literal["inline", "attachment"] = Field(
        "inline", description="what a browser does with a link: show the image, or save it"
    )
    link_secret: SecretKey = Field(
        _UNSET, description="signs local links; unset: one is made in the local store"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value

    @field_validator("model_id")
    @classmethod
    def _to_hub_id(cls, value: str) -> str:
        return value.removeprefix("https://huggingface.co/").rstrip("/") or value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        level = str(value).upper()
        return {"WARN": "WARNING", "FATAL": "CRITICAL"}.get(level, level)

    @field_validator(*_CHOICES, mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    # Validators of fields, because a model validator runs only if all fields are valid.
    @field_validator("s3_endpoint", "s3_public_endpoint")
    @classmethod
    def _require_endpoint(cls, value: str, info: ValidationInfo) -> str:
        if value:
            parse_endpoint(value, bucket=info.data.get("s3_bucket", ""))
        return value

    @field_validator("s3_region")
    @classmethod
    def _require_whole_s3(cls, region: str, info: ValidationInfo) -> str:
        missing = [name.upper() for name in _S3_REQUIRED if not info.data.get(name, "invalid")]
        if 0 < len(missing) < len(_S3_REQUIRED):
            raise ValueError(f"{', '.join(missing)} missing: set all four S3 settings, or none")
        if endpoint := info.data.get("s3_endpoint"):
            named = parse_endpoint(endpoint, bucket=info.data.get("s3_bucket", "")).region
            if region and named and region != named:
                raise ValueError(f"is {region}, but the endpoint is in {named}: unset S3_REGION")
        return region

    @field_validator("transformer_file", "text_encoder_file")
    @classmethod
    def _require_base(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("model_id", "invalid"):
            raise ValueError("needs MODEL_ID: the checkpoint with all other parts")
        return value

    @field_validator("model_family")
    @classmethod
    def _require_file(cls, value: str, info: ValidationInfo) -> str:
        if value and not info.data.get("transformer_file", "invalid"):
            raise ValueError("is that of TRANSFORMER_FILE, which is unset")
        return value

    @model_validator(mode="after")
    def _require_one_scheme(self) -> Self:
        if self.uses_s3 and "s3_secure" in self.model_fields_set:
            found = parse_endpoint(self.s3_endpoint, bucket=self.s3_bucket)
            if found.secure not in (None, self.s3_secure):
                raise ValueError(f"S3_ENDPOINT contradicts S3_SECURE={self.s3_secure}: unset it")
        return self

    @property
    def uses_s3(self) -> bool:
        """Whether results go to S3, not to the local store."""
        return bool(self.s3_endpoint)

    @property
    def s3_server(self) -> S3Endpoint:
        """The store: its host, whether by TLS, and its region."""
        found = parse_endpoint(self.s3_endpoint, bucket=self.s3_bucket)
        secure = self.s3_secure if found.secure is None else found.secure
        return S3Endpoint(found.host, secure, self.s3_region or found.region or DEFAULT_REGION)

    @property
    def s3_public_server(self) -> S3Endpoint:
        """The store as callers reach it: where S3_PUBLIC_ENDPOINT is unset, the same."""
        if not self.s3_public_endpoint:
            return self.s3_server
        found = parse_endpoint(self.s3_public_endpoint, bucket=self.s3_bucket)
        secure = self.s3_server.secure if found.secure is None else found.secure
        return S3Endpoint(found.host, secure, self.s3_server.region)

    @property
    def max_request_image_bytes(self) -> int:
        """Most bytes of all images of one request together."""
        return 2 * self.max_image_bytes

    @property
    def max_body_bytes(self) -> int:
        """Largest request body in bytes: the images as base64, and 64 KiB for the rest."""
        return self.max_request_image_bytes * 4 // 3 + 65536

    @property
    def secrets(self) -> list[str]:
        """Every secret value, to keep out of the logs."""
        named = [value for _, value in self if isinstance(value, SecretStr)]
        return [text for secret in named if (text := secret.get_secret_value())] + [*self.api_keys]

    @property
    def warnings(self) -> list[str]:
        """What is set with another effect than expected; log it once logging is installed."""
        in_file = {name.upper(): "" for name in DotEnvSettingsSource(type(self)).env_vars}
        names = [name.upper() for name in type(self).model_fields]
        found = find_warnings({**in_file, **os.environ}, names)
        return [*found, *(["PREFETCH_JOBS is ignored: unset it"] if self.prefetch_jobs else [])]
