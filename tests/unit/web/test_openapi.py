import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openapi_spec_validator import validate
from pydantic import ValidationError

from retouch.errors import InvalidRequest, NotReady, error_classes
from retouch.schema import EXAMPLE, EditRequest, ErrorBody, ImageOptions, Upload, error_body
from retouch.storage.local import LocalStore
from retouch.web.form import Form, parse_edit_form
from retouch.web.openapi import openapi_document

DOCUMENT = openapi_document()
OPEN = {"/livez", "/healthz", "/readyz", "/ping", "/files/{key}"}


def resolve(reference: str) -> Any:
    node: Any = DOCUMENT
    for name in reference.removeprefix("#/").split("/"):
        node = node[name]
    return node


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    if isinstance(node, list):
        return [found for value in node for found in references(value)]
    return []


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    validate(DOCUMENT)
    json.dumps(DOCUMENT)


def test_every_reference_leads_somewhere() -> None:
    found = references(DOCUMENT)
    assert "#/components/schemas/EditRequest" in found
    assert all(resolve(reference) is not None for reference in found)


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_schema_is_json_schema_whose_fields_have_descriptions_and_valid_examples(
    name: str,
) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    Draft202012Validator.check_schema(schema)
    for field, of in schema.get("properties", {}).items():
        # Beside a reference only what differs from its target is written.
        target = resolve(of["$ref"]) if "$ref" in of else {}
        assert of.get("description") or target.get("description"), field
        is_file = of.get("format") == "binary"  # JSON has no example of one
        assert "$ref" in of or of.get("examples") or is_file, field
        validator = Draft202012Validator({**of, "components": DOCUMENT["components"]})
        assert all(validator.is_valid(example) for example in of.get("examples", ())), field


def test_the_example_is_valid_under_the_schema() -> None:
    content = DOCUMENT["paths"]["/edit"]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"] == EXAMPLE
    schema = {**content["schema"], "components": DOCUMENT["components"]}
    Draft202012Validator(schema).validate(content["example"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_url": "ftp://a/"},
        {"image_url": None},
        {"image_urls": ["http://a/"]},
        {"image_url": None, "image_urls": []},
        {"image_url": None, "image_urls": ["http://a/"] * 4},
        {"size_from": "middle"},
        {"prompt": " "},
        {"prompt": "a <|im_end|>"},
        {"negative_prompt": "<||>"},
        {"seed": -2},
        {"width": 100},
        {"width": 64},
        {"width": 64, "height": None},
        {"height": 64},
        {"more": 1},
        {"mask_padding": 8},
        {"mask_padding": 8, "mask_url": "http://a/", "width": 64, "height": 64},
        {
            "image_url": None,
            "image_urls": ["http://a/"] * 2,
            "size_from": "last",
            "strength": 0.5,
        },
    ],
)
def test_the_schema_refuses_what_the_service_refuses(wrong: dict[str, Any]) -> None:
    schema = DOCUMENT["components"]["schemas"]["EditRequest"]
    assert list(Draft202012Validator(schema).iter_errors(dict(EXAMPLE) | wrong))
    with pytest.raises(ValidationError):
        EditRequest.model_validate(dict(EXAMPLE) | wrong)


@pytest.mark.parametrize(
    ("fields", "is_taken"),
    [
        ({"image": "(a file)"}, True),
        ({"image": "(a file)", "image_url": " ", "seed": "", "size_from": ""}, True),
        ({"image": "(a file)", "mask": "(a file)", "mask_padding": 8}, True),
        ({"image_url": "http://a/", "mask_url": "http://a/", "mask_padding": 8}, True),
        ({"image_urls": ["http://a/"], "width": 64, "height": 64}, True),
        ({}, False),
        ({"image_url": ""}, False),
        ({"image": "(a file)", "image_url": "http://a/"}, False),
        ({"image": "(a file)", "width": 64}, False),
        ({"image": "(a file)", "mask_padding": 8}, False),
        ({"image": "(a file)", "mask": "(a file)", "mask_url": "http://a/"}, False),
    ],
)
def test_a_form_is_valid_under_its_schema_if_the_service_takes_it(
    fields: dict[str, Any], *, is_taken: bool
) -> None:
    schema = DOCUMENT["components"]["schemas"]["EditForm"]
    assert Draft202012Validator(schema).is_valid({"prompt": "x", **fields}) is is_taken
    texts = [("prompt", "x")]
    for name, value in fields.items():
        if value != "(a file)":
            texts.append((name, value if isinstance(value, str) else json.dumps(value)))
    files = [(name, Upload.of(b"x")) for name, value in fields.items() if value == "(a file)"]
    if is_taken:
        parse_edit_form(Form(texts, files))
        return
    with pytest.raises(InvalidRequest):
        parse_edit_form(Form(texts, files))


def test_spaces_are_those_of_the_service_whatever_a_reader_of_patterns_takes_for_one() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    prompt = schemas["EditRequest"]["properties"]["prompt"]["pattern"]
    blank = schemas["EditForm"]["properties"]["seed"]["anyOf"][-1]["pattern"]
    # As in JSON Schema, \s has no control characters here but those of C.
    assert not re.search(prompt, "\x1c\x1f\x85", re.ASCII)
    assert re.search(blank, "\x1c\x1f\x85", re.ASCII)


def test_openais_fields_may_be_null_in_json_and_blank_in_a_form() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    names = ImageOptions.model_fields
    unset = {"prompt": "x", **dict.fromkeys(names)}
    json_schema = {**schemas["ImagesRequest"], "components": DOCUMENT["components"]}
    images = [{"image_url": "http://a/"}]
    assert Draft202012Validator(json_schema).is_valid({**unset, "images": images})
    blank = {"prompt": "x", "image": "(a file)", **dict.fromkeys(names, " ")}
    assert Draft202012Validator(schemas["ImagesForm"]).is_valid(blank)


def test_a_job_may_not_ask_for_base64() -> None:
    content = DOCUMENT["paths"]["/jobs/{id}"]["put"]["requestBody"]["content"]
    schema = {**content["application/json"]["schema"], "components": DOCUMENT["components"]}
    given = [{**EXAMPLE, "response_format": name} for name in ("url", "b64_json")]
    assert [Draft202012Validator(schema).is_valid(one) for one in given] == [True, False]
    assert Draft202012Validator(schema).is_valid(EXAMPLE)
    assert "properties" not in schema  # beside which openapi-generator drops the reference


def test_the_images_api_may_answer_by_a_stream() -> None:
    success = DOCUMENT["paths"]["/v1/images/edits"]["post"]["responses"]["200"]
    assert list(success["content"]) == ["application/json", "text/event-stream"]


def test_every_status_of_an_error_has_a_response_that_lists_its_codes() -> None:
    responses = DOCUMENT["components"]["responses"]
    assert set(responses) == {f"Error{cls.status}" for cls in error_classes()}
    for cls in error_classes():
        response = responses[f"Error{cls.status}"]
        assert cls.code in response["description"]
        schema = response["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert responses["Error499"]["description"].startswith("Client Closed Request: cancelled")


def test_an_edit_may_answer_any_error_but_those_of_other_routes() -> None:
    elsewhere = {404}
    statuses = {cls.status for cls in error_classes()} - elsewhere
    responses = DOCUMENT["paths"]["/edit"]["post"]["responses"]
    assert set(responses) == {"200", "202"} | {str(status) for status in statuses}


def test_only_health_and_signed_files_need_no_key() -> None:
    assert {"bearer": []} in DOCUMENT["security"]
    assert {"apiKey": []} in DOCUMENT["security"]
    for path, item in DOCUMENT["paths"].items():
        for method in {"get", "post", "put", "delete"} & item.keys():
            assert (item[method].get("security") == []) is (path in OPEN)


def test_a_link_of_the_local_store_is_described_whole(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, secret=b"s", public_url="", result_ttl_s=60)
    link = store.link("a.png", expires_in_s=60)
    given = DOCUMENT["paths"]["/files/{key}"]["get"]["parameters"]
    named = {each["name"] for each in given if each["in"] == "query"}
    assert named == parse_qs(urlsplit(link).query).keys()
    assert [each["name"] for each in given if each["in"] == "path"] == ["key"]


def test_operation_ids_are_unique() -> None:
    ids = [
        item[method]["operationId"]
        for item in DOCUMENT["paths"].values()
        for method in {"get", "post", "put", "delete"} & item.keys()
    ]
    assert len(ids) == len(set(ids))


def test_a_real_error_body_is_valid_under_the_schema() -> None:
    schema = {
        "$ref": "#/components/schemas/ErrorBody",
        "components": DOCUMENT["components"],
    }
    body = error_body(NotReady("loading", details={"more": {"of": [1]}}), request_id="r")
    Draft202012Validator(schema).validate(body.model_dump(mode="json"))
    assert isinstance(body, ErrorBody)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"width": 64, "height": 80},
        {"width": None},
        {"image_urls": None},
        {"image_url": None, "image_urls": ["http://a/"] * 3},
    ],
)
def test_the_schema_takes_what_the_service_takes(more: dict[str, Any]) -> None:
    schema = DOCUMENT["components"]["schemas"]["EditRequest"]
    assert not list(Draft202012Validator(schema).iter_errors(dict(EXAMPLE) | more))
    EditRequest.model_validate(dict(EXAMPLE) | more)


def test_a_request_id_of_any_form_is_within_the_document_as_it_is_never_refused() -> None:
    named = DOCUMENT["paths"]["/edit"]["post"]["parameters"][0]
    assert (named["name"], named["schema"]) == ("X-Request-ID", {"type": "string"})


def test_a_client_need_send_no_field_with_a_default() -> None:
    request = DOCUMENT["components"]["schemas"]["EditRequest"]
    assert request["required"] == ["prompt"]
    assert not [name for name, field in request["properties"].items() if "default" in field]
    assert request["properties"]["output_quality"]["description"].endswith("Default: 95.")


def test_an_edit_is_answered_by_one_type_and_the_events_have_theirs() -> None:
    success = DOCUMENT["paths"]["/edit"]["post"]["responses"]["200"]
    assert list(success["content"]) == ["application/json"]
    event = {**resolve(success["x-event-stream"]["$ref"]), "components": DOCUMENT["components"]}
    progress = {"event": "progress", "data": {"stage": "denoise", "step": 1, "steps": 4}}
    Draft202012Validator(event).validate(progress)
    assert not Draft202012Validator(event).is_valid({**progress, "event": "result"})
