"""Forms as clients send them, in pieces of any size."""

import gc
import hashlib
from typing import Any

import httpx
import pytest
from support.fakes import PNG, URL

from retouch.errors import BodyTooLarge, EditError, InvalidRequest, MalformedBody, SourceTooLarge
from retouch.schema import EditRequest, Upload
from retouch.web.form import Form, FormParser, parse_edit_form, read_texts

KIND = 'multipart/form-data; boundary="b"'
PROMPT = ("prompt", (None, "make it warmer"))


def encode(*parts: tuple[str, Any]) -> tuple[str, bytes]:
    """Return Content-Type and body as httpx sends them."""
    request = httpx.Request("POST", "http://retouch.example/", files=list(parts))
    return request.headers["content-type"], request.read()


def parse(kind: str, body: bytes, *, piece_bytes: int = 1 << 14, max_bytes: int = 1 << 20) -> Form:
    parser = FormParser(kind, max_file_bytes=max_bytes)
    for at in range(0, len(body), piece_bytes):
        parser.write(body[at : at + piece_bytes])
    form = parser.close()
    parser.release()
    return form


def ask(*parts: tuple[str, Any]) -> EditRequest:
    return parse_edit_form(parse(*encode(*parts)))


def refused(kind: type[EditError], *parts: tuple[str, Any], **options: Any) -> EditError:
    with pytest.raises(kind) as caught:
        parse_edit_form(parse(*encode(*parts), **options))
    return caught.value


def part(head: str, body: str = "x") -> bytes:
    return f"--b\r\n{head}\r\n\r\n{body}\r\n--b--\r\n".encode()


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1 << 14])
def test_a_form_is_the_same_in_pieces_of_any_size(piece_bytes: int) -> None:
    kind, body = encode(("image", PNG), PROMPT)
    form = parse(kind, body, piece_bytes=piece_bytes)
    assert form.texts == [("prompt", "make it warmer")]
    assert form.files == [("image", Upload(PNG, hashlib.sha256(PNG).hexdigest()))]


@pytest.mark.parametrize("junk", [";" * 2000, ';a="' + ";" * 2000, ";a=b" * 500])
def test_a_content_type_that_takes_long_to_parse_is_refused_unread(junk: str) -> None:
    with pytest.raises(MalformedBody, match="boundary"):
        parse(f"multipart/form-data{junk};boundary=b", part("A: b"))


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]"])
@pytest.mark.parametrize(
    "kind", ["image/png", "application/octet-stream", "text/plain", "application/json"]
)
def test_a_file_is_the_source_whatever_type_it_is_declared_as(name: str, kind: str) -> None:
    request = ask((name, ("upload", PNG, kind)), PROMPT)
    assert request.sources == {"image_url": Upload.of(PNG)}


def test_a_name_in_the_extended_notation_marks_a_file() -> None:
    head = "Content-Disposition: form-data; name=\"image\"; filename*=utf-8''%C3%A9.png"
    assert parse(KIND, part(head)).files == [("image", Upload.of(b"x"))]


@pytest.mark.parametrize("name", ["", '; filename="blob"'])
@pytest.mark.parametrize(
    ("sent", "text"),
    [("[]", "[]"), ('"64x64"', "64x64"), ('"\\u00e9"', "é"), ("7", "7"), ("x", "x")],
)
def test_a_part_of_json_is_a_text_also_as_browsers_name_it(name: str, sent: str, text: str) -> None:
    head = f'Content-Disposition: form-data; name="a"{name}\r\nContent-Type: application/json'
    assert parse(KIND, part(head, sent)).texts == [("a", text)]


def test_several_files_are_the_sources_in_their_order() -> None:
    request = ask(("image", PNG), ("image[]", PNG + b"2"), PROMPT)
    files = {"image_urls[0]": Upload.of(PNG), "image_urls[1]": Upload.of(PNG + b"2")}
    assert request.sources == files
    assert request.without_sources().sources == {"image_url": ""}


def test_a_file_may_be_the_mask() -> None:
    request = ask(("image", PNG), ("mask", PNG + b"2"), PROMPT)
    assert request.mask == {"mask_url": Upload.of(PNG + b"2")}
    assert request.sources_bytes == 2 * len(PNG) + 1


def test_texts_become_the_types_of_their_fields() -> None:
    texts = {"seed": "49.0", "guidance_scale": "2", "width": "", "height": " ", "prompt": "7"}
    fields = {name: (None, text) for name, text in texts.items()}
    request = ask(*fields.items(), ("image_url", (None, URL)))
    assert request.model_dump(exclude_unset=True) == {
        "seed": 49,
        "guidance_scale": 2.0,
        "prompt": "7",
        "image_url": URL,
    }


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("strength", ".5", 0.5),
        ("guidance_scale", "3.", 3.0),
        ("seed", "+5", 5),
        ("seed", " 007 ", 7),
        ("webhook_progress", "True", True),
        ("webhook_progress", "off", False),
        ("webhook_progress", "1", True),
        ("webhook_progress", "0", False),
    ],
)
def test_numbers_and_truth_values_may_be_spelled_as_elsewhere(
    field: str, text: str, value: object
) -> None:
    webhook = ("webhook", (None, "https://example.com/"))
    request = ask(PROMPT, ("image", PNG), webhook, (field, (None, text)))
    assert getattr(request, field) == value


def test_every_other_field_may_be_left_blank() -> None:
    names = EditRequest.model_fields.keys() - {"prompt"}
    request = ask(PROMPT, ("image", PNG), *((name, (None, " ")) for name in sorted(names)))
    assert request == ask(PROMPT, ("image", PNG))


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        ([PROMPT], {"image_url": "Field required, unless image_urls is given"}),
        ([PROMPT, ("image", b"")], {"image": "the file is empty"}),
        (
            [PROMPT, *[("image", PNG)] * 4],
            {"image_urls": "List should have at most 3 items after validation, not 4"},
        ),
        ([PROMPT, ("image", PNG), ("mask", PNG), ("mask", PNG)], {"mask": "must be one file"}),
        (
            [PROMPT, ("image", PNG), ("mask", PNG), ("mask_url", (None, URL))],
            {"mask_url": "leave it out beside a file"},
        ),
        ([PROMPT, ("photo", PNG)], {"photo": "takes no file: send it as image"}),
        (
            [PROMPT, ("image", (None, "photo.jpg")), ("mask", (None, URL))],
            dict.fromkeys(
                ("image", "mask"),
                "must be a file, as in -F image=@photo.jpg; for a URL there are image_url and mask_url",
            ),
        ),
        (
            [PROMPT, ("image", PNG), ("image_url", (None, URL))],
            {"image_url": "leave it out beside a file"},
        ),
        ([PROMPT, PROMPT, ("image", PNG)], {"prompt": "is given twice"}),
        (
            [PROMPT, ("image", PNG), ("seed", (None, "9" * 9000))],
            {"seed": "Input should be a valid integer"},
        ),
        (
            [PROMPT, ("image", PNG), ("seed", (None, "[" * 9000))],
            {"seed": "Input should be a valid integer"},
        ),
        (
            [PROMPT, ("image", PNG), ("guidance_scale", (None, "NaN"))],
            {"guidance_scale": "Input should be a valid number"},
        ),
    ],
)
def test_wrong_fields_of_a_form_are_named(
    parts: list[tuple[str, Any]], fields: dict[str, str]
) -> None:
    assert refused(InvalidRequest, *parts).details["fields"] == fields


def test_a_caller_cannot_name_an_upload_that_it_did_not_send() -> None:
    reference = Upload.of(b"another caller's").reference
    error = refused(InvalidRequest, PROMPT, ("image_url", (None, reference)))
    assert "must be an http" in error.details["fields"]["image_url"]


def test_a_file_that_nobody_chose_counts_as_absent() -> None:
    body = part('Content-Disposition: form-data; name="image"; filename=""', "")
    assert parse(KIND, body) == Form()


def test_a_file_over_the_limit_ends_the_parsing() -> None:
    parser = FormParser(KIND, max_file_bytes=10)
    parser.write(b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n')
    parser.write(b"0123456789")
    with pytest.raises(SourceTooLarge):
        parser.write(b"0")


@pytest.mark.parametrize(
    "parts",
    [
        [("prompt", (None, "x" * 70_000))],
        [(f"n{n}", (None, "")) for n in range(65)],
        [("image", ("x" * 999, PNG))] * 65,
    ],
)
def test_nothing_but_a_file_may_be_large_in_a_form(parts: list[tuple[str, Any]]) -> None:
    refused(BodyTooLarge, *parts)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b""),
        (f"multipart/form-data; boundary={'b' * 300}", b""),
        (KIND, b""),
        (KIND, b"{}"),
        (KIND, part('Content-Disposition: form-data; name="prompt"')[:-6]),
        (KIND, part("Content-Disposition: form-data; name=prompt", "?").replace(b"?", b"\xff")),
        (KIND, part("\r\n".join(f"X-{n}: 1" for n in range(20)))),
        (KIND, part(f"X: {'1' * 5000}")),
    ],
)
def test_what_is_no_whole_form_is_malformed(kind: str, body: bytes) -> None:
    with pytest.raises(MalformedBody, match=r"multipart/form-data|prompt must be UTF-8, or have a"):
        parse(kind, body)


def test_a_form_is_let_go_of_without_waiting_for_the_garbage_collector() -> None:
    kind, body = encode(("image", b"only here"), PROMPT)
    gc.disable()
    try:
        parse(kind, body)
        uploads = [one for one in gc.get_objects() if isinstance(one, Upload)]
        found = [one for one in uploads if one.body == b"only here"]
    finally:
        gc.enable()
    assert found == []


def test_read_texts_keeps_what_it_does_not_know() -> None:
    assert read_texts([("colour", "1")]) == {"colour": "1"}


@pytest.mark.parametrize(
    "texts",
    [
        ['["https://a.example/1", "https://a.example/2"]'],
        ["https://a.example/1", "https://a.example/2"],
    ],
)
def test_a_list_is_one_json_text_or_a_text_for_each_item(texts: list[str]) -> None:
    expected = {"image_urls": ["https://a.example/1", "https://a.example/2"]}
    for index in ("", "[]", "[0]"):
        assert read_texts([(f"image_urls{index}", text) for text in texts]) == expected
