"""Decode data: URLs."""

import base64
import urllib.parse

from retouch.errors import InvalidRequest, SourceTooLarge

NOT_A_DATA_URL = "must be data:[<type>][;base64],<data>"


def is_data_url(text: str) -> bool:
    """Whether `text` is a data: URL."""
    return text[:5].lower() == "data:"


def decode_data_url(text: str, *, max_bytes: int) -> bytes:
    """Return the bytes of a data: URL (RFC 2397).

    Raises:
        InvalidRequest: it is malformed.
        SourceTooLarge: the bytes are more than `max_bytes`.
    """
    head, comma, data = text.partition(",")
    if not comma:
        raise InvalidRequest.for_fields({"image_url": NOT_A_DATA_URL})
    is_base64 = head.lower().endswith(";base64")
    try:
        if is_base64:
            lines = urllib.parse.unquote(data).split()  # some encoders insert line breaks
            body = base64.b64decode("".join(lines), validate=True)
        else:
            body = urllib.parse.unquote_to_bytes(data)
    except ValueError:
        fault = "holds no valid base64 after its comma" if is_base64 else NOT_A_DATA_URL
        raise InvalidRequest.for_fields({"image_url": fault}) from None
    if len(body) > max_bytes:
        raise SourceTooLarge(f"the image is over {max_bytes} bytes (MAX_IMAGE_BYTES)")
    return body
