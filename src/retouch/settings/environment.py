"""Settings from the environment, and variables set in a way that their author cannot have meant."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource

_LIKENESS = 0.845  # S3_ENDPOINT_URL is meant for S3_ENDPOINT, AWS_REGION is not for S3_REGION


def strip_quotes(value: str) -> str:
    """Return the value without the pair of quotes that `docker --env-file` leaves around it.

    A list of quoted items stays: `values` drops the quotes of each.

    >>> strip_quotes('"alpha,beta"'), strip_quotes("it's"), strip_quotes("'alpha','beta'")
    ('alpha,beta', "it's", "'alpha','beta'")
    """
    text = value.strip()
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    is_quoted &= text[:1] not in text[1:-1]
    return text[1:-1] if is_quoted else value


def find_warnings(variables: Mapping[str, str | None], settings: Collection[str]) -> list[str]:
    """Name the settings in quotes, and the variables whose names are nearly those of settings.

    >>> find_warnings({"DTYPE": "'float16'", "MAXQUEUE": "4", "PATH": "/bin"}, ["DTYPE", "MAX_QUEUE"])
    ['DTYPE is set in quotes: they are dropped', 'MAXQUEUE is not a setting: is MAX_QUEUE meant?']
    """
    found = []
    for name, value in sorted(variables.items()):
        if name.upper() in settings:
            if value and strip_quotes(value) != value:
                found.append(f"{name} is set in quotes: they are dropped")
        elif close := get_close_matches(name.upper(), settings, n=1, cutoff=_LIKENESS):
            found.append(f"{name} is not a setting: is {close[0]} meant?")
    return found


class EnvironmentSettings(BaseSettings):
    """Settings from arguments, the environment and `.env`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment without quotes around its values, then `.env`."""
        if isinstance(env_settings, EnvSettingsSource):
            plain = {
                name: strip_quotes(value or "") for name, value in env_settings.env_vars.items()
            }
            env_settings.env_vars = {name: value for name, value in plain.items() if value}
        return init_settings, env_settings, dotenv_settings
