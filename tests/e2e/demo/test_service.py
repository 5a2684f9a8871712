"""The demo model through `POST /edit`, with default settings: each instruction has its effect."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy import typing as npt
from PIL import Image
from support.demo.measures import MEASURES, Pixels, correlation, fine, psnr_db, to_pixels
from support.servers.bentoml_service import SAMPLE, Service, opened, serving

pytestmark = pytest.mark.e2e

SIZE = {"width": 320, "height": 320}
BRIEF = {
    "prompt": "make colors warmer and add gentle film grain",
    "num_inference_steps": 30,
    "guidance_scale": 7.5,
    "seed": 42,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("demo")
    with serving(folder, {"MODEL_ID": "", "OMP_NUM_THREADS": "2"}) as running:
        yield running


def edited(service: Service, prompt: str, **fields: Any) -> Pixels:
    result = service.edit(prompt=prompt, **{"seed": 1, **SIZE, **fields})
    return to_pixels(Image.open(io.BytesIO(opened(result["presigned_url"]).content)))


@pytest.fixture(scope="module")
def untouched(service: Service) -> Pixels:
    """The model's output when nothing should change."""
    return edited(service, "keep the image unchanged")


def gain(name: str, after: Pixels, before: Pixels) -> float:
    return MEASURES[name](after) - MEASURES[name](before)


def test_unchanged_keeps_the_photo(untouched: Pixels) -> None:
    size = (SIZE["width"], SIZE["height"])
    photo = to_pixels(
        Image.open(io.BytesIO(SAMPLE)).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    )
    assert psnr_db(untouched, photo) > 25


@pytest.mark.parametrize(
    ("prompt", "measure", "least"),
    [
        ("make it warmer", "red_minus_blue", 0.08),
        ("make it cooler", "red_minus_blue", -0.08),
        ("make it brighter", "brightness", 0.05),
        ("make it darker", "brightness", -0.08),
        ("increase the contrast", "contrast", 0.03),
        ("reduce the contrast", "contrast", -0.04),
        ("make the colors more vivid", "saturation", 0.04),
        ("make the colors less saturated", "saturation", -0.04),
        ("blur the image", "detail", -0.005),
        ("make it sharper", "detail", 0.01),
        ("add a vignette", "centre_over_corners", 0.06),
        ("add a red tint", "red", 0.08),
        ("add a green tint", "green", 0.08),
        ("add a blue tint", "blue", 0.08),
        ("add a purple tint", "purple", 0.08),
    ],
)
def test_an_instruction_moves_its_measure(
    service: Service, untouched: Pixels, prompt: str, measure: str, least: float
) -> None:
    moved = gain(measure, edited(service, prompt), untouched)
    assert moved * np.sign(least) >= abs(least)


def test_the_readmes_first_instruction_makes_both_edits(
    service: Service, untouched: Pixels
) -> None:
    result = edited(service, "make it warmer and add a subtle vignette")
    assert gain("red_minus_blue", result, untouched) > 0.06
    assert gain("centre_over_corners", result, untouched) > 0.03


def test_black_and_white_has_no_color(service: Service, untouched: Pixels) -> None:
    assert MEASURES["saturation"](untouched) > 0.1
    assert MEASURES["saturation"](edited(service, "convert to black and white")) < 0.03


def test_sepia_is_brown(service: Service) -> None:
    hue = edited(service, "make it sepia").mean((0, 1))
    assert hue[0] > hue[1] > hue[2]


def test_invert_negates_the_luma(service: Service, untouched: Pixels) -> None:
    assert correlation(edited(service, "invert the colors"), untouched) < -0.9


def test_slightly_is_less_and_strongly_is_more(service: Service, untouched: Pixels) -> None:
    less, plain, more = (
        gain("brightness", edited(service, f"{how}darken the image"), untouched)
        for how in ("slightly ", "", "strongly ")
    )
    assert more < plain < less < 0


def test_grain_is_added_and_differs_by_seed(service: Service, untouched: Pixels) -> None:
    one, other = (edited(service, "add film grain", seed=seed) for seed in (1, 2))
    added: list[npt.NDArray[np.float32]] = [fine(made) - fine(untouched) for made in (one, other)]
    assert min(float(texture.std()) for texture in added) > 0.03
    assert abs(float(np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1])) < 0.5


def test_the_readmes_example_request_works(service: Service, untouched: Pixels) -> None:
    result = service.edit(**BRIEF)
    meta = result["meta"]
    assert meta["model"] == "retouch-demo"
    assert any("guidance" in note for note in meta["notes"])
    assert any("small demo model" in note for note in meta["notes"])
    smooth = service.edit(**{**BRIEF, "prompt": "make colors warmer"})
    made, warmer = (
        to_pixels(Image.open(io.BytesIO(opened(each["presigned_url"]).content)))
        for each in (result, smooth)
    )
    assert MEASURES["red_minus_blue"](made) > MEASURES["red_minus_blue"](untouched) + 0.08
    assert float(fine(made).std()) > float(fine(warmer).std())


def test_an_unknown_instruction_hardly_changes_the_picture(
    service: Service, untouched: Pixels
) -> None:
    assert psnr_db(edited(service, "replace the cat with a dog"), untouched) > 24


@pytest.mark.parametrize("fields", [{}, {"scheduler": "EulerAncestral"}])
def test_the_same_seed_gives_the_same_bytes(service: Service, fields: dict[str, Any]) -> None:
    one, other = (service.edit(prompt="make it warmer", seed=5, **SIZE, **fields) for _ in range(2))
    read: Callable[[dict[str, Any]], bytes] = lambda result: opened(result["presigned_url"]).content  # noqa: E731
    assert read(one) == read(other)
