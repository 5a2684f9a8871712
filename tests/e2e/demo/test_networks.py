"""The trainer's forward passes against the stock classes', and the initial networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPipeline
from PIL import Image
from support.demo.album import make_album
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retouch.demo import autoencoder, build, flow, prompts, transformer
from retouch.demo.identity_init import init_as_identity

pytestmark = pytest.mark.e2e

GRID = (2, 3)


@pytest.fixture(scope="module")
def components() -> build.Components:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        built = build.build(build.ModelSize(base=8, layers=2, heads=6))
    for network in (built.vae, built.transformer, built.text_encoder):
        network.eval().requires_grad_(requires_grad=False)
    return built


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def test_the_autoencoder_equals_the_stock_one_for_a_still(components: build.Components) -> None:
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    stock = components.vae.encode(images[:, :, None]).latent_dist.mean[:, :, 0]
    assert difference(autoencoder.encode(components.vae, images), stock) < 1e-4
    latents = torch.randn(2, build.Z, 4, 6)
    stock = components.vae.decode(latents[:, :, None]).sample[:, :, 0]
    assert difference(autoencoder.decode(components.vae, latents).clamp(-1, 1), stock) < 1e-4
    assert 0.01 < float(stock.abs().mean()) < 0.9


def test_the_transformer_equals_the_stock_one(components: build.Components) -> None:
    noisy, source = torch.randn(2, 2, 6, 4 * build.Z)
    states, sigma = (
        torch.randn(2, prompts.PROMPT_TOKENS, build.TEXT_WIDTH),
        torch.tensor([0.9, 0.31]),
    )
    mask = torch.arange(prompts.PROMPT_TOKENS) < torch.tensor([[20], [prompts.PROMPT_TOKENS]])
    rotary = transformer.rotary_embedding(components.transformer, GRID, "cpu")
    predicted = transformer.velocity(
        components.transformer, noisy, source, sigma, states, mask=mask, rotary=rotary
    )
    stock = components.transformer(
        hidden_states=torch.cat((noisy, source), 1),
        timestep=sigma,
        encoder_hidden_states=states,
        encoder_hidden_states_mask=mask,
        img_shapes=[[(1, *GRID), (1, *GRID)]] * 2,
        return_dict=False,
    )[0][:, :6]
    assert difference(predicted, stock) < 1e-5
    assert float(stock.abs().mean()) > 0.01


@pytest.mark.parametrize("size", [(64, 64), (90, 50)])
def test_the_text_encoder_equals_the_stock_one_with_the_image(
    components: build.Components, size: tuple[int, int]
) -> None:
    edges = {"shortest_edge": build.VISION_PIXELS, "longest_edge": build.VISION_PIXELS}
    image = Image.new("RGB", size, "orange")
    inputs: Any = Qwen2VLImageProcessorPil(size=edges)(images=[image], return_tensors="pt")
    grid = (int(inputs["image_grid_thw"][0, 1]) // 2, int(inputs["image_grid_thw"][0, 2]) // 2)
    batch = prompts.PromptTokenizer(components.tokenizer).tokenize(
        ["make it warmer"], "cpu", grid=grid
    )
    length = prompts.PREFIX_TOKENS + int(batch.lengths[0])
    ids = batch.ids[:, :length]
    stock = components.text_encoder.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == components.text_encoder.config.image_token_id).int(),
        **inputs,
    ).last_hidden_state[:, prompts.PREFIX_TOKENS :]
    states = prompts.encode(components.text_encoder, batch.ids, batch.positions)
    assert states.shape == (1, prompts.PROMPT_TOKENS, build.TEXT_WIDTH)
    assert difference(states[:, : int(batch.lengths[0])], stock) < 1e-4
    assert float(stock.std()) > 0.1


def test_the_initial_transformer_changes_nothing() -> None:
    """Up to an offset per channel from the layer norms, and a damping from the text read."""
    initial = build.build(build.ModelSize(base=8, layers=2)).transformer
    init_as_identity(initial)
    noise, source = torch.randn(2, 2, 256, 4 * build.Z)
    states = torch.randn(2, prompts.PROMPT_TOKENS, build.TEXT_WIDTH)
    mask = torch.ones(2, prompts.PROMPT_TOKENS, dtype=torch.bool)
    rotary = transformer.rotary_embedding(initial, (16, 16), "cpu")
    wanted = noise - source - (noise - source).mean((0, 1))

    @torch.no_grad()
    def predict() -> torch.Tensor:
        inputs = (noise, source, torch.ones(2), states)
        predicted = transformer.velocity(initial, *inputs, mask=mask, rotary=rotary)
        return predicted - predicted.mean((0, 1))

    damped = predict()
    assert float((damped * wanted).sum() / damped.norm() / wanted.norm()) > 0.995
    assert 0.5 < float(damped.norm() / wanted.norm()) < 1
    for block in initial.transformer_blocks:
        block.attn.to_out[0].weight.data[:, 64:128] = 0  # the heads that read the text
    assert float((predict() - wanted).norm() / wanted.norm()) < 0.05


def test_the_initial_autoencoder_is_a_blurred_copy_with_white_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = build.build(build.ModelSize(base=8, layers=1, heads=6)).vae
    images = make_album(tmp_path).crops(16, 96, 96) * 2 - 1
    autoencoder.init_near_linear(vae, images)
    with torch.no_grad():
        latents = autoencoder.encode(vae, images)
        decoded = autoencoder.decode(vae, latents)
    spread = torch.cov(latents.transpose(0, 1).flatten(1))
    assert difference(spread[:3], torch.eye(build.Z)[:3]) < 0.01  # the colours
    assert float(spread.diag().min()) > 0.1  # the ridge limits the gain of constant latents
    assert difference(spread, torch.diag(spread.diag())) < 0.3
    blurred = torch.nn.functional.avg_pool2d(images, 8)
    error = torch.nn.functional.avg_pool2d(decoded, 8) - blurred
    assert float(error.square().mean()) < 0.1 * float(blurred.var())


def test_the_initial_autoencoder_has_a_small_loss(
    components: build.Components, tmp_path: Path
) -> None:
    images = make_album(tmp_path).crops(4, 64, 64) * 2 - 1
    noise = torch.randn(4, build.Z, 8, 8)
    torch.manual_seed(0)
    vae = build.build(build.ModelSize(base=8, layers=1, heads=6)).vae
    before, _ = autoencoder.loss(vae, images, noise)
    autoencoder.init_near_linear(vae, images)
    after, square = autoencoder.loss(vae, images, noise)
    assert after.item() < 0.5 * before.item()
    assert not square.requires_grad


def test_packing_equals_the_pipelines() -> None:
    latents = torch.randn(2, build.Z, 4, 6)
    pipeline: Any = QwenImageEditPipeline
    stock = pipeline._pack_latents(latents, 2, build.Z, 4, 6)  # noqa: SLF001 - diffusers' own
    assert torch.equal(flow.pack(latents), stock)
