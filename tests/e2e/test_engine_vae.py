"""The single-frame autoencoder against upstream's, which is made for video."""

from typing import Any

import pytest
import torch
from support.models.tiny import build_tiny_pipeline

from retouch.engine.vae import SingleFrameVae, pack, unpack

pytestmark = pytest.mark.e2e


@pytest.fixture
def pair() -> tuple[Any, SingleFrameVae]:
    return build_tiny_pipeline().vae, SingleFrameVae(build_tiny_pipeline().vae)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 32), (80, 48)])
@torch.no_grad()
def test_it_encodes_as_upstream_does(
    pair: tuple[Any, SingleFrameVae], height: int, width: int
) -> None:
    stock, single = pair
    pixels = torch.rand(1, 3, height, width, generator=torch.manual_seed(0)) * 2 - 1
    latents = stock.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]
    tokens = single.encode(pixels, torch.device("cpu"))
    torch.testing.assert_close(tokens, pack(latents), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 4), (10, 6)])
@torch.no_grad()
def test_it_decodes_as_upstream_does(
    pair: tuple[Any, SingleFrameVae], height: int, width: int
) -> None:
    stock, single = pair
    latents = torch.randn(1, 4, height, width, generator=torch.manual_seed(0))
    pixels = stock.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]
    found = single.decode(pack(latents), rows=height // 2)
    assert found.abs().max() <= 1
    torch.testing.assert_close(found, pixels, rtol=1e-5, atol=1e-5)


def test_packing_is_undone() -> None:
    latents = torch.randn(1, 4, 6, 10)
    assert torch.equal(unpack(pack(latents), rows=3), latents)
