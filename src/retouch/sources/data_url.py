"""Decode data: URLs in native code and in slices, so that no spelling costs memory or blocks threads."""

import binascii
import io
import re
from collections.abc import Iterable, Iterator

from retouch.errors import InvalidRequest, SourceTooLarge

NOT_A_DATA_URL = "must be data:[<type>][;base64],<data>"
_SLICE = 1 << 20
_WHITESPACE = b" \t\n\f\r"
_BASE64 = re.compile(r"; *base64 *", re.IGNORECASE)


def is_data_url(text: str) -> bool:
    """Whether `text` is a data: URL."""
    return text[:5].lower() == "data:"


def decode_data_url(text: str, *, max_bytes: int) -> bytes:
    """Return the bytes of a data: URL (RFC 2397), holding one copy of them and a slice of the text.

    As browsers do, it takes base64 without padding and with white space or percent-encoding in it
    (infra.spec.whatwg.org, "forgiving-base64 decode").

    Raises:
        InvalidRequest: it is malformed.
        SourceTooLarge: the bytes are more than `max_bytes`.
    """
    start = text.find(",") + 1
    if not start:
        raise InvalidRequest.for_fields({"image_url": NOT_A_DATA_URL})
    is_base64 = bool(_BASE64.fullmatch(text, text.rfind(";", 0, start), start - 1))
    pieces = _percent_decode(text, start)
    body = io.BytesIO()  # `getvalue` hands its buffer over without a copy
    try:
        for piece in _base64_decode(pieces) if is_base64 else pieces:
            body.write(piece)
            if body.tell() > max_bytes:
                raise SourceTooLarge(f"the image is over {max_bytes} bytes (MAX_IMAGE_BYTES)")
    except ValueError:
        fault = "holds no valid base64 after its comma" if is_base64 else NOT_A_DATA_URL
        raise InvalidRequest.for_fields({"image_url": fault}) from None
    return body.getvalue()


def _percent_decode(text: str, start: int) -> Iterator[bytes]:
    r"""Yield the bytes from `start` on in slices. Raises ValueError for a % without two digits.

    `urllib.parse.unquote_to_bytes` makes an object of each escape: 80 times the memory. Written as
    \x escapes, a codec in C decodes them all at once.
    """
    rest = b""
    for at in range(start, len(text), _SLICE):
        piece = rest + text[at : at + _SLICE].encode()
        cut = piece.find(b"%", -2)  # an escape that the end of the slice cuts
        is_cut = cut >= 0 and at + _SLICE < len(text)
        piece, rest = (piece[:cut], piece[cut:]) if is_cut else (piece, b"")
        if b"%" in piece:
            escaped = piece.replace(b"\\", b"\\\\").replace(b"%", b"\\x")
            piece = escaped.decode("unicode_escape").encode("latin-1")
        yield piece


def _base64_decode(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Decode base64 that is cut anywhere. Raises ValueError for anything else."""
    rest = b""
    for piece in pieces:
        data = rest + piece.translate(None, _WHITESPACE)
        cut = max(len(data) - 1, 0) // 4 * 4  # the last characters may be padded
        if data.find(b"=", 0, cut) >= 0:
            raise ValueError("characters after the padding")
        yield binascii.a2b_base64(data[:cut], strict_mode=True)
        rest = data[cut:]
    if len(rest) == 4:  # noqa: PLR2004 - base64 has four characters for three bytes
        rest = rest.removesuffix(b"=").removesuffix(b"=")
    if b"=" in rest:
        raise ValueError("too much or too little padding")
    yield binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True)
