"""The autoencoder for still images against upstream's, which is made for video."""

from typing import Any

import pytest
import torch
from support.models.tiny import build_tiny_pipeline

from retouch.engine.single_frame import make_still

pytestmark = pytest.mark.e2e


@pytest.fixture
def pair() -> tuple[Any, Any]:
    stock, still = build_tiny_pipeline().vae, build_tiny_pipeline().vae
    make_still(still)
    return stock, still


@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 32), (80, 48)])
@torch.no_grad()
def test_it_encodes_as_upstream_does(pair: tuple[Any, Any], height: int, width: int) -> None:
    pixels = torch.rand(1, 3, 1, height, width, generator=torch.manual_seed(0)) * 2 - 1
    stock, still = (vae.encode(pixels).latent_dist.mode() for vae in pair)
    torch.testing.assert_close(still, stock, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 4), (10, 6)])
@torch.no_grad()
def test_it_decodes_as_upstream_does(pair: tuple[Any, Any], height: int, width: int) -> None:
    latents = torch.randn(1, 4, 1, height, width, generator=torch.manual_seed(0))
    stock, still = (vae.decode(latents, return_dict=False)[0] for vae in pair)
    assert still.abs().max() <= 1
    torch.testing.assert_close(still, stock, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_it_keeps_nothing_of_an_image(pair: tuple[Any, Any]) -> None:
    _, still = pair
    still.decode(torch.zeros(1, 4, 1, 4, 4))
    assert not any(isinstance(kept, torch.Tensor) for kept in getattr(still, "_feat_map", []))
