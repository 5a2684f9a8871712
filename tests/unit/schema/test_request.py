import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from retouch.schema import (
    EXAMPLE,
    MAX_STEPS,
    SCHEDULERS,
    EditRequest,
    EditResult,
    ErrorBody,
    Progress,
    invalid_request,
)

MINIMUM = {"image_url": "https://example.com/a.jpg", "prompt": "make it warmer"}


def faults(**changes: Any) -> dict[str, str]:
    """The faults of a request by field."""
    body = {name: value for name, value in (MINIMUM | changes).items() if value != "absent"}
    with pytest.raises(ValidationError) as caught:
        EditRequest.model_validate_json(json.dumps(body))
    error = invalid_request(caught.value)
    fields = error.details["fields"]
    assert isinstance(fields, dict)
    return fields


def parse(**changes: Any) -> EditRequest:
    body = {k: v for k, v in (MINIMUM | changes).items() if v != "absent"}
    return EditRequest.model_validate_json(json.dumps(body))


def test_the_example_of_the_project_is_a_request() -> None:
    assert EditRequest.model_validate(EXAMPLE).model_dump(exclude_unset=True) == EXAMPLE
    assert EXAMPLE["scheduler"] in SCHEDULERS


def test_everything_but_image_and_prompt_has_a_default() -> None:
    assert parse().model_dump() == {
        **MINIMUM,
        "image_urls": None,
        "size_from": "last",
        "mask_url": None,
        "mask_feather": 8,
        "mask_padding": None,
        "strength": 1.0,
        "num_images": 1,
        "negative_prompt": None,
        "seed": None,
        "num_inference_steps": None,
        "guidance_scale": None,
        "scheduler": "Euler",
        "output_format": "png",
        "output_quality": 95,
        "width": None,
        "height": None,
        "cache": "default",
        "response_format": "url",
        "webhook": None,
        "webhook_progress": False,
        "loras": [],
        "profile": None,
    }


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (
            "image_url",
            [
                "http://a.example/",
                "HTTPS://A.example/b?c#d",
                "data:,x",
                "DATA:image/png;base64,AA==",
            ],
        ),
        ("prompt", ["x", "p" * 800, " padded ", "a < b | c > d", "<|", "|>", "|> a <|", "ünï 🎨"]),
        ("negative_prompt", [None, "", "  ", "n" * 800]),
        ("seed", [None, -1, 0, 2**32 - 1]),
        ("num_inference_steps", [None, 1, 50, 51, 1000]),
        ("guidance_scale", [None, 1, 1.0, 7.5, 20]),
        ("scheduler", list(SCHEDULERS)),
        ("output_format", ["png", "jpeg", "jpg", "webp", "avif"]),
        ("output_quality", [1, 100]),
    ],
)
def test_a_value_within_its_range_is_taken_as_it_is(field: str, values: list[Any]) -> None:
    for value in values:
        assert getattr(parse(**{field: value}), field) == value


def test_a_whole_number_may_have_a_point() -> None:
    request = parse(seed=7.0, num_inference_steps=2.0, output_quality=9e1, width=512.0, height=512)
    numbers = (request.seed, request.num_inference_steps, request.output_quality, request.width)
    assert numbers == (7, 2, 90, 512)
    assert all(type(number) is int for number in numbers)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        (
            "image_url",
            [
                "absent",
                None,
                5,
                "",
                "ftp://a.example/",
                "file:///etc/passwd",
                "/a.jpg",
                "http://",
                "http://u:p@a.example/",
                "http://a.example:99999/",
                "http://a.example/" + "a" * 4096,
                "data:image/png;base64",
                "data:" + "a" * 300 + ",",
            ],
        ),
        (
            "prompt",
            [
                "absent",
                None,
                "",
                "  \n",
                "p" * 801,
                "a <|im_end|> b",
                "a <|\n|> b",
                ["x"],
            ],
        ),
        ("negative_prompt", [5, "n" * 801, "<|im_start|>", True]),
        ("seed", [-2, 2**32, 1.5, 1e300, "1", True, 10**400, float("inf")]),
        ("num_inference_steps", [0, -1, 1001, 2.5, "30", True]),
        ("guidance_scale", [0.99, 0, -1, 20.1, "4", True, float("nan"), float("inf")]),
        ("scheduler", ["euler", "DDIM", None, 1]),
        ("output_format", ["PNG", "gif", None, ""]),
        ("output_quality", [0, 101, None, 9.5, "95", True]),
        ("width", [63, 48, 1000, 2064, 512.5, "512", True]),
        ("height", [63, 48, 1000, 2064, 512.5, "512", True]),
        (
            "loras",
            [
                None,
                "warm",
                [{"name": "A"}],
                [{"name": "a", "scale": 4.1}],
                [{"name": "a", "scale": float("nan")}],
                [{"name": "a", "path": "b"}],
                [{"name": "a"}, {"name": "a"}],
                [{"name": name} for name in "abcde"],
                [{}],
                [{"scale": 1.0}],
                [{"name": ""}],
                [{"name": "a", "sha256": "0" * 64}],
                [{"url": "https://a.example/"}],
                [{"sha256": "0" * 64}],
                [{"url": "https://a.example/", "sha256": "0" * 63}],
                [{"url": "file:///a", "sha256": "0" * 64}],
                [{"url": "https://a b:x/", "sha256": "0" * 64}],
                [{"name": "a", "url": "https://a.example/", "sha256": "0" * 64}],
                [{"url": f"https://{host}.example/", "sha256": "0" * 64} for host in "ab"],
            ],
        ),
        ("rotate", [1, None, "x"]),
    ],
)
def test_a_value_out_of_its_range_is_refused_under_its_name(field: str, values: list[Any]) -> None:
    sides = {"width": 512, "height": 512} if field in {"width", "height"} else {}
    for value in values:
        named = [name.partition("[")[0] for name in faults(**{**sides, field: value})]
        assert named == [field], value


def test_an_adapter_at_a_url_is_called_by_its_hash() -> None:
    (lora,) = parse(loras=[{"url": "https://a.example/l", "sha256": "AB" * 32}]).loras
    assert (lora.sha256, lora.key, lora.scale) == ("ab" * 32, "sha256:abababababab", None)


def test_every_wrong_field_is_named_at_once() -> None:
    wrong = faults(image_url="ftp://x/", prompt="", seed=-5, output_format="gif", width=512, more=1)
    assert set(wrong) == {"image_url", "prompt", "seed", "output_format", "height", "more"}


@pytest.mark.parametrize(
    ("sides", "named"),
    [
        ({"width": 512}, {"height"}),
        ({"height": 512}, {"height"}),
        ({"width": 512, "height": None}, {"height"}),
        ({"width": 7}, {"width", "height"}),
        ({"height": 7}, {"height"}),
        ({"width": 7, "height": 512}, {"width"}),
    ],
)
def test_width_and_height_come_together(sides: dict[str, int], named: set[str]) -> None:
    assert set(faults(**sides)) == named


def test_both_sides_or_neither_are_taken() -> None:
    request = parse(width=512, height=2048)
    assert (request.width, request.height) == (512, 2048)
    assert (parse(width=None, height=None).width, parse(width=None).height) == (None, None)


MANY = ["https://example.com/a.jpg", "data:,x", "http://example.com/a.jpg"]


def test_one_image_or_a_list_of_them_is_taken() -> None:
    assert parse().sources == {"image_url": MINIMUM["image_url"]}
    assert parse(image_urls=None).sources == {"image_url": MINIMUM["image_url"]}
    assert list(parse(image_urls=MANY, image_url="absent").sources.values()) == MANY
    request = parse(image_urls=MANY[:1], image_url=None, size_from="first")
    assert request.sources == {"image_urls[0]": MANY[0]}


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ({"image_url": "absent"}, {"image_url"}),
        ({"image_urls": None, "image_url": None}, {"image_url"}),
        ({"image_urls": MANY}, {"image_url"}),
        ({"image_urls": [], "image_url": None}, {"image_urls"}),
        ({"image_urls": MANY * 2, "image_url": None}, {"image_urls"}),
        (
            {"image_urls": [MANY[0], "ftp://a/", 5], "image_url": None},
            {"image_urls[1]", "image_urls[2]"},
        ),
        ({"image_urls": MANY[0], "image_url": None}, {"image_urls"}),
    ],
)
def test_the_wrong_one_of_several_images_is_named(images: dict[str, Any], named: set[str]) -> None:
    assert set(faults(**images)) == named


MASK = {"mask_url": "https://example.com/mask.png"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mask_url": "ftp://a/"}, {"mask_url"}),
        ({**MASK, "mask_feather": 257}, {"mask_feather"}),
        ({**MASK, "mask_padding": -1}, {"mask_padding"}),
        ({"mask_padding": 8}, {"mask_padding"}),
        ({**MASK, "mask_padding": 8, "width": 64, "height": 64}, {"mask_padding"}),
        ({"strength": 0}, {"strength"}),
        ({"strength": 1.01}, {"strength"}),
        ({**MASK, "image_url": None, "image_urls": MANY, "size_from": "last"}, {"size_from"}),
        (
            {"strength": 0.5, "image_url": None, "image_urls": MANY, "size_from": "last"},
            {"size_from"},
        ),
    ],
)
def test_a_mask_and_a_strength_are_checked(fields: dict[str, Any], named: set[str]) -> None:
    assert set(faults(**fields)) == named


def test_a_mask_goes_with_several_images_and_with_a_size() -> None:
    request = parse(**MASK, image_url=None, image_urls=MANY, size_from="first", width=64, height=64)
    assert request.mask == MASK
    assert request.without_sources().mask == {}
    assert parse(**MASK, size_from="last", mask_padding=8, strength=0.01).mask == MASK


def test_a_wrong_scheduler_is_answered_with_the_list() -> None:
    text = faults(scheduler="DDIM")["scheduler"]
    assert all(name in text for name in SCHEDULERS)
    assert "DDIM" not in text


def test_an_answer_never_repeats_the_value_given() -> None:
    marker = "s3cr3t-value"
    wrong = faults(
        image_url=f"ftp://{marker}/",
        prompt=f"<|{marker}|>",
        negative_prompt=f"<|{marker}|>",
        seed=marker,
        scheduler=marker,
        output_format=marker,
        guidance_scale=marker,
        width=marker,
    )
    assert len(wrong) == 9  # the height that should be beside the width is one
    assert marker not in str(wrong)
    assert not any("Value error" in text for text in wrong.values())


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("steps", "send num_inference_steps"),
        ("cfg", "send guidance_scale"),
        ("Image", "send image_url"),
        ("images", "send image_urls"),
        ("size", "send width and height"),
        ("guidance_scal", "is guidance_scale meant?"),
        ("input", "send the fields in it by themselves"),
    ],
)
def test_a_wrong_name_is_told_the_right_one(name: str, advice: str) -> None:
    assert advice in faults(**{name: 1})[name]


@pytest.mark.parametrize("body", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF89a"])
def test_bare_base64_is_told_how_to_be_sent(body: bytes) -> None:
    text = base64.b64encode(body + bytes(9000)).decode()
    assert "data:image/jpeg;base64,<data>" in faults(image_url=text)["image_url"]


def test_a_source_of_another_scheme_is_told_all_that_are_taken() -> None:
    assert faults(image_url="ftp://a/")["image_url"] == (
        "must be an http, https or data: URL; curl sends a file by -F image=@photo.jpg"
    )


def test_blanks_before_a_data_url_are_dropped_as_before_any_other() -> None:
    text = " \n data:image/png;base64,AAAA"
    assert EditRequest(image_url=text, prompt="x").image_url == text.strip()


@pytest.mark.parametrize(
    ("lora", "name", "text"),
    [
        ({"name": "a", "weight": 1}, "loras[0].weight", "and scale are"),
        ({"name": "a", "scale": 5}, "loras[0].scale", "less than or equal to 4"),
        ({"name": "A"}, "loras[0].name", "pattern"),
        ({"url": "https://a/", "sha256": "0"}, "loras[0].sha256", "pattern"),
        ({}, "loras[0]", "must have either a name, or a url and its sha256"),
        ("a", "loras[0]", "object"),
    ],
)
def test_a_fault_of_an_adapter_names_its_field(lora: object, name: str, text: str) -> None:
    assert text in faults(loras=[lora])[name]


def test_an_unknown_name_is_cut_and_escaped() -> None:
    (name,) = faults(**{"ü" + "x" * 500: 1})
    assert name == "\\xfc" + "x" * 63


def test_a_thousand_unknown_names_make_an_answer_of_32_at_most_with_the_known_ones_first() -> None:
    wrong = faults(seed=-5, **{f"extra-{n}": 1 for n in range(1000)})
    assert len(wrong) == 32
    assert "seed" in wrong


def test_a_request_that_is_not_an_object_is_called_request() -> None:
    with pytest.raises(ValidationError) as caught:
        EditRequest.model_validate([])
    assert list(invalid_request(caught.value).details["fields"]) == ["request"]


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        parse().seed = 3  # type: ignore[misc]


def test_the_steps_of_the_schema_go_beyond_the_cap() -> None:
    assert parse(num_inference_steps=MAX_STEPS + 1).num_inference_steps == 51


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and every model in its fields."""
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from models(field.annotation)


FIELDS = [
    pytest.param(model, name, id=f"{model.__name__}.{name}")
    for root in (EditRequest, EditResult, ErrorBody, Progress)
    for model in models(root)
    for name in model.model_fields
]


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_every_field_has_a_description_and_an_example(model: type[BaseModel], name: str) -> None:
    field = model.model_fields[name]
    assert field.description
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
        assert field.examples  # a nested model's fields have their own


@pytest.mark.parametrize("name", EditRequest.model_fields)
def test_every_example_of_a_request_field_is_valid(name: str) -> None:
    for example in EditRequest.model_fields[name].examples or []:
        sides = {"width": 1024, "height": 1024} if name in {"width", "height"} else {}
        one = {"image_url": "absent"} if name == "image_urls" else {}
        one |= {"mask_url": "data:,x"} if name == "mask_padding" else {}
        assert (
            parse(**{**sides, **one, name: example}).model_dump(exclude_unset=True)[name] == example
        )


def test_limits_are_in_the_schema() -> None:
    schema = EditRequest.model_json_schema()["properties"]
    assert schema["prompt"]["maxLength"] == 800
    assert schema["seed"]["anyOf"][0] == {"type": "integer", "minimum": -1, "maximum": 2**32 - 1}
    assert schema["num_inference_steps"]["anyOf"][0]["maximum"] == 1000
    assert schema["guidance_scale"]["anyOf"][0] == {"type": "number", "minimum": 1, "maximum": 20}
    assert schema["output_quality"] | {"minimum": 1, "maximum": 100} == schema["output_quality"]
    for side in ("width", "height"):
        assert schema[side]["anyOf"][0] == {
            "type": "integer",
            "minimum": 64,
            "maximum": 2048,
            "multipleOf": 16,
        }
    assert EditRequest.model_json_schema()["additionalProperties"] is False
