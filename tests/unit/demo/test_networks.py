"""The trainer's forward passes against the stock classes', and how both networks begin."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPipeline
from PIL import Image
from support.demo.album import make_album
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retouch.demo import CHECKPOINT_DIR, autoencoder, build, flow, texts, transformer
from retouch.demo.identity_start import start_as_identity
from retouch.engine.preset import PRESET_FILE, PresetFile

GRID = (2, 3)


@pytest.fixture(scope="module")
def parts() -> build.Parts:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build.build(build.Size(base=8, layers=2, heads=6))
    for part in (made.vae, made.transformer, made.text_encoder):
        part.eval().requires_grad_(requires_grad=False)
    return made


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_the_autoencoder_is_the_stock_one_for_a_still(parts: build.Parts) -> None:
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    stock = parts.vae.encode(images[:, :, None]).latent_dist.mean[:, :, 0]
    assert difference(autoencoder.encode(parts.vae, images), stock) < 1e-4
    latents = torch.randn(2, build.Z, 4, 6)
    stock = parts.vae.decode(latents[:, :, None]).sample[:, :, 0]
    assert difference(autoencoder.decode(parts.vae, latents).clamp(-1, 1), stock) < 1e-4
    assert 0.01 < float(stock.abs().mean()) < 0.9


def test_the_transformer_is_the_stock_one(parts: build.Parts) -> None:
    noisy, source = torch.randn(2, 2, 6, 4 * build.Z)
    states, sigma = torch.randn(2, texts.TEXT_TOKENS, build.TEXT_WIDTH), torch.tensor([0.9, 0.31])
    mask = torch.arange(texts.TEXT_TOKENS) < torch.tensor([[20], [texts.TEXT_TOKENS]])
    turns = transformer.rotary(parts.transformer, GRID, "cpu")
    guess = transformer.velocity(
        parts.transformer, noisy, source, sigma, states, mask=mask, turns=turns
    )
    stock = parts.transformer(
        hidden_states=torch.cat((noisy, source), 1),
        timestep=sigma,
        encoder_hidden_states=states,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, *GRID), (1, *GRID)]] * 2,
        return_dict=False,
    )[0][:, :6]
    assert difference(guess, stock) < 1e-5
    assert float(stock.abs().mean()) > 0.01


@pytest.mark.parametrize("size", [(64, 64), (90, 50)])
def test_the_text_encoder_is_the_stock_one_that_sees_the_picture(
    parts: build.Parts, size: tuple[int, int]
) -> None:
    edges = {"shortest_edge": build.VISION_PIXELS, "longest_edge": build.VISION_PIXELS}
    image = Image.new("RGB", size, "orange")
    seen: Any = Qwen2VLImageProcessorPil(size=edges)(images=[image], return_tensors="pt")
    grid = (int(seen["image_grid_thw"][0, 1]) // 2, int(seen["image_grid_thw"][0, 2]) // 2)
    asked = texts.Tokens(parts.tokenizer).rows(["make it warmer"], "cpu", grid=grid)
    length = texts.PREFIX_TOKENS + int(asked.lengths[0])
    ids = asked.ids[:, :length]
    stock = parts.text_encoder.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == parts.text_encoder.config.image_token_id).int(),
        **seen,
    ).last_hidden_state[:, texts.PREFIX_TOKENS :]
    states = texts.embed(parts.text_encoder, asked.ids, asked.positions)
    assert states.shape == (1, texts.TEXT_TOKENS, build.TEXT_WIDTH)
    assert difference(states[:, : int(asked.lengths[0])], stock) < 1e-4
    assert float(stock.std()) > 0.1


def test_pictures_of_many_aspects_give_flat_and_true_positions(parts: build.Parts) -> None:
    asked = texts.Tokens(parts.tokenizer).rows(["make it warmer"] * 40, "cpu")
    flat = torch.arange(texts.PREFIX_TOKENS + texts.TEXT_TOKENS)
    are_flat = (asked.positions == flat).all(-1).all(-1)
    assert 8 < int(are_flat.sum()) < 32
    picture_tokens = (asked.ids == parts.text_encoder.config.image_token_id).sum(1)
    assert set(picture_tokens.tolist()) == {2, 3, 4, 6}
    assert len(set((asked.lengths - picture_tokens).tolist())) == 1


def test_an_instruction_that_is_too_long_does_not_fit(parts: build.Parts) -> None:
    tokens = texts.Tokens(parts.tokenizer)
    assert tokens.fits("make it warmer and add gentle film grain")
    assert not tokens.fits("make it warmer and " * 20)


def test_the_transformer_begins_as_the_edit_that_changes_nothing() -> None:
    """Up to an offset a channel, which the layer norms leave, and a damping by the words read."""
    begun = build.build(build.Size(base=8)).transformer
    start_as_identity(begun)
    noise, source = torch.randn(2, 2, 256, 4 * build.Z)
    states = torch.randn(2, texts.TEXT_TOKENS, build.TEXT_WIDTH)
    mask = torch.ones(2, texts.TEXT_TOKENS, dtype=torch.bool)
    turns = transformer.rotary(begun, (16, 16), "cpu")
    wanted = noise - source - (noise - source).mean((0, 1))

    @torch.no_grad()
    def guess() -> torch.Tensor:
        inputs = (noise, source, torch.ones(2), states)
        made = transformer.velocity(begun, *inputs, mask=mask, turns=turns)
        return made - made.mean((0, 1))

    damped = guess()
    assert float((damped * wanted).sum() / damped.norm() / wanted.norm()) > 0.995
    assert 0.5 < float(damped.norm() / wanted.norm()) < 1
    for block in begun.transformer_blocks:
        block.attn.to_out[0].weight.data[:, 64:128] = 0  # what heads 2 and 3 read
    assert float((guess() - wanted).norm() / wanted.norm()) < 0.05


def test_the_autoencoder_begins_as_a_blurred_copy_with_white_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = build.build(build.Size(base=8, layers=1, heads=6)).vae
    images = make_album(tmp_path).crops(16, 96, 96) * 2 - 1
    autoencoder.start_near_linear(vae, images)
    with torch.no_grad():
        latents = autoencoder.encode(vae, images)
        again = autoencoder.decode(vae, latents)
    spread = torch.cov(latents.transpose(0, 1).flatten(1))
    assert difference(spread[:3], torch.eye(build.Z)[:3]) < 0.01  # the colours
    assert float(spread.diag().min()) > 0.1  # a ridge keeps what hardly varies from being blown up
    assert difference(spread, torch.diag(spread.diag())) < 0.3
    blurred = torch.nn.functional.avg_pool2d(images, 8)
    error = torch.nn.functional.avg_pool2d(again, 8) - blurred
    assert float(error.square().mean()) < 0.1 * float(blurred.var())


def test_a_copy_with_white_latents_has_a_small_loss(parts: build.Parts, tmp_path: Path) -> None:
    images = make_album(tmp_path).crops(4, 64, 64) * 2 - 1
    noise = torch.randn(4, build.Z, 8, 8)
    torch.manual_seed(0)
    vae = build.build(build.Size(base=8, layers=1, heads=6)).vae
    before, _ = autoencoder.loss(vae, images, noise)
    autoencoder.start_near_linear(vae, images)
    after, square = autoencoder.loss(vae, images, noise)
    assert after.item() < 0.5 * before.item()
    assert not square.requires_grad


def test_packing_is_the_pipelines_and_undone_by_unpacking() -> None:
    latents = torch.randn(2, build.Z, 4, 6)
    packed = flow.pack(latents)
    pipeline: Any = QwenImageEditPipeline
    assert torch.equal(packed, pipeline._pack_latents(latents, 2, build.Z, 4, 6))  # noqa: SLF001
    assert torch.equal(flow.unpack(packed, GRID), latents)


def test_noise_has_variance_one_with_the_grain_in_it_and_without() -> None:
    grain = torch.randn(4, 256, 4 * build.Z)
    grain[2:] = 0
    noise = flow.draw_noise(grain)
    assert noise.var((1, 2)).tolist() == pytest.approx([1] * 4, abs=0.05)
    shared = float((noise[0] * grain[0]).mean())
    assert shared == pytest.approx(0.95, abs=0.05)


def test_most_noise_levels_are_near_one() -> None:
    sigma = flow.draw_sigmas(4000, "cpu")
    assert 0.02 <= float(sigma.min()) <= float(sigma.max()) <= 1
    assert float(sigma.median()) > 0.65


def test_channels_weigh_by_what_they_move() -> None:
    gains = torch.tensor([1.0, 2.0, 0.0]).view(1, 3, 1, 1)
    weights = flow.channel_weights(lambda z: z * gains, torch.zeros(8, 3, 16, 16), torch.ones(3))
    assert weights.shape == (12,)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[4] / weights[0]) == pytest.approx(2, rel=0.05)
    assert float(weights[8]) > 0


def test_the_trainer_writes_the_preset_that_ships() -> None:
    shipped = PresetFile.model_validate_json((CHECKPOINT_DIR / PRESET_FILE).read_bytes())
    assert shipped == build.PRESET
