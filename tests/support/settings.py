"""Settings of tests."""

from functools import lru_cache
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from retouch.settings import Settings


class _GivenSettings(Settings):
    model_config = SettingsConfigDict(env_file=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def build_settings(**values: Any) -> Settings:
    """Build settings of these values alone.

    Neither the environment nor a file is searched for each field, which takes longer than most tests;
    nor are frozen settings built again of the same values.
    """
    try:
        return _build_once(**values)
    except TypeError:  # a list or a dictionary
        return _GivenSettings(**values)


@lru_cache(maxsize=None, typed=True)
def _build_once(**values: Any) -> Settings:
    return _GivenSettings(**values)
