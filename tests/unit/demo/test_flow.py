import pytest
import torch

from retouch.demo import flow


def test_unpacking_undoes_packing() -> None:
    latents = torch.randn(2, 16, 4, 6)
    packed = flow.pack(latents)
    assert packed.shape == (2, 6, 64)
    assert torch.equal(flow.unpack(packed, (2, 3)), latents)


def test_noise_has_variance_one_with_grain_and_without() -> None:
    torch.manual_seed(1)
    grain = torch.randn(4, 256, 64)
    grain[2:] = 0
    noise = flow.sample_noise(grain)
    assert noise.var((1, 2)).tolist() == pytest.approx([1] * 4, abs=0.05)
    assert float((noise[0] * grain[0]).mean()) == pytest.approx(0.95, abs=0.05)


def test_most_noise_levels_are_near_one() -> None:
    torch.manual_seed(1)
    sigma = flow.sample_sigmas(4000, "cpu")
    assert 0.02 <= float(sigma.min()) <= float(sigma.max()) <= 1
    assert float(sigma.median()) > 0.65


def test_channels_are_weighted_by_their_effect_on_pixels() -> None:
    torch.manual_seed(1)
    gains = torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1, 1)
    weights = flow.channel_weights(lambda z: z * gains, torch.zeros(8, 3, 16, 16), torch.ones(3))
    assert weights.shape == (12,)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[4] / weights[0]) == pytest.approx(2, rel=0.05)
    assert float(weights[8]) > 0
