"""The model libraries, before a test module imports them whole."""

import support.models.lean  # noqa: F401
