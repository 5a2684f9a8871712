"""Log lines: one JSON object each on stdout, with the request id, without URLs, secrets or prompts."""

import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from retouch import tracing

REDACTED = "[redacted]"
# Libraries that would log every request, full URLs included, at INFO or DEBUG.
QUIET = ("httpx", "httpcore", "urllib3", "minio", "PIL", "asyncio", "filelock", "uvicorn.access")
# Bounded, so that matching takes linear time in any text.
_URL = re.compile(
    r"""([a-zA-Z][a-zA-Z0-9+.-]{0,30}://)(?:[^\s"\\/?#@]*@)?([^\s"\\/?#]*)/?([^\s"\\]*)"""
)
_DATA_URL = re.compile(r"""\bdata:[^\s"\\,]{0,256},[^\s"\\]*""", re.IGNORECASE)
_QUERY = re.compile(r"""\?[^\s"'\\?=]{1,256}=[^\s"'\\]*""")  # also after a path without a host
_CLOSING = "'])}>,.;"  # what follows a URL in a text, such as the repr of a dict
_MIN_HIDDEN_CHARACTERS = 4
"""What is shorter hides nothing, and is in every other word."""

_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
_private: ContextVar[tuple[str, ...]] = ContextVar("private", default=())


@contextmanager
def bind(request_id: str, *, private: Iterable[str] = ()) -> Iterator[None]:
    """Add `request_id` to every line logged inside, and redact the `private` texts."""
    id_token = _request_id.set(request_id)
    texts = {text.strip() for text in private}  # as the engine gets them
    texts |= {form(text)[1:-1] for text in texts for form in (repr, json.dumps)}
    private_token = _private.set(tuple(t for t in texts if len(t) >= _MIN_HIDDEN_CHARACTERS))
    try:
        yield
    finally:
        _request_id.reset(id_token)
        _private.reset(private_token)


def current_request_id() -> str | None:
    """Return the request id that lines have here."""
    return _request_id.get()


def event(
    log: logging.Logger,
    name: str,
    /,
    *,
    level: int = logging.INFO,
    cause: BaseException | None = None,
    **fields: Any,
) -> None:
    """Log the event `name` (dotted, past tense, constant) with its fields, and the trace of `cause`."""
    log.log(level, name, extra={"fields": fields}, exc_info=cause, stacklevel=2)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Return `text` with every URL cut to its host and every secret replaced.

    >>> redact("GET https://user:pw@example.com/a/b?token=1 failed")
    'GET https://example.com/[redacted] failed'
    >>> redact("key K0123", ["K0123"])
    'key [redacted]'
    """
    # The longest first: one may be a prefix of another.
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    text = _DATA_URL.sub(f"data:{REDACTED}", text)
    text = _QUERY.sub(f"?{REDACTED}", text)
    return _URL.sub(_cut_to_host, text)


def _cut_to_host(url: re.Match[str]) -> str:
    if not url[3]:
        return url[1] + url[2]
    rest = url[3].replace(REDACTED, "")
    closing = rest[len(rest.rstrip(_CLOSING)) :]
    return f"{url[1]}{url[2]}/{REDACTED}{closing}"


class JsonFormatter(logging.Formatter):
    """Formats records as JSON and redacts every text in them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = tuple(s for s in secrets if len(s) >= _MIN_HIDDEN_CHARACTERS)

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` as one redacted line of JSON."""
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "requestId": _request_id.get(),
            **({"trace_id": trace_id} if (trace_id := tracing.trace_id()) else {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        hidden = (*self._secrets, *_private.get())
        return json.dumps({name: _clean(value, hidden) for name, value in line.items()})


def _clean(value: object, hidden: Sequence[str]) -> object:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 3)
    return redact(str(value), hidden)


def install(level: str, *, secrets: Iterable[str] = ()) -> None:
    """Send every logger of this process to stdout as JSON, at `level`.

    Removes the handlers that libraries installed, so call it after their imports.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(secrets))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in list(logging.root.manager.loggerDict):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("xformers").setLevel(logging.ERROR)  # it warns at import if torch has no CUDA
    logging.captureWarnings(capture=True)
