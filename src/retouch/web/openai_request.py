"""OpenAI's request for an image edit, as JSON or as a form, and the edit it asks for."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from pydantic_core import from_json

from retouch.editing.ports import ProfileInfo
from retouch.errors import InvalidRequest, MalformedBody
from retouch.schema import EditRequest, ImageOptions, Quality, Upload, invalid_request
from retouch.web.body import Body, require_small_frame
from retouch.web.form import FIELDS, INDEX, TAKES_NO_FILE, Form, read_texts

_IMAGES = ("image", "images", "image_url", "image_urls", "url", "mask", "mask_url", "markup")
_FILE_FIELD = re.compile(rf"({'|'.join(_IMAGES)})(?:\[\d*\])?(?:\[image_url\])?")
_FIELDS = {**FIELDS, **ImageOptions.model_json_schema()["properties"], "n": {"type": "integer"}}
_MEDIUM_STEPS = 8
_NESTED = re.compile(r"(\w+)\[\d*\]\[(\w+)\]")
_REFUSED = {
    "markup": "is not taken: say in the prompt what to do",
    "webhook": "is not taken: begin a job by POST /edit",
}
_THEIR_NAMES = {
    **dict.fromkeys(("images", "image_url", "image_urls", "url"), "image"),
    "mask_url": "mask",
    "num_images": "n",
    "output_quality": "output_compression",
    **dict.fromkeys(("width", "height"), "size"),
}


_OF_IMAGES = re.compile(r'(?<!")\b(image_urls?|mask_url)\b')


@dataclass(slots=True)
class _Given:
    """A request as it came: images by URL or upload, and all other fields."""

    urls: dict[str, list[str]] = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    fields: dict[str, object] = field(default_factory=dict)

    def add_image(self, name: str, url: str) -> None:
        """Add an image under `image`, `mask` or `markup`; vLLM-Omni and SGLang call it `url` too."""
        self.urls.setdefault(_THEIR_NAMES.get(name, name), []).append(url)


def parse_images_edit(
    body: Body, profiles: Sequence[ProfileInfo] = ()
) -> tuple[EditRequest, ImageOptions]:
    """Return the edit and the options that a body asks for. Unknown texts and `model` are ignored.

    `profiles` are those loaded, among which `quality` chooses.

    Raises:
        BodyTooLarge: the body is over 64 KiB beside its images.
        MalformedBody: it is not one JSON object.
        InvalidRequest: fields are wrong; each is named as OpenAI names it.
    """
    given = _read_form(body) if isinstance(body, Form) else _read_json(body)
    try:
        options = ImageOptions.model_validate(given.fields)
        fields = {"profile": choose_profile(options.quality, profiles), **_to_edit(given, options)}
        return EditRequest.with_uploads(fields, given.uploads), options
    except ValidationError as error:
        raise _rename(invalid_request(error)) from None


def name_as_theirs(text: str) -> str:
    """Return a text of ours about images with the names of OpenAI's fields.

    >>> name_as_theirs("image_urls[1]: the image is over 9 bytes")
    'image[1]: the image is over 9 bytes'
    """
    return _OF_IMAGES.sub(lambda found: _THEIR_NAMES[found[0]], text)


def choose_profile(quality: Quality, profiles: Sequence[ProfileInfo]) -> str | None:
    """Return the name of the profile for a quality, or None for the default.

    >>> loaded = [ProfileInfo(str(steps), steps, 1.0) for steps in (40, 4, 8)]
    >>> [choose_profile(quality, loaded) for quality in ("low", "medium", "high", "auto")]
    ['4', '8', '40', None]
    """
    if quality in {"auto", "standard"} or not profiles:
        return None
    by_steps = sorted(profiles, key=lambda profile: profile.steps)
    if quality == "low":
        return by_steps[0].name
    if quality == "medium":
        enough = [profile for profile in by_steps if profile.steps >= _MEDIUM_STEPS]
        return (enough or by_steps[-1:])[0].name
    return by_steps[-1].name


def _to_edit(given: _Given, options: ImageOptions) -> dict[str, object]:
    if refused := _REFUSED.keys() & {*given.urls, *given.fields}:
        raise InvalidRequest.for_fields({name: _REFUSED[name] for name in refused})
    fields = {name: value for name, value in given.fields.items() if name in FIELDS}
    fields["response_format"] = options.response_format
    if images := given.urls.get("image"):
        fields |= {"image_urls": images} if len(images) > 1 else {"image_url": images[0]}
    if mask := given.urls.get("mask"):
        if len(mask) > 1:
            raise InvalidRequest.for_fields({"mask": "must be one image"})
        fields["mask_url"] = mask[0]
    if given.fields.get("n") not in (None, 1, "1"):
        fields["num_images"] = _read_number(given.fields["n"])
    if options.size != "auto":
        fields["width"], fields["height"] = map(int, options.size.split("x"))
    if options.output_compression is not None:
        fields["output_quality"] = max(options.output_compression, 1)
    return fields


def _read_form(form: Form) -> _Given:
    given = _Given()
    for name, upload in form.files:
        if not (found := _FILE_FIELD.fullmatch(name)):
            raise InvalidRequest.for_fields({name[:64]: TAKES_NO_FILE})
        if not upload.body:
            raise InvalidRequest.for_fields({found[1]: "the file is empty"})
        given.add_image(found[1], upload.reference)
        given.uploads.append(upload)
    rest = []
    for name, text in form.texts:
        if (found := _FILE_FIELD.fullmatch(name)) and text.strip():
            given.add_image(found[1], text)
        elif found := _NESTED.fullmatch(name):
            _add_nested(given.fields, found[1], found[2], text)
        elif INDEX.sub("", name) in _FIELDS and text.strip():
            rest.append((name, text))
    given.fields |= read_texts(rest, _FIELDS)
    return given


def _add_nested(fields: dict[str, object], name: str, key: str, text: str) -> None:
    """Add `name[][key]`, as openai-python sends a list of objects, or axios' `name[0][key]`.

    A key seen before begins the next object.
    """
    objects = fields.setdefault(name, [])
    assert isinstance(objects, list)  # noqa: S101 - only nested texts are in `fields` yet
    if not objects or key in objects[-1]:
        objects.append({})
    objects[-1][key] = _read_number(text)


def _read_number(value: object) -> object:
    try:
        number = from_json(value, allow_inf_nan=False) if isinstance(value, str) else value
    except ValueError:
        return value
    return number if isinstance(number, int | float) else value


def _read_json(body: bytes | bytearray) -> _Given:
    require_small_frame(body)
    try:
        fields = {} | from_json(body, allow_inf_nan=False)
    except (TypeError, ValueError) as error:  # TypeError: the body is JSON, but not an object
        raise MalformedBody("the body must be one JSON object in UTF-8") from error
    given = _Given()
    for name in _IMAGES:
        for one in _as_list(fields.pop(name, None)):
            url = one.get("image_url", one.get("url")) if isinstance(one, dict) else one
            if not isinstance(url, str):
                raise InvalidRequest.for_fields({name: 'send {"image_url": "https://… or data:…"}'})
            given.add_image(name, url)
    given.fields = {name: value for name, value in fields.items() if value is not None}
    return given


def _as_list(value: object) -> Iterable[object]:
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def _rename(error: InvalidRequest) -> InvalidRequest:
    """Return the error with the fields as OpenAI names them."""
    named: dict[str, str] = {}
    for name, fault in error.details["fields"].items():
        ours, bracket, rest = name.partition("[")
        text = fault.removesuffix(", unless image_urls is given")
        named.setdefault(_THEIR_NAMES.get(ours, ours) + bracket + rest, text)
    return InvalidRequest.for_fields(named)
