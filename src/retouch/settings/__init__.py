"""All settings: the fields, which are secret, the S3 endpoint they name, and how they are read.

Nothing else reads the environment; `wiring` hands each part what it needs.
"""

from retouch.settings.load import InvalidSettings, load_settings, require_local_store
from retouch.settings.s3_endpoint import DEFAULT_REGION
from retouch.settings.settings import Settings
from retouch.settings.values import decode_webhook_secret

__all__ = [
    "DEFAULT_REGION",
    "InvalidSettings",
    "Settings",
    "decode_webhook_secret",
    "load_settings",
    "require_local_store",
]
