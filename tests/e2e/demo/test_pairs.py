"""Training pairs, and the model that trains on them, at toy size."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.demo.album import make_album

from retouch.demo import autoencoder, build, edits, phrases
from retouch.demo.edit_model import EditModel
from retouch.demo.edits import Change
from retouch.demo.flow import pack, unpack
from retouch.demo.identity_init import init_as_identity
from retouch.demo.pool import PairMaker
from retouch.demo.prompts import PromptTokenizer

pytestmark = pytest.mark.e2e

GRID = (4, 4)
GRAIN, INVERT = ("add film grain", (Change("grain"),)), ("invert it", (Change("invert"),))
UNCHANGED = ("keep it", ())
Drawn = tuple[str, tuple[Change, ...]]


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> build.Components:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build.build(build.ModelSize(base=8, layers=2, heads=6))
        images = make_album(tmp_path_factory.mktemp("initial")).crops(16, 96, 96) * 2 - 1
        autoencoder.init_near_linear(built.vae, images)
        init_as_identity(built.transformer)
    built.vae.requires_grad_(requires_grad=False)
    return built


@pytest.fixture
def maker(components: build.Components, tmp_path: Path) -> PairMaker:
    torch.manual_seed(1)
    tokenizer, rng = PromptTokenizer(components.tokenizer), random.Random(1)  # noqa: S311
    mean = torch.linspace(-0.5, 0.5, build.Z).view(1, -1, 1, 1)
    album = make_album(tmp_path)
    return PairMaker(components.vae, tokenizer, album, rng, "cpu", mean, 2 + mean)


def draw_only(monkeypatch: pytest.MonkeyPatch, *drawn: Drawn) -> None:
    queue = iter(drawn)
    monkeypatch.setattr(phrases, "draw_instruction", lambda _: next(queue))


def test_an_instruction_that_is_too_long_is_drawn_again(
    maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_only(monkeypatch, ("make it warmer and " * 20, ()), GRAIN)
    assert maker.draw_instruction() == GRAIN


def test_pairs_are_the_latents_of_a_source_and_of_its_exact_edits(
    maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_only(monkeypatch, *[INVERT, UNCHANGED] * 4)
    pairs, exact = maker.pairs(2, 64, 64)
    assert torch.equal(pairs.source[0], pairs.source[3])
    assert not torch.equal(pairs.source[3], pairs.source[4])
    assert torch.allclose(pairs.target[1::2].float(), pairs.source[1::2].float(), atol=1e-2)
    assert torch.allclose(exact[0::2], edits.apply(exact[1::2], [Change("invert")]))
    encoded = autoencoder.encode(maker.vae, exact * 2 - 1)
    raw = unpack(pairs.target.float(), GRID) * maker.std + maker.mean
    assert torch.allclose(raw, encoded, atol=1e-2)
    assert not pairs.grain.any()


def test_only_grainy_pairs_hold_the_noise_of_their_grain(
    maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_only(monkeypatch, *[GRAIN, UNCHANGED] * 12)
    pairs, exact = maker.pairs(6, 64, 64)
    grain = pairs.grain.float()
    has_grain = grain.flatten(1).any(1)
    assert has_grain.nonzero()[:, 0].tolist() == [0, 2, 4, 6]  # at most a sixth of all pairs
    assert grain[has_grain].std((1, 2)).tolist() == pytest.approx([1] * 4, rel=0.01)
    latents = pack(maker.latents(exact)) - pairs.source
    assert float((latents[has_grain] * grain[has_grain]).mean()) > 0.01
    plain, grainy = exact[1::2], exact[0::2]
    once = edits.apply(plain, [Change("grain")])
    assert float((grainy - plain).std()) == pytest.approx(float((once - plain).std()), rel=0.1)


def test_decoding_undoes_encoding_up_to_the_autoencoders_error(maker: PairMaker) -> None:
    images = maker.album.crops(4, 64, 64)
    decoded = autoencoder.decode(maker.vae, autoencoder.encode(maker.vae, images * 2 - 1))
    pixels = maker.pixels(maker.latents(images))
    assert torch.allclose(pixels, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_the_model_learns_the_pairs_it_sees_and_samples_them(
    components: build.Components, maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_only(monkeypatch, *[INVERT] * 8)
    torch.manual_seed(2)
    pairs, _ = maker.pairs(2, 64, 64)
    source, target, grain = (part.float() for part in (pairs.source, pairs.target, pairs.grain))
    pairs = replace(pairs, source=source, target=target, grain=grain)
    model = EditModel(components, maker, "cpu")
    model.train_step((64, 64), replace(pairs, target=source, grain=grain + 1))

    def sampling_error() -> float:
        torch.manual_seed(3)
        return float((model.sample(pairs, (64, 64)) - target).square().mean())

    before = sampling_error()
    for _ in range(30):
        loss, _ = model.train_step((64, 64), pairs)
    assert loss.isfinite()
    assert sampling_error() < 0.5 * before
