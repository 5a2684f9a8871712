"""The base of all errors."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar


class EditError(Exception):
    """Base of all errors that a caller can get.

    `type` is the coarse name of the contract, `code` the stable fine one, `status` the HTTP status,
    `retryable` whether the same request may succeed later. `log_level` is ERROR for our own faults only,
    which are logged with a trace: INFO is the caller's, WARNING the origin's or a matter of load.
    `default_message` stands where an error is raised without a message.
    """

    type: ClassVar[str] = "InternalError"
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    log_level: ClassVar[int] = logging.ERROR
    default_message: ClassVar[str] = ""

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        **context: Any,
    ) -> None:
        """Take the text for the caller, its `details`, and by keyword the `context` for the log."""
        self.message = self.default_message if message is None else message
        super().__init__(self.message)
        self.details: dict[str, Any] = dict(details or {})
        self.context = context
