"""multipart/form-data, parsed while it arrives: files stay in memory, never on a disk.

Starlette's parser writes a file over 1 MiB to the temporary directory.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from retouch.errors import BodyTooLarge, InvalidRequest, MalformedBody, SourceTooLarge
from retouch.schema import EditRequest, Upload, invalid_request

MAX_FRAME_BYTES = 65536
"""What a body may hold beside its images."""
_MAX_PARTS = 64
_MAX_TYPE_CHARACTERS = 1024
_NO_FORM = "the body must be one multipart/form-data form"
_NO_FILE = "must be a file, as in -F image=@photo.jpg; for a URL there are image_url and mask_url"
TAKES_NO_FILE = "takes no file: send it as image"
FIELDS: Mapping[str, Any] = EditRequest.model_json_schema()["properties"]
"""The schemas of the fields of a request."""
_NUMBER = re.compile(r"[+-]?(\d{1,15}\.?\d{0,15}|\.\d{1,15})")
_TRUTHS = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
INDEX = re.compile(r"\[\d*\]$")
"""What JavaScript and PHP add to the name of a list: image[], image[0]."""


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form in order: text fields, and files with the name of their field."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, Upload]] = field(default_factory=list)


class FormParser:
    """Parses a form of files up to `max_file_bytes`, which are hashed on the way.

    Raises:
        MalformedBody: `content_type` names no boundary.
    """

    def __init__(self, content_type: str, *, max_file_bytes: int) -> None:
        self._max_file_bytes = max_file_bytes
        self._form, self._part = Form(), BytesIO()
        self._frame_bytes = self._parts = 0
        self._is_whole = False
        callbacks: dict[str, Any] = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(
                # Of 60,000 characters the header takes it half a second.
                parse_options_header(content_type[:_MAX_TYPE_CHARACTERS])[1][b"boundary"],
                callbacks,  # type: ignore[arg-type] # a TypedDict of the same
            )
        except (KeyError, FormParserError) as error:
            raise MalformedBody(f"{_NO_FORM}, its boundary in Content-Type") from error

    def write(self, piece: bytes) -> None:
        """Parse the next piece of the body.

        Raises:
            SourceTooLarge: a file is over the limit.
            BodyTooLarge: the body holds too much beside its files.
            MalformedBody: it is not a form.
        """
        self._frame_bytes += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise MalformedBody(_NO_FORM) from error
        if self._frame_bytes > MAX_FRAME_BYTES:
            raise BodyTooLarge(
                f"parts without a filename are over {MAX_FRAME_BYTES} bytes together"
            )

    def close(self) -> Form:
        """Return the form.

        Raises:
            MalformedBody: it has no end.
        """
        if not self._is_whole:
            raise MalformedBody(f"{_NO_FORM}, with its last boundary")
        return self._form

    def release(self) -> None:
        """Release the files: parser and callbacks refer to each other, which would keep them in memory."""
        self._parser.callbacks = {}
        self._form, self._part = Form(), BytesIO()

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise BodyTooLarge(f"the form has over {_MAX_PARTS} parts")
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""
        self._part = BytesIO()  # `getvalue` hands its buffer over without a copy
        self._hash = hashlib.sha256()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _end_headers(self) -> None:
        header = self._headers.get(b"content-disposition", b"")
        disposition = parse_options_header(header)[1]
        self._field = disposition.get(b"name", b"").decode("utf-8", "replace")
        kind = self._headers.get(b"content-type", b"text/plain").lower()
        # RFC 7578 forbids filename*, which older clients send where the name is not ASCII.
        name = disposition.get(b"filename", b"*" if b"filename*=" in header else None)
        # OpenAPI 3 sends every value but plain text as JSON, and browsers name such a part "blob".
        self._is_json = name in {None, b"blob"} and kind.startswith(b"application/json")
        self._is_file = not self._is_json and (name is not None or not kind.startswith(b"text/"))
        self._is_absent = name == b""  # so a browser sends a file that nobody chose

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._part.write(memoryview(data)[start:end])
        if not self._is_file:
            return
        self._hash.update(memoryview(data)[start:end])
        self._frame_bytes -= end - start
        if self._part.tell() > self._max_file_bytes:
            raise SourceTooLarge(
                f"the image is over {self._max_file_bytes} bytes (MAX_IMAGE_BYTES)"
            )

    def _end_part(self) -> None:
        body = self._part.getvalue()
        self._part = BytesIO()
        if self._is_file:
            if body or not self._is_absent:
                self._form.files.append((self._field, Upload(body, self._hash.hexdigest())))
            return
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise MalformedBody(f"{self._field[:64]} must be UTF-8, or have a filename") from error
        value = _parse(text) if self._is_json else text
        self._form.texts.append((self._field, value if isinstance(value, str) else text))

    def _end(self) -> None:
        self._is_whole = True


def parse_edit_form(form: Form) -> EditRequest:
    """Return the edit that a form asks for: `image` is a file or several, `mask` one, every other field its text.

    Raises:
        InvalidRequest: fields are wrong; each is named.
    """
    fields = read_texts(form.texts)
    sent: dict[str, list[Upload]] = {"image": [], "mask": []}
    faults = dict.fromkeys(sorted(sent.keys() & fields.keys()), _NO_FILE)
    for full_name, upload in form.files:
        name = INDEX.sub("", full_name)
        if name not in sent:
            faults[name[:64]] = TAKES_NO_FILE
        elif not upload.body:
            faults[name] = "the file is empty"
        else:
            sent[name].append(upload)
    replaced = sorted(name for name in fields if sent.get(name.partition("_url")[0]))
    faults |= dict.fromkeys(replaced, "leave it out beside a file")
    if len(sent["mask"]) > 1:
        faults["mask"] = "must be one file"
    if faults:
        raise InvalidRequest.for_fields(faults)
    references = [upload.reference for upload in sent["image"]]
    if len(references) == 1:
        fields["image_url"] = references[0]
    elif references:
        fields["image_urls"] = references
    if sent["mask"]:
        fields["mask_url"] = sent["mask"][0].reference
    try:
        return EditRequest.with_uploads(fields, [*sent["image"], *sent["mask"]])
    except ValidationError as error:
        raise invalid_request(error) from None


def read_texts(
    texts: Iterable[tuple[str, str]], known: Mapping[str, Any] = FIELDS
) -> dict[str, object]:
    """Return the texts of a form as the types of the `known` fields; wrong ones stay texts.

    A blank text is as none, except for the prompt. Numbers and truth values may be spelled as in shells,
    Python, PHP and HTML. A list is one JSON text, or a text for each item, as OpenAPI 3.1 encodes it.

    Raises:
        InvalidRequest: a field is given twice.

    >>> read_texts([("prompt", "4"), ("seed", "4"), ("width", ""), ("height", "x"), ("strength", ".5")])
    {'prompt': '4', 'seed': 4, 'height': 'x', 'strength': 0.5}
    """
    fields: dict[str, object] = {}
    lists: dict[str, list[object]] = {}
    for full_name, text in texts:
        name = INDEX.sub("", full_name)
        schema = known.get(name, {"type": "string"})
        kinds = {one.get("type", "") for one in [schema, *schema.get("anyOf", ())]}
        if name in fields:
            raise InvalidRequest.for_fields({name[:64]: "is given twice"})
        if name in known and name != "prompt" and not text.strip():
            continue
        if "boolean" in kinds:
            value: object = _TRUTHS.get(text.strip().lower(), text)
        else:
            value = text if "string" in kinds else _parse(text)
        if "array" in kinds:
            lists.setdefault(name, []).extend(value if isinstance(value, list) else [value])
        else:
            fields[name] = value
    return fields | lists


def _parse(text: str) -> object:
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        plain = text.strip().lower()
        return float(plain) if _NUMBER.fullmatch(plain) else text
