import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any, get_args

import pytest
from PIL import Image
from starlette.responses import Response

from retouch.schema import SCHEDULERS, EditRequest, Progress
from retouch.schema.request import MAX_PROMPT_CHARACTERS, MAX_SIDE_PX, MIN_SIDE_PX
from retouch.web.pages import STATIC, build_page


class Page(HTMLParser):
    """What a browser would see: tags, inline code and the fields of the form."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.options: dict[str, list[str]] = {}
        self._open = self._select = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.tags.append((tag, dict(attrs)))
        if tag == "select":
            self._select = dict(attrs)["name"] or ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inline:
            self.inline[self._open].append(data)
        if self._open == "option" and data.strip():
            self.options.setdefault(self._select, []).append(data.strip())

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        return {
            name: attributes
            for tag, attributes in self.tags
            if tag in {"input", "textarea", "select"} and (name := attributes.get("name"))
        }


def directives(response: Response) -> dict[str, str]:
    parts = response.headers["content-security-policy"].split("; ")
    return {name: value for name, _, value in (part.partition(" ") for part in parts)}


PAGES = [build_page("page.html"), build_page("docs.html")]


@pytest.mark.parametrize("response", PAGES, ids=["page", "docs"])
def test_the_policy_lets_the_page_s_own_code_run_and_nothing_else(response: Response) -> None:
    policy = directives(response)
    page = Page(bytes(response.body).decode())
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        assert page.inline[tag]
        expected = {
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in page.inline[tag]
        }
        assert set(policy[name].split()) == expected
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]


@pytest.mark.parametrize("response", PAGES, ids=["page", "docs"])
def test_the_page_needs_nothing_that_the_policy_forbids(response: Response) -> None:
    page = Page(bytes(response.body).decode())
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            link = attributes.get(name) or "/"
            assert link.startswith(("/", "data:")), link
            assert not link.startswith("//")


@pytest.mark.parametrize("response", PAGES, ids=["page", "docs"])
def test_the_page_says_it_is_html_and_gives_no_address_away(response: Response) -> None:
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_the_form_has_every_field_of_an_edit_and_no_other() -> None:
    page = Page(bytes(PAGES[0].body).decode())
    assert set(page.fields) == set(EditRequest.model_fields) - {
        "response_format",
        "image_urls",
        "size_from",
    }


def test_the_form_keeps_to_the_contract() -> None:
    page = Page(bytes(PAGES[0].body).decode())
    assert tuple(page.options["scheduler"]) == SCHEDULERS
    assert page.options["output_format"] == ["png", "jpeg", "webp", "avif"]
    assert page.fields["prompt"]["maxlength"] == str(MAX_PROMPT_CHARACTERS)
    properties = EditRequest.model_json_schema()["properties"]
    for name in ("seed", "num_inference_steps", "guidance_scale", "output_quality"):
        limits = properties[name].get("anyOf", [properties[name]])[0]
        field = page.fields[name]
        assert (float(field["min"]), float(field["max"])) == (limits["minimum"], limits["maximum"])
    for name in ("width", "height"):
        assert page.fields[name]["min"] == str(MIN_SIDE_PX)
        assert page.fields[name]["max"] == str(MAX_SIDE_PX)
        assert page.fields[name]["step"] == "16"


def test_the_page_has_words_for_every_stage() -> None:
    text = bytes(PAGES[0].body).decode()
    (words,) = re.findall(r"const stages = \{(.*?)\};", text)
    stages = get_args(Progress.model_fields["stage"].annotation)
    assert {name.strip() for name in re.findall(r"(\w+): \"", words)} == set(stages)


def test_the_sample_is_a_jpeg() -> None:
    image = Image.open(STATIC / "sample.jpg")
    image.load()
    assert image.format == "JPEG"
    assert min(image.size) >= 256
