"""The page and the API's page in a browser, Debian's chromium."""

import re
import shutil
from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.servers.bentoml_service import ROOT, Service

CHROMIUM = shutil.which("chromium")
SAMPLE_FILE = ROOT / "src/retouch/web/static/sample.jpg"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that has told of no fault of its own when the test ends."""
    faults: list[str] = []
    page = browser.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    page.close()
    assert faults == []


def ask_for_the_sample(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.get_by_text("Use the sample").click()
    expect(page.get_by_label("Instruction")).not_to_have_value("")
    page.get_by_role("button", name="Edit", exact=True).click()


def expect_the_picture(page: Page) -> None:
    expect(page.get_by_role("status").last).to_contain_text("done in", timeout=60_000)
    picture = page.get_by_alt_text("The edited image")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def test_a_stranger_edits_the_sample_with_two_clicks(page: Page, local: Service) -> None:
    ask_for_the_sample(page, local)
    expect_the_picture(page)


def test_a_number_that_is_none_is_told_and_nothing_is_sent(page: Page, local: Service) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.goto(local.url)
    page.get_by_text("Options").click()
    page.get_by_label("Seed").press_sequentially("12e")
    page.get_by_text("Use the sample").click()
    page.get_by_role("button", name="Edit", exact=True).click()
    expect(page.get_by_role("status").last).to_have_text("seed is not a number")
    assert f"{local.url}/edit" not in sent


def test_who_needs_a_key_is_shown_where_it_goes(page: Page, strict: Service) -> None:
    ask_for_the_sample(page, strict)
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    key.fill(strict.client.headers["X-API-Key"])
    page.get_by_role("button", name="Edit", exact=True).click()
    expect_the_picture(page)


def test_the_api_is_drawn_whole(page: Page, local: Service) -> None:
    page.goto(f"{local.url}/docs")
    for text in ("X-Request-ID", "prompt *", "signature *", "Authorization: Bearer"):
        expect(page.get_by_text(text).first).to_be_visible()


@pytest.mark.parametrize("width_px", [320, 390])
def test_it_fits_a_phone(page: Page, local: Service, width_px: int) -> None:
    page.set_viewport_size({"width": width_px, "height": 800})
    page.goto(local.url)
    page.get_by_text("Options").click()
    choose_the_sample(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width_px
    page.get_by_role("button", name="Remove").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width_px
    box = page.get_by_label("Image URL").bounding_box()
    assert box is not None
    assert box["width"] > width_px / 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_typed_text_looks_typed(
    page: Page, local: Service, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(local.url)
    field = page.get_by_label("Instruction")
    typed, empty = (
        field.evaluate(f"field => getComputedStyle(field, {element}).color")
        for element in ("null", "'::placeholder'")
    )
    assert contrast(typed, empty) > 2.5


def contrast(*colors: str) -> float:
    """WCAG 2's contrast of two CSS colours."""
    lights = []
    for color in colors:
        red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
        ]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def choose_the_sample(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_text("Choose a file").click()
    chooser.value.set_files(SAMPLE_FILE)
    expect(page.get_by_alt_text("The chosen image")).to_be_visible()
    expect(page.get_by_text("sample.jpg", exact=True)).to_be_visible()


def test_a_chosen_file_shows_at_once_and_no_keystroke_loses_it(page: Page, local: Service) -> None:
    page.goto(local.url)
    page.get_by_label("Image URL").fill("https://x.example/")
    choose_the_sample(page)
    expect(page.get_by_label("Image URL")).to_be_hidden()
    page.keyboard.type("anything")
    expect(page.get_by_alt_text("The chosen image")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_label("Image URL")).to_have_value("https://x.example/")
    choose_the_sample(page)  # the same file once more
    page.get_by_label("Instruction").fill("make colors warmer")
    page.get_by_role("button", name="Edit", exact=True).click()
    expect_the_picture(page)
