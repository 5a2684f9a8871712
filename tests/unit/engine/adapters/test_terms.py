"""Low-rank terms beside the weights equal adapters merged into them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.adapters import (
    SHAPES,
    draw,
    largest_difference,
    load,
    merge_exactly,
    name_adapter,
)
from support.models.reference_edits import IMAGE, WORK as SMALL
from support.models.streamed import stream_everything
from support.models.tiny import PRESET, build_engine, build_tiny_pipeline

from retouch.editing.adapters import resolve_adapters
from retouch.editing.ports import EditParams
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.adapters.read import LowRank
from retouch.engine.adapters.terms import RANKS, block_layers, build_terms, count_bytes, pad_rank
from retouch.engine.engine import QwenEngine
from retouch.engine.precision import RESIDUAL_SCALE, residual_scale, scale_norms
from retouch.schema import Lora

BASE = build_engine(build_tiny_pipeline())
WORK = replace(SMALL, steps=1, width_px=64, height_px=48)
PREPARED = BASE.prepare([IMAGE.resize((48, 32))], WORK)
with torch.no_grad():  # the same for all engines here: only their transformers differ
    TEXTS, IMAGES = BASE.encode_prompts(PREPARED.inputs), BASE.encode_images(PREPARED.inputs)


def ask(adapters: LoadedAdapters, **scales: float) -> EditParams:
    loras = [Lora(name=name, scale=scale) for name, scale in scales.items()]
    return replace(WORK, loras=resolve_adapters(loras, adapters.info))


def denoise(engine: QwenEngine, work: EditParams) -> torch.Tensor:
    with torch.no_grad():
        return engine.denoise(replace(PREPARED, params=work), TEXTS, IMAGES)


def merged(*adapters: tuple[Any, float]) -> torch.Tensor:
    """Denoise with adapters merged into the weights."""
    pipe = build_tiny_pipeline()
    for pairs, scale in adapters:
        merge_exactly(pipe.transformer, pairs, scale)
    return denoise(build_engine(pipe), WORK)


PLAIN = denoise(BASE, WORK)


@pytest.mark.parametrize(
    "only", ["", "attn", "mlp", "_mod", "img_in", "txt_in", "time_text", "out"]
)
def test_an_adapter_of_any_layers_equals_it_merged(only: str, tmp_path: Path) -> None:
    pairs = draw(only=only)
    adapters = load(name_adapter(tmp_path, "a", pairs))
    found = denoise(build_engine(build_tiny_pipeline(), adapters=adapters), ask(adapters, a=0.7))
    expected = merged((pairs, 0.7))
    assert largest_difference(found, expected) < 1e-5
    assert largest_difference(PLAIN, expected) > 1e-3


def test_two_adapters_of_different_ranks_and_layers_add_up(tmp_path: Path) -> None:
    one, other = draw(rank=3, only="attn"), draw(rank=20, seed=2)
    adapters = load(name_adapter(tmp_path, "one", one), name_adapter(tmp_path, "other", other))
    engine = build_engine(build_tiny_pipeline(), adapters=adapters)
    found = denoise(engine, ask(adapters, one=-1.0, other=0.5))
    assert largest_difference(found, merged((one, -1.0), (other, 0.5))) < 1e-5


def test_a_scale_of_zero_and_no_adapter_are_the_same_bits(tmp_path: Path) -> None:
    adapters = load(name_adapter(tmp_path, "a", draw()))
    engine = build_engine(build_tiny_pipeline(), adapters=adapters)
    assert torch.equal(denoise(engine, ask(adapters, a=0.0)), PLAIN)
    changed = denoise(engine, ask(adapters, a=1.0))
    assert torch.equal(denoise(engine, ask(adapters)), PLAIN)
    assert torch.equal(denoise(engine, ask(adapters, a=1.0)), changed)


def test_streamed_and_resident_weights_give_the_same_bits(tmp_path: Path) -> None:
    adapters = load(name_adapter(tmp_path, "a", draw()))
    work = ask(adapters, a=1.0)
    resident = denoise(build_engine(build_tiny_pipeline(), adapters=adapters), work)
    pipe = build_tiny_pipeline()
    streamed = build_engine(pipe, stream_everything(pipe), preset=PRESET, adapters=adapters)
    assert torch.equal(denoise(streamed, work), resident)


def test_weights_scaled_for_float16_get_terms_of_the_same_scale(tmp_path: Path) -> None:
    """In float32, where the scaling alone can be seen."""
    pairs = draw()
    pipe = build_tiny_pipeline()

    def factor(layer: str) -> float:
        return residual_scale(f"transformer.{layer}.weight", torch.float16)

    for name, parameter in pipe.transformer.named_parameters():
        parameter.data *= factor(name.rpartition(".")[0])
    scale_norms(pipe.transformer)
    adapters = load(name_adapter(tmp_path, "a", pairs), weight_factor=factor)
    found = denoise(build_engine(pipe, adapters=adapters), ask(adapters, a=1.0))
    assert largest_difference(found, merged((pairs, 1.0))) < 1e-4


def test_in_float16_both_factors_are_normal_numbers_and_their_product_is_the_update(
    tmp_path: Path,
) -> None:
    pairs = draw(only="img_mlp.net.2")
    down, up = pairs["transformer_blocks.0.img_mlp.net.2"]
    adapters = load(name_adapter(tmp_path, "a", pairs), weight_factor=lambda _: 1 / RESIDUAL_SCALE)
    terms = adapters.get_terms(ask(adapters, a=0.1).loras, torch.ones(1, dtype=torch.float16))
    half_down, half_up = terms.of_block(0)["img_mlp.net.2"]
    for part in (half_down[:4], half_up[:, :4]):
        assert part.dtype == torch.float16
        assert float(part.abs().max()) > 1e-3
    exact = 0.1 / RESIDUAL_SCALE * (up @ down)
    product = half_up.float() @ half_down.float()
    assert float((product - exact).norm() / exact.norm()) < 2e-3


def test_the_terms_of_an_edit_are_kept_for_the_next_with_the_same_adapters(tmp_path: Path) -> None:
    adapters = load(name_adapter(tmp_path, "a", draw()))
    like = torch.ones(1)
    first = adapters.get_terms(ask(adapters, a=1.0).loras, like)
    assert adapters.get_terms(ask(adapters, a=1.0).loras, like) is first
    assert adapters.get_terms(ask(adapters, a=0.5).loras, like) is not first
    narrow = adapters.get_terms(ask(adapters, a=1.0).loras, like.bfloat16())
    assert narrow.of_block(0)["attn.to_q"][0].dtype == torch.bfloat16


def test_the_bytes_that_the_plan_counts_are_those_of_the_terms(tmp_path: Path) -> None:
    adapters = load(
        name_adapter(tmp_path, "a", draw(rank=4, only="attn")),
        name_adapter(tmp_path, "b", draw(rank=20, seed=2, only="attn")),
    )
    terms = adapters.get_terms(
        ask(adapters, a=1.0, b=1.0).loras, torch.ones(1, dtype=torch.bfloat16)
    )
    bytes_ = sum(
        part.nbytes
        for index in range(2)
        for term in terms.of_block(index).values()
        for part in term
    )
    assert (
        adapters.terms_bytes == bytes_ == count_bytes(SHAPES, block_layers(draw(only="attn")), 24)
    )
    assert load().terms_bytes == 0


def test_updates_of_wide_layers_of_any_rank_reach_their_own_block_and_no_other() -> None:
    """Wide enough that the terms of the blocks are not made all at once."""
    shape, ranks = (4096, 4096), {0: 1, 2: 1, 3: 5, 5: 300}
    names = {block: f"transformer_blocks.{block}.attn.to_q" for block in range(6)}
    layers = {
        names[block]: LowRank(torch.randn(rank, 4096), torch.randn(4096, rank), alpha=rank * 0.5)
        for block, rank in ranks.items()
    }
    terms = build_terms(
        [(layers, 2.0), (dict(list(layers.items())[:1]), -1.0)],
        dict.fromkeys(names.values(), shape),
        ["attn.to_q"],
        weight_factor=lambda name: 3.0 if name == names[3] else 1.0,
        like=torch.ones(1),
        key=("these",),
    )
    total = {0: 0.5, 2: 1.0, 3: 3.0, 5: 1.0}
    rows = torch.randn(2, 4096)
    for block, name in names.items():
        down, up = terms.of_block(block)["attn.to_q"]
        found = rows @ down.t() @ up.t()
        assert len(down) == 512
        if layer := layers.get(name):
            expected = total[block] * (rows @ layer.down.t() @ layer.up.t())
            assert largest_difference(found, expected) < 1e-4
        else:
            assert not found.any()


def test_ranks_are_padded_to_the_next_that_is_compiled() -> None:
    assert [pad_rank(rank) for rank in (1, 16, 17, 512)] == [16, 16, 32, 512]
    assert RANKS[-1] == 512
