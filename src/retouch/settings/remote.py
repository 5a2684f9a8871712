"""The settings of a remote engine."""

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from retouch.settings.environment import EnvironmentSettings
from retouch.settings.values import BaseUrl


def _require_token(value: SecretStr) -> SecretStr:
    key = value.get_secret_value()
    if not (key.isascii() and key.isprintable()):
        raise ValueError("must be printable ASCII")
    return value


class RemoteEngineSettings(EnvironmentSettings):
    """Where edits are made, if not here."""

    engine_url: BaseUrl = Field(
        "", description="server whose /v1/images/edits makes the edits; unset: a model here"
    )
    engine_key: Annotated[SecretStr, AfterValidator(_require_token)] = Field(
        SecretStr(""), description="bearer token for ENGINE_URL"
    )
    engine_model: str = Field(
        "",
        pattern=r"^[ -~]*$",
        max_length=200,
        description="model to ask ENGINE_URL for; unset: the one that it has",
    )
