"""The page and the API's page in a browser, Debian's chromium."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support.servers.bentoml_service import Service

CHROMIUM = shutil.which("chromium")
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
    expect(page.get_by_role("status").last).to_have_text("seed is no number")
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
    for text in ("X-Request-ID", "image_url *", "signature *", "Authorization: Bearer"):
        expect(page.get_by_text(text).first).to_be_visible()
