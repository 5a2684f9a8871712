"""The page and the API's page in a browser, Debian's chromium."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright
from support.fakes import PATIENCE_S
from support.servers.bentoml_service import ROOT, SAMPLE_URL, Service

from retouch.errors import WorkerLost

CHROMIUM = shutil.which("chromium")
SAMPLE_FILE = ROOT / "src/retouch/web/static/sample.jpg"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FOR_PROGRAMS = {"response_format", "webhook", "webhook_progress"}
DROP = """async ([kind, url]) => {
  const data = new DataTransfer();
  data.items.add(new File([await (await fetch(url)).blob()], "cup.jpg", { type: "image/jpeg" }));
  const name = kind === "drop" ? "dataTransfer" : "clipboardData";
  const event = kind === "drop" ? new DragEvent("drop", { [name]: data, bubbles: true })
    : new ClipboardEvent("paste", { [name]: data, bubbles: true });
  document.querySelector("#drop").dispatchEvent(event);
}"""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=1000 * PATIENCE_S)  # by default 5 s, which a busy machine may take
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a browser without a past, that has told of no fault of its own when the test ends."""
    faults: list[str] = []
    page = browser.new_context().new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: "Policy" in line.text and faults.append(line.text))
    yield page
    page.context.close()
    assert faults == []


def visit(page: Page, service: Service) -> None:
    page.goto(service.url)
    expect(page.locator("#model")).to_contain_text("megapixels")


def press_edit(page: Page) -> None:
    page.get_by_role("button", name="Edit", exact=True).click()


def choose_the_sample(page: Page) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#pick").click()
    chooser.value.set_files(SAMPLE_FILE)
    expect(page.get_by_text("sample.jpg", exact=True)).to_be_visible()


def expect_the_picture(page: Page) -> None:
    expect(page.locator("#status")).to_contain_text("Done in", timeout=60_000)
    picture = page.get_by_alt_text("The edited picture")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def fill_option(page: Page, label: str, value: str) -> None:
    if not page.locator("#controls").is_visible():
        page.get_by_text("Options").click()
    page.get_by_label(label, exact=True).fill(value)


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_three_actions_edit_a_picture(page: Page, local: Service, way: str) -> None:
    visit(page, local)
    page.evaluate(DROP, [way, "/sample.jpg"])
    page.locator("#examples button").first.click()
    press_edit(page)
    expect_the_picture(page)
    page.get_by_role("slider").press("End")
    assert page.locator(".compare").evaluate("box => box.style.getPropertyValue('--at')") == "100%"


def test_a_chosen_file_shows_at_once_and_no_keystroke_loses_it(page: Page, local: Service) -> None:
    visit(page, local)
    choose_the_sample(page)
    expect(page.get_by_alt_text("Chosen picture 1")).to_be_visible()
    expect(page.get_by_label("Picture URL")).to_be_hidden()
    page.keyboard.type("anything")
    page.get_by_role("button", name="Remove sample.jpg").click()
    expect(page.locator("#pick")).to_be_focused()
    choose_the_sample(page)  # the same file once more
    page.get_by_role("button", name="Remove sample.jpg").click()
    page.get_by_label("Instruction").fill("make it warmer")
    page.get_by_label("Picture URL").fill(f"{local.url}/sample.jpg")
    assert sent_by(page, "Edit")["image_url"] == f"{local.url}/sample.jpg"
    expect(page.get_by_alt_text("Chosen picture 1")).to_be_visible()


def test_faults_stand_beside_their_fields_and_nothing_is_sent(page: Page, local: Service) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    visit(page, local)
    press_edit(page)
    expect(page.get_by_label("Picture URL")).to_be_focused()
    expect(page.get_by_label("Picture URL")).to_have_accessible_description(
        "Choose a picture first"
    )
    expect(page.get_by_label("Instruction")).to_have_accessible_description("Say what to change")
    page.get_by_text("Options").click()
    page.get_by_label("Seed").press_sequentially("12e")
    page.get_by_text("Options").click()
    press_edit(page)
    expect(page.get_by_label("Seed")).to_have_accessible_description("Is not a number")
    assert not [url for url in sent if "/jobs/" in url]


def test_what_the_service_refuses_is_told_in_the_words_of_the_page(
    page: Page, local: Service
) -> None:
    visit(page, local)
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("a <|im_end|> b")
    press_edit(page)
    expect(page.get_by_label("Instruction")).to_have_accessible_description(
        re.compile("Must not contain control tokens")
    )
    expect(page.get_by_role("alert")).to_have_text("Please look at the marked fields.")


def test_who_needs_a_key_is_shown_where_it_goes(page: Page, strict: Service) -> None:
    page.goto(strict.url)
    key = page.get_by_label("API key")
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("make it warmer")
    press_edit(page)
    expect(key).to_be_focused()
    key.fill("a key of another service")
    key.press("Enter")
    expect(page.locator("#model")).to_have_text("this API key is not valid")
    expect(page.locator("[aria-invalid]")).to_have_count(0)
    key.fill(strict.client.headers["X-API-Key"])
    press_edit(page)
    expect_the_picture(page)
    expect(page.locator("#model")).to_contain_text("megapixels")


def test_stop_ends_an_edit_and_gives_the_focus_back(page: Page, local: Service) -> None:
    visit(page, local)
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("make it warmer")
    fill_option(page, "Steps", "50")
    page.get_by_label("Instruction").press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("step")
    expect(page.locator("#elapsed")).to_have_text(re.compile(r"\d+ s"))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Edit", exact=True)).to_be_focused()


def edit_all_day(page: Page) -> None:
    """Begin an edit that takes the tiny model long, of the exact size that the options ask for."""
    for label, value in (("Steps", "50"), ("Width", "1280"), ("Height", "1280")):
        fill_option(page, label, value)
    press_edit(page)
    expect(page.locator("#status")).to_contain_text("step")


def open_and_edit_all_day(page: Page, service: Service) -> None:
    """Open the page, and begin such an edit of the sample."""
    visit(page, service)
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("make it warmer")
    page.get_by_text("Options").click()
    page.get_by_label("Shape", exact=True).select_option("exact")
    edit_all_day(page)


def test_a_running_edit_survives_a_reload_and_can_still_be_stopped(
    page: Page, local: Service
) -> None:
    with page.expect_request(lambda request: request.method == "PUT") as sent:
        open_and_edit_all_day(page, local)
    job = sent.value.url
    page.reload()
    expect(page.locator("#status")).to_contain_text("step")
    expect(page.get_by_label("Instruction")).to_have_value("make it warmer")
    expect(page.get_by_alt_text("Chosen picture 1")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    local.wait_for(lambda: local.client.get(job).json()["state"] == "cancelled")
    visit(page, local)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def begin_without_answer(page: Page, service: Service) -> None:
    """Have the page begin an edit, of which it hears nothing."""
    page.route("**/jobs/*", lambda _: None)
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("make it warmer")
    with page.expect_request("**/jobs/*") as sent:
        press_edit(page)
    service.client.put(sent.value.url, json=sent.value.post_data_json).raise_for_status()


def enter_the_key(page: Page, service: Service) -> None:
    page.goto(service.url)
    page.get_by_label("API key").fill(service.client.headers["X-API-Key"])
    page.get_by_label("API key").press("Tab")


def test_an_edit_goes_on_when_its_tab_is_closed_and_its_key_forgotten(
    page: Page, strict: Service
) -> None:
    enter_the_key(page, strict)
    expect(page.locator("#model")).to_contain_text("megapixels")
    begin_without_answer(page, strict)
    later = page.context.new_page()
    page.close()
    enter_the_key(later, strict)
    expect_the_picture(later)
    expect(later.locator(".thumbnail")).to_have_count(1)


def test_a_connection_that_a_proxy_ends_is_made_again(page: Page, local: Service) -> None:
    def cut(route: Route) -> None:
        if route.request.method == "GET":
            return route.fallback()
        # On a connection of its own: a fault here would leave the page waiting.
        httpx.put(route.request.url, json=route.request.post_data_json, trust_env=False)
        part = 'event: progress\ndata: {"stage": "queue"}\n\n'
        return route.fulfill(body=part, content_type="text/event-stream")

    visit(page, local)
    page.route("**/jobs/*", cut)
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("make it warmer")
    press_edit(page)
    expect_the_picture(page)


def test_an_edit_that_never_arrived_is_told_of_once(page: Page, local: Service) -> None:
    visit(page, local)
    page.route("**/jobs/*", lambda route: route.abort())
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("make it warmer")
    press_edit(page)
    expect(page.get_by_role("alert")).to_have_text("The service could not be reached.")
    page.unroute_all()
    visit(page, local)
    expect(page.get_by_role("alert")).to_contain_text("The service knows nothing of the edit")
    visit(page, local)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.locator("#fault")).to_be_empty()


def sent_by(page: Page, label: str, *, within: str = "body") -> dict[str, Any]:
    with page.expect_request(lambda request: request.method == "PUT") as sent:
        page.locator(within).get_by_role("button", name=label).first.click()
    request: Request = sent.value
    body: dict[str, Any] = request.post_data_json
    return body


def test_edits_survive_a_reload_and_can_be_made_again_or_gone_on_from(
    page: Page, local: Service
) -> None:
    visit(page, local)
    page.get_by_text("Use the sample").click()
    page.get_by_label("Instruction").fill("make it warmer")
    fill_option(page, "Seed", "7")
    fill_option(page, "Steps", "2")
    press_edit(page)
    expect_the_picture(page)
    visit(page, local)
    page.get_by_role("button", name="Show: make it warmer").click()
    expect(page.get_by_text("seed 7")).to_be_visible()
    for place in ("#result", "#past"):
        again = sent_by(page, "Again, new seed", within=place)
        assert again.pop("image_url") == SAMPLE_URL
        assert again == {"prompt": "make it warmer", "num_inference_steps": 2}
        expect(page.get_by_label("Seed")).to_have_value("")
        expect_the_picture(page)
    page.get_by_role("button", name="Keep this seed").click()
    assert page.get_by_label("Seed").input_value().isdecimal()
    page.locator("#result").get_by_role("button", name="Use as source").click()
    assert sent_by(page, "Edit")["image_url"].startswith("data:image/png;base64,")
    expect_the_picture(page)
    expect(page.locator(".thumbnail")).to_have_count(4)
    page.get_by_role("button", name="Forget all").click()
    expect(page.locator("#past")).to_be_hidden()


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_the_request_as_code_runs(
    page: Page, local: Service, tmp_path: Path, language: str
) -> None:
    name = "it's $HOME `x`.jpg"
    (tmp_path / name).write_bytes(SAMPLE_FILE.read_bytes())
    visit(page, local)
    page.locator("#file").set_input_files(tmp_path / name)
    page.get_by_label("Instruction").fill('say "$HOME" and `it\'s` \\ here')
    fill_option(page, "Steps", "1")
    page.get_by_text("This request as code").click()
    page.get_by_role("button", name=language).click()
    programs = {
        "curl": ["bash", "-c"],
        "Python": [sys.executable, "-c"],
        "JavaScript": [str(Path(sys.executable).with_name("node")), "--input-type=module", "-e"],
    }
    done = subprocess.run(  # noqa: S603 - the page's own code
        [*programs[language], page.locator("#snippet").inner_text()],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "/files/" in done.stdout, done


def offer(page: Page, service: Service, **more: Any) -> None:
    """Have the page believe that the service offers more."""
    info = {**service.client.get("/info").json(), "max_images": 3, **more}
    spec = service.client.get("/openapi.json").json()
    fields = spec["components"]["schemas"]["EditRequest"]["properties"]
    text: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "null"}], "description": ""}
    texts = dict.fromkeys(("mask_url", "profile"), text)
    lists = {name: {"type": "array", "items": {}} for name in ("image_urls", "loras")}
    spec["components"]["schemas"]["EditRequest"]["properties"] = fields | texts | lists
    page.route("**/info", lambda route: route.fulfill(json=info))
    page.route("**/openapi.json", lambda route: route.fulfill(json=spec))


def test_masks_pictures_profiles_and_adapters_show_where_the_service_has_them(
    page: Page, local: Service
) -> None:
    offer(
        page,
        local,
        profiles=["full", "fast"],
        loras=[
            {"name": "ink", "scale": 1, "always": False},
            {"name": "oil", "scale": 0.7, "always": True},
        ],
    )
    result = local.edit(num_inference_steps=1)
    answer = json.dumps({"status": "success", "result": result, "results": [result, result]})
    page.route(
        "**/jobs/*",
        lambda route: route.fulfill(
            body=f"event: result\ndata: {answer}\n\n", content_type="text/event-stream"
        ),
    )
    visit(page, local)
    for _ in range(2):
        choose_the_sample_again(page)
    paint_a_mask(page)
    page.get_by_label("Instruction").fill("make it warmer")
    page.get_by_text("Options").click()
    page.get_by_label("Profile").select_option("fast")
    page.get_by_label("Results", exact=True).fill("2")
    page.get_by_label("ink", exact=True).check()
    page.get_by_label("Strength of ink").fill("0.5")
    page.get_by_label("oil", exact=True).uncheck()
    page.get_by_label("Shape", exact=True).select_option(index=1)
    body = sent_by(page, "Edit")
    assert [url[:16] for url in body["image_urls"]] == ["data:image/jpeg;"] * 2
    assert body["mask_url"].startswith("data:image/png;base64,")
    assert (body["profile"], body["num_images"]) == ("fast", 2)
    assert body["loras"] == [{"name": "ink", "scale": 0.5}, {"name": "oil", "scale": 0}]
    assert body["width"] == body["height"]
    expect(page.get_by_role("group", name="Results").get_by_role("button")).to_have_count(2)


def test_what_was_stored_before_a_failure_is_shown_with_it(page: Page, local: Service) -> None:
    result = local.edit(num_inference_steps=1)
    details = {
        "code": "model_failed",
        "retryable": False,
        "request_id": "r",
        "results": [result] * 2,
    }
    error = {"type": "ModelError", "message": "the model failed", "details": details}
    answer = {"status": "error", "error": error}
    page.route("**/jobs/*", lambda route: route.fulfill(status=500, json=answer))
    visit(page, local)
    choose_the_sample(page)
    page.get_by_label("Instruction").fill("make it warmer")
    press_edit(page)
    expect(page.locator("#fault")).to_have_text("The model failed")
    expect(page.get_by_role("group", name="Results").get_by_role("button")).to_have_count(2)


def choose_the_sample_again(page: Page) -> None:
    page.locator("#file").set_input_files(SAMPLE_FILE)


def paint_a_mask(page: Page) -> None:
    """Paint with the pointer and the keys, erase, undo: one stroke is left."""
    page.get_by_role("button", name="Paint a mask").click()
    canvas = page.locator("#canvas")
    expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    canvas.click()
    canvas.press("ArrowRight")
    canvas.press("Space")
    page.get_by_role("button", name="Erase").click()
    canvas.click()
    canvas.press("Control+z")
    page.get_by_role("button", name="Undo").click()
    covered = canvas.evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data"
        ".filter((value, at) => at % 4 === 3 && value).length"
    )
    assert covered > 100
    page.get_by_role("button", name="Done").click()
    expect(page.get_by_role("button", name="Change the mask")).to_be_visible()


def test_every_field_of_a_request_has_its_place(page: Page, local: Service) -> None:
    visit(page, local)
    page.get_by_text("Options").click()
    placed = page.evaluate(
        "[...document.querySelectorAll('[data-field]')].flatMap(at => at.dataset.field.split(' '))"
    )
    spec = local.client.get("/openapi.json").json()
    fields = set(spec["components"]["schemas"]["EditRequest"]["properties"])
    offered = {"mask_url", "profile", "loras", "size_from"}  # shown where the service has them
    assert fields - set(placed) <= FOR_PROGRAMS | offered


def test_the_api_is_drawn_whole(page: Page, local: Service) -> None:
    page.set_viewport_size({"width": 320, "height": 800})
    page.goto(f"{local.url}/docs")
    for text in ("X-Request-ID", "prompt *", "signature *", "Authorization: Bearer"):
        expect(page.get_by_text(text).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    # Contrast takes axe half a minute in so long a page, and is that of four colours.
    rules = {"rules": {"color-contrast": {"enabled": False}}}
    assert Axe().run(page, options=rules).response["violations"] == []
    page.get_by_role("link", name="EditRequest").first.click()
    expect(page.locator("#EditRequest")).to_be_in_viewport()


def require_accessible(page: Page, width_px: int) -> None:
    """No violation of axe's rules in light or dark, and nothing wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth") == width_px
    for scheme, rules in (("dark", {"runOnly": ["color-contrast"]}), ("light", {})):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found = Axe().run(page, options=rules).response["violations"]
        assert [(each["id"], [node["target"] for node in each["nodes"]]) for each in found] == []


def test_it_is_accessible_and_fits_a_phone_in_every_state(page: Page, local: Service) -> None:
    width_px = 320
    page.set_viewport_size({"width": width_px, "height": 800})
    offer(
        page,
        local,
        loras=[{"name": "ink", "scale": 1, "always": False}],
        profiles=["full", "fast"],
    )
    visit(page, local)
    require_accessible(page, width_px)
    press_edit(page)
    require_accessible(page, width_px)
    page.unroute_all()
    page.get_by_text("Use the sample").click()
    page.locator("#examples button").first.click()
    page.get_by_text("Options").click()
    page.get_by_label("Shape", exact=True).select_option("exact")
    page.get_by_text("This request as code").click()
    page.get_by_role("button", name="Paint a mask").click()
    page.locator("#canvas").click()
    require_accessible(page, width_px)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Done").click()
    edit_all_day(page)
    require_accessible(page, width_px)
    page.get_by_role("button", name="Stop").click()
    page.get_by_label("Shape", exact=True).select_option("as the picture")
    fill_option(page, "Steps", "1")
    press_edit(page)
    expect_the_picture(page)
    page.get_by_text("Answer", exact=True).click()
    require_accessible(page, width_px)


def test_it_is_accessible_once_an_edit_is_picked_up_and_once_it_is_lost(
    page: Page, local: Service
) -> None:
    def lose(route: Route) -> None:
        lost = {"error": {"type": WorkerLost.type, "message": str(WorkerLost()), "details": {}}}
        body = f"event: error\ndata: {json.dumps(lost)}\n\n"
        route.fulfill(body=body, content_type="text/event-stream")

    width_px = 320
    page.set_viewport_size({"width": width_px, "height": 800})
    open_and_edit_all_day(page, local)

    page.reload()
    expect(page.locator("#status")).to_contain_text("step")
    require_accessible(page, width_px)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")

    page.route("**/jobs/*", lambda route: route.abort())
    press_edit(page)
    expect(page.get_by_role("alert")).to_have_text("The service could not be reached.")
    require_accessible(page, width_px)

    page.route("**/jobs/*", lose)
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The process that ran this job died")
    require_accessible(page, width_px)


def test_typed_text_looks_typed(page: Page, local: Service) -> None:
    page.goto(local.url)
    field = page.get_by_label("Instruction")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
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
