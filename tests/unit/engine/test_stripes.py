"""Stripes of the autoencoder against the whole image."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.models.tiny import build_tiny_pipeline

from retouch.engine import stripes, vae
from retouch.engine.memory.plan import MAX_AREA_PX, EditShape
from retouch.engine.vae import SingleFrameVae

SIZES = [(256, 64), (208, 48), (32, 160)]


@pytest.fixture
def autoencoder() -> Iterator[SingleFrameVae]:
    with torch.no_grad():
        yield SingleFrameVae(build_tiny_pipeline().vae)


def in_stripes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put every image in stripes of few rows; the returned list gets the rows of each."""
    monkeypatch.setattr(vae, "WHOLE_AREA_PX", 0)
    monkeypatch.setattr(stripes, "STRIPE_AREA_PX", 0)
    heights, run = [], stripes.in_stripes

    def count(work: stripes.Run, whole: torch.Tensor, *, halo: int, row_px: int) -> torch.Tensor:
        def note(stripe: torch.Tensor) -> torch.Tensor:
            heights.append(stripe.shape[-2])
            return work(stripe)

        return run(note, whole, halo=halo, row_px=row_px)

    monkeypatch.setattr(stripes, "in_stripes", count)
    return heights


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_image_encoded_in_stripes_has_the_latents_of_the_whole(
    autoencoder: SingleFrameVae, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    pixels = torch.rand(1, 3, height, width, generator=torch.manual_seed(0)) * 2 - 1
    whole = autoencoder.encode(pixels, torch.device("cpu"))
    heights = in_stripes(monkeypatch)
    found = autoencoder.encode(pixels, torch.device("cpu"))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert len(heights) == height // 16


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_an_image_decoded_in_stripes_has_the_pixels_of_the_whole(
    autoencoder: SingleFrameVae, monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    tokens = torch.randn(1, height * width // 256, 16, generator=torch.manual_seed(0))
    whole = autoencoder.decode(tokens, rows=height // 16)
    heights = in_stripes(monkeypatch)
    found = autoencoder.decode(tokens, rows=height // 16)
    assert found.shape == (1, 3, height, width)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert len(heights) == height // 16


def test_fewer_rows_of_the_neighbours_would_not_do(
    autoencoder: SingleFrameVae, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randn(1, 64, 16, generator=torch.manual_seed(0))
    whole = autoencoder.decode(tokens, rows=16)
    in_stripes(monkeypatch)
    counted = stripes.in_stripes

    def narrow(run: stripes.Run, whole: torch.Tensor, *, halo: int, row_px: int) -> torch.Tensor:
        return counted(run, whole, halo=halo - 2, row_px=row_px)

    monkeypatch.setattr(stripes, "in_stripes", narrow)
    assert (autoencoder.decode(tokens, rows=16) - whole).abs().max() > 1e-4


def test_a_larger_image_never_takes_less_and_the_largest_not_twice_as_much() -> None:
    areas_px = range(1 << 16, MAX_AREA_PX + 1, 1 << 16)
    taken = [replace(EditShape(), area_px=area_px).activation_bytes() for area_px in areas_px]
    assert taken == sorted(taken)
    assert taken[-1] < 2 * EditShape().activation_bytes()
