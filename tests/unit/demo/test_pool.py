"""The training pairs, and the editor that trains on them, at toy size."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.demo.album import make_album

from retouch.demo import autoencoder, build, edits, phrases, texts
from retouch.demo.editor import Editor
from retouch.demo.edits import Change
from retouch.demo.flow import pack, unpack
from retouch.demo.identity_start import start_as_identity
from retouch.demo.pool import PairMaker

GRID = (4, 4)
ASKED = ("add film grain", (Change("grain"),)), ("invert it", (Change("invert"),))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> build.Parts:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build.build(build.Size(base=8, layers=2, heads=6))
        images = make_album(tmp_path_factory.mktemp("start")).crops(16, 96, 96) * 2 - 1
        autoencoder.start_near_linear(made.vae, images)
        start_as_identity(made.transformer)
    made.vae.requires_grad_(requires_grad=False)
    return made


@pytest.fixture
def maker(parts: build.Parts, tmp_path: Path) -> PairMaker:
    torch.manual_seed(1)
    tokens, dice = texts.Tokens(parts.tokenizer), random.Random(1)  # noqa: S311
    mean = torch.linspace(-0.5, 0.5, build.Z).view(1, -1, 1, 1)
    return PairMaker(parts.vae, tokens, make_album(tmp_path), dice, "cpu", mean, 2 + mean)


def test_an_instruction_that_is_too_long_is_drawn_again(
    maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([("make it warmer and " * 20, ()), *ASKED])
    monkeypatch.setattr(phrases, "instruct", lambda _: next(drawn))
    assert maker.instruct() == ASKED[0]


def test_pairs_are_the_latents_of_a_source_and_of_its_exact_edits(
    maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([ASKED[1], ("keep it", ())] * 4)
    monkeypatch.setattr(phrases, "instruct", lambda _: next(drawn))
    pairs, wanted = maker.pairs(2, 64, 64)
    assert torch.equal(pairs.source[0], pairs.source[3])
    assert not torch.equal(pairs.source[3], pairs.source[4])
    assert torch.allclose(pairs.target[1::2].float(), pairs.source[1::2].float(), atol=1e-2)
    assert torch.allclose(wanted[0::2], edits.apply(wanted[1::2], [Change("invert")]))
    encoded = autoencoder.encode(maker.vae, wanted * 2 - 1)
    raw = unpack(pairs.target.float(), GRID) * maker.std + maker.mean
    assert torch.allclose(raw, encoded, atol=1e-2)
    assert not pairs.grain.any()


def test_only_grain_comes_with_the_noise_that_it_is_made_of(
    maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([ASKED[0], ("keep it", ())] * 12)
    monkeypatch.setattr(phrases, "instruct", lambda _: next(drawn))
    pairs, wanted = maker.pairs(6, 64, 64)
    grain = pairs.grain.float()
    told = grain.flatten(1).any(1)
    assert told.nonzero()[:, 0].tolist() == [0, 2, 4, 6]  # a sixth of all at most
    assert grain[told].std((1, 2)).tolist() == pytest.approx([1] * 4, rel=0.01)
    latents = pack(maker.latents(wanted)) - pairs.source
    assert float((latents[told] * grain[told]).mean()) > 0.01
    plain, grainy = wanted[1::2], wanted[0::2]
    once = edits.apply(plain, [Change("grain")])
    assert float((grainy - plain).std()) == pytest.approx(float((once - plain).std()), rel=0.1)


def test_decoding_undoes_encoding_as_far_as_the_autoencoder_can(maker: PairMaker) -> None:
    images = maker.album.crops(4, 64, 64)
    decoded = autoencoder.decode(maker.vae, autoencoder.encode(maker.vae, images * 2 - 1))
    again = maker.pixels(maker.latents(images))
    assert torch.allclose(again, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)


def test_the_editor_learns_the_pairs_it_sees_and_samples_them(
    parts: build.Parts, maker: PairMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phrases, "instruct", lambda _: ASKED[1])
    torch.manual_seed(2)
    pairs, _ = maker.pairs(2, 64, 64)
    pairs.source, pairs.target, pairs.grain = (
        part.float() for part in (pairs.source, pairs.target, pairs.grain)
    )
    editor = Editor(parts, maker, "cpu")
    editor.run((64, 64), replace(pairs, target=pairs.source, grain=pairs.grain + 1))

    def off() -> float:
        torch.manual_seed(3)
        return float((editor.sample(pairs, (64, 64)) - pairs.target).square().mean())

    before = off()
    for _ in range(30):
        loss, _ = editor.run((64, 64), pairs)
    assert loss.isfinite()
    assert off() < 0.5 * before
