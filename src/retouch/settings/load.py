"""Read the settings, with one line for all that are wrong."""

import os

from pydantic import ValidationError

from retouch.settings.settings import Settings


class InvalidSettings(SystemExit):
    """A setting is missing or wrong; the message names each in one line.

    A `SystemExit`, so that the process ends with that line if nobody catches it.
    """


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
            text = fault["msg"].removeprefix("Value error, ")
            names_settings = not fault["loc"] or text.startswith("S3_")
            faults.append(text if names_settings else f"{fault['loc'][0]}".upper() + f": {text}")
        raise InvalidSettings("wrong settings: " + "; ".join(faults)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"wrong settings: .env cannot be read: {error}") from None


def require_local_store(settings: Settings) -> None:
    """Check that the local store can be written, if it is the one in use.

    Raises:
        InvalidSettings: it cannot.
    """
    directory = settings.local_store_dir.absolute()
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    if not settings.uses_s3 and not os.access(nearest, os.W_OK | os.X_OK):
        raise InvalidSettings(f"wrong settings: LOCAL_STORE_DIR: {nearest} is not writable")
