from typing import Any

import pytest
import torch
from support.models.tiny import build_tiny_pipeline, keep_resident

from retouch.engine import modulation
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationCache, ModulationTable

TIMESTEPS = torch.tensor([1000.0, 731.25, 20.5])


@pytest.fixture
def weights() -> Weights:
    pipe = build_tiny_pipeline()
    parts = {name: getattr(pipe, name) for name in ("transformer", "vae", "text_encoder")}
    return keep_resident(**parts)


def compute(weights: Weights, timesteps: torch.Tensor = TIMESTEPS) -> ModulationTable:
    with torch.no_grad():
        return ModulationCache(weights).get(timesteps)


def embed(transformer: Any, timestep: torch.Tensor) -> torch.Tensor:
    times = timestep.expand(1) / 1000
    if transformer.config.zero_cond_t:
        times = torch.cat([times, times * 0])
    return transformer.time_text_embed(times, transformer.img_in.weight)


@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_table_is_what_the_model_computes(
    weights: Weights, zero_cond_t: bool, dtype: torch.dtype
) -> None:
    transformer = weights.transformer.to(dtype)
    transformer.register_to_config(zero_cond_t=zero_cond_t)
    table = compute(weights)
    for step, timestep in enumerate(TIMESTEPS):
        moment = embed(transformer, timestep)
        for index, block in enumerate(transformer.transformer_blocks):
            for kind, mod, rows in (
                ("image", block.img_mod, moment),
                ("text", block.txt_mod, moment[:1]),
            ):
                expected = list(mod(rows).chunk(6, dim=-1))
                expected[1], expected[4] = 1 + expected[1], 1 + expected[4]
                found = getattr(table, kind)[step, index]
                torch.testing.assert_close(found, torch.stack(expected))
        scale, shift = transformer.norm_out.linear(torch.nn.functional.silu(moment[:1])).chunk(
            2, dim=-1
        )
        torch.testing.assert_close(table.last[step], torch.stack([1 + scale, shift]))


def test_a_schedule_is_computed_once_and_the_oldest_dropped_by_bytes(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_bytes = compute(weights, TIMESTEPS[:1]).size_bytes
    monkeypatch.setattr(modulation, "MAX_TABLE_BYTES", 4 * step_bytes)
    passed: list[int] = []
    bring = weights.modulations
    monkeypatch.setattr(weights, "modulations", lambda: passed.append(1) or bring())
    tables = ModulationCache(weights)

    def count(steps: int) -> int:
        passed.clear()
        with torch.no_grad():
            tables.get(TIMESTEPS[:steps])
        return len(passed)

    assert [count(n) for n in (1, 2, 1, 3, 1, 2)] == [1, 1, 0, 1, 0, 1]


def test_weights_of_another_precision_have_another_table(weights: Weights) -> None:
    tables = ModulationCache(weights)
    with torch.no_grad():
        wide = tables.get(TIMESTEPS)
        weights.transformer.to(torch.bfloat16)
        narrow = tables.get(TIMESTEPS)
    assert (wide.image.dtype, narrow.image.dtype) == (torch.float32, torch.bfloat16)


def test_weights_of_the_files_precision_give_the_table_of_the_models(weights: Weights) -> None:
    weights.transformer.to(torch.bfloat16)
    blocks = weights.transformer.transformer_blocks
    for stored, dtype in ((torch.bfloat16, torch.float32), (torch.bfloat16, torch.float16)):
        weights.transformer.to(dtype)
        converted = compute(weights)
        for block in blocks:
            block.img_mod.to(stored)
            block.txt_mod.to(stored)
        kept = compute(weights)
        assert torch.equal(kept.image, converted.image)
        assert torch.equal(kept.text, converted.text)
        assert kept.image.dtype == dtype


def test_weights_on_another_device_are_copied_there(weights: Weights) -> None:
    """`meta` stands for a device that is not where the weights are."""
    linear = weights.transformer.transformer_blocks[0].img_mod[-1]
    copied = modulation.linear_on(linear, torch.device("meta"), torch.float16)
    assert copied.weight.device.type == copied.bias.device.type == "meta"
    assert copied.weight.dtype == torch.float16
    assert copied.weight.shape == linear.weight.shape
    assert linear.weight.device.type == "cpu"
