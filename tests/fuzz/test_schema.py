import json
from typing import Any

import pytest
from hypothesis import example, given, strategies as st

from retouch.errors import EditError, InvalidRequest, MalformedBody, error_classes
from retouch.schema import EXAMPLE, EditRequest, ErrorBody, error_body
from retouch.web.body import parse_request

pytestmark = pytest.mark.fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MARK = "Qz7echo"  # a text no message of ours holds
MINIMUM = {"image_url": EXAMPLE["image_url"], "prompt": EXAMPLE["prompt"]}
SIDES = {"width": 512, "height": 512}
NAMES = list(EditRequest.model_fields)

NEAR = {
    "image_url": st.sampled_from(
        [
            "http://a.example/",
            "HTTP://ä.example:80/ü",
            "data:,x",
            "data:",
            "http://a b/",
            "ftp://a/",
        ]
    ),
    "prompt": st.text(max_size=20) | st.sampled_from([f"<|{MARK}|>", "p" * 801]),
    "negative_prompt": st.none() | st.text(max_size=20) | st.just(f"<|{MARK}|>"),
    "scheduler": st.sampled_from(["Euler", "UniPC", "euler", MARK]),
    "output_format": st.sampled_from(["png", "jpg", "gif", MARK]),
    "guidance_scale": st.none() | st.floats() | st.integers(-1, 22),
}
NUMBER = st.none() | st.integers(-2, 2100) | st.integers() | st.floats()
BODIES = st.fixed_dictionaries(
    {},
    optional={name: JSON | NEAR.get(name, NUMBER) for name in NAMES},
) | st.dictionaries(st.sampled_from(NAMES) | st.text(), JSON, max_size=6)


def wrong_fields(body: object) -> dict[str, str] | None:
    """The fields that a body is refused for; None where it is taken."""
    try:
        request = parse_request(json.dumps(body).encode())
    except MalformedBody:
        return {"": ""}
    except InvalidRequest as error:
        return dict(error.details["fields"])
    assert isinstance(request, EditRequest)
    return None


@given(JSON | BODIES)
def test_any_json_value_is_a_request_or_is_refused_by_name(body: object) -> None:
    wrong = wrong_fields(body)
    if wrong is None:
        assert isinstance(body, dict)
        assert set(body) <= set(NAMES)
    else:
        assert wrong
        assert not any(MARK in text for text in wrong.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_are_refused(body: bytes) -> None:
    try:
        parse_request(body)
    except (MalformedBody, InvalidRequest) as error:
        assert error.status == 400  # noqa: PT017 - either answer is right, nothing else is


@given(BODIES)
@example({"mask_padding": 5})
@example({"mask_padding": 5, "mask_url": 7})
@example({"mask_padding": 5, "mask_url": "data:,x"})
@example({"mask_padding": 5, "mask_url": "data:,x", "width": 64})
def test_a_field_is_named_if_and_only_if_it_is_wrong_by_itself(body: dict[str, Any]) -> None:
    wrong = wrong_fields(body) or {}
    lone = {"prompt"} - body.keys()
    has_one, has_many = (body.get(name) is not None for name in ("image_url", "image_urls"))
    if has_one is has_many:
        lone.add("image_url")
    for name, value in body.items():
        other = SIDES if name in SIDES and value is not None else {}
        if name == "image_urls" and value is not None:
            other = {"image_url": None}
        if name == "mask_padding" and value is not None:
            other = {"mask_url": "data:,x"}
        if name == "image_url" and value is None:
            continue
        lone |= (wrong_fields({**MINIMUM, **other, name: value}) or {}).keys()
    if body.get("mask_padding") is not None and "mask_padding" not in lone:
        has_none = body.get("mask_url") is None
        has_width = body.get("width") is not None and "width" not in lone
        lone |= {"mask_padding"} if has_none or has_width else set()
    if (body.get("width") is None) != (body.get("height") is None):
        lone.add("height")
    assert set(wrong) == lone


DETAILS = st.dictionaries(st.text(), JSON, max_size=4)


@given(st.sampled_from(error_classes()), st.text(), DETAILS)
def test_any_error_of_the_tree_makes_a_valid_body(
    cls: type[EditError], text: str, details: dict[str, Any]
) -> None:
    error = cls(text, details=details, host=MARK)
    body = error_body(error, request_id="r").model_dump(mode="json")
    ErrorBody.model_validate_json(json.dumps(body))
    assert body["error"]["details"]["code"] == cls.code
    assert MARK not in str(body)
