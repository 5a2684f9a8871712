import re
from html.parser import HTMLParser
from typing import get_args

import pytest
from PIL import Image
from starlette.responses import Response

from retouch.schema import Progress
from retouch.schema.fields import MAX_PROMPT_CHARACTERS, MAX_SIDE_PX, MIN_SIDE_PX, SIDE_MULTIPLE_PX
from retouch.web.pages import STATIC, build_page

MODULES = sorted((STATIC / "page").glob("*.js"))
MAX_MODULE_LINES = 300


class Page(HTMLParser):
    """The tags of a page, and the text inside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._open in {"script", "style"}:
            self.inline += data.strip()

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    @property
    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.tags}


PAGES = [build_page("page.html"), build_page("docs.html")]


def parse(response: Response) -> Page:
    return Page(bytes(response.body).decode())


@pytest.mark.parametrize("response", PAGES, ids=["page", "docs"])
def test_the_policy_runs_code_of_this_service_only(response: Response) -> None:
    policy = dict(
        part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    for name in ("script-src", "style-src", "connect-src"):
        assert policy[name] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in response.headers["content-security-policy"]


@pytest.mark.parametrize("response", PAGES, ids=["page", "docs"])
def test_the_page_needs_nothing_that_the_policy_forbids(response: Response) -> None:
    page = parse(response)
    assert page.inline == ""
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), tag
        for name in ("src", "href"):
            link = attributes.get(name) or "/"
            assert link.startswith(("/", "data:")), link
            assert not link.startswith("//")
            if link.startswith("/page/"):
                assert (STATIC / link[1:]).is_file(), link


@pytest.mark.parametrize("response", PAGES, ids=["page", "docs"])
def test_the_page_says_it_is_html_and_gives_no_address_away(response: Response) -> None:
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("module", [path.name for path in MODULES])
def test_a_module_imports_what_is_there_and_stays_small(module: str) -> None:
    text = (STATIC / "page" / module).read_text("utf-8")
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    for target in re.findall(r'from "([^"]+)"', text):
        if target.startswith("."):
            assert (STATIC / "page" / target).is_file(), target
    assert "innerHTML" not in text
    assert "http://" not in text.replace("https:// or http://", "")


def test_every_element_that_a_module_asks_for_is_made() -> None:
    text = "".join(path.read_text("utf-8") for path in MODULES)
    made = parse(PAGES[0]).ids | parse(PAGES[1]).ids | set(re.findall(r'\bid: "([\w-]+)"', text))
    asked = set(re.findall(r'\b(?:at|getElementById)\("([\w-]+)"\)', text))
    assert asked - made == {"width", "height"}  # made by a name, in one function for both


def test_the_page_keeps_to_the_limits_of_the_contract() -> None:
    [prompt] = [tag for _, tag in parse(PAGES[0]).tags if tag.get("id") == "prompt"]
    assert prompt["maxlength"] == str(MAX_PROMPT_CHARACTERS)
    shape = (STATIC / "page/shape.js").read_text("utf-8")
    assert f"MULTIPLE_PX = {SIDE_MULTIPLE_PX};" in shape
    assert f"MIN_PX = {MIN_SIDE_PX}, MAX_PX = {MAX_SIDE_PX};" in shape


def test_the_page_has_words_for_every_stage() -> None:
    text = (STATIC / "page/progress.js").read_text("utf-8")
    stages = get_args(Progress.model_fields["stage"].annotation)
    assert set(re.findall(r"^  (\w+): \{ words", text, re.MULTILINE)) == set(stages)


def test_the_sample_is_a_jpeg() -> None:
    image = Image.open(STATIC / "sample.jpg")
    image.load()
    assert image.format == "JPEG"
    assert min(image.size) >= 256
