"""fp8 products on the CPU, whose operator has the GPU's interface."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.adapters import draw, largest_difference, load, name_adapter
from support.models.reference_edits import IMAGE, WORK as SMALL
from support.models.streamed import keep_everything, stream_everything
from support.models.tiny import PRESET, build_engine, build_tiny_pipeline
from torch import nn

from retouch.editing.adapters import resolve_adapters
from retouch.editing.ports import EditParams
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.engine import QwenEngine
from retouch.engine.fp8 import can_multiply_fp8, multiply_fp8, quantize_rows
from retouch.engine.linear import linear
from retouch.engine.memory.quantization import Quantization
from retouch.engine.memory.weights import Weights
from retouch.engine.packing.rows import FP8
from retouch.schema import Lora

BOTH = Quantization("fp8", "fp8")
WORK = replace(SMALL, steps=1, width_px=64, height_px=48)


def keep() -> Weights:
    return keep_everything(build_tiny_pipeline(), BOTH, fp8_products=True)


def build(weights: Weights, adapters: LoadedAdapters | None = None) -> QwenEngine:
    pipe = build_tiny_pipeline()
    return build_engine(pipe, weights, preset=PRESET, adapters=adapters)


def denoise(engine: QwenEngine, work: EditParams = WORK) -> torch.Tensor:
    with torch.no_grad():
        prepared = engine.prepare([IMAGE.resize((48, 32))], WORK)
        texts = engine.encode_prompts(prepared.inputs)
        images = engine.encode_images(prepared.inputs)
        return engine.denoise(replace(prepared, params=work), texts, images)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_rows_are_quantised_to_the_whole_range_and_zeros_stay_zeros() -> None:
    rows = torch.cat([torch.randn(4, 32) * 100, torch.zeros(1, 32)])
    values, scales = quantize_rows(rows)
    assert values.float().abs().amax(1).tolist() == [448.0] * 4 + [0.0]
    assert relative(values.float() * scales, rows) < 0.03


def test_a_product_is_that_of_the_rounded_operands() -> None:
    rows, weight, bias = torch.randn(5, 32), torch.randn(48, 32), torch.randn(48)
    (values, scales), (w_values, w_scales) = quantize_rows(rows), quantize_rows(weight)
    out = torch.empty(5, 48)
    multiply_fp8(values, scales, w_values, w_scales[:, 0], bias, out)
    exact = (values.float() * scales) @ (w_values.float() * w_scales).t() + bias
    assert relative(out, exact) < 1e-6


def test_a_layers_product_has_the_error_of_fp8_and_no_more() -> None:
    for block in keep().blocks():
        layer: Any = block.attn.to_q  # type: ignore[union-attr]
        stream = torch.randn(1, 7, layer.weight.shape[1])
        weight = layer.weight.float() * layer.scales[:, None]
        exact = nn.functional.linear(stream, weight, layer.bias)
        assert relative(linear(layer, stream), exact) < 0.05


def test_only_the_matrices_of_blocks_are_operands_and_nothing_of_blocks_is_expanded() -> None:
    weights = keep()
    assert weights.multiplies_fp8
    assert not any(params.expanded_bytes for params in weights.params.blocks)
    assert all(params.expanded_bytes for params in weights.params.layers)
    for block in weights.blocks():
        operands = {name for name, part in block.named_modules() if hasattr(part, "scales")}
        linears = {
            name
            for name, part in block.named_modules()
            if isinstance(part, nn.Linear) and "_mod." not in name
        }
        assert operands == linears
        assert len(linears) == 12
    assert weights.transformer.proj_out.weight.dtype == torch.float32


def test_an_edit_differs_from_one_with_expanded_weights_by_the_rounding_of_activations() -> None:
    expanded = denoise(build(keep_everything(build_tiny_pipeline(), BOTH)))
    found = denoise(build(keep()))
    assert 0 < relative(found, expanded) < 0.1


def test_streamed_and_resident_operands_give_the_same_bits() -> None:
    streamed = stream_everything(build_tiny_pipeline(), quantization=BOTH, fp8_products=True)
    assert torch.equal(denoise(build(streamed)), denoise(build(keep())))


def test_an_adapter_adds_its_own_term_in_full_precision(tmp_path: Path) -> None:
    adapters = load(name_adapter(tmp_path, "a", draw(only="attn.to_out.0")))
    weights = keep()
    plain = denoise(build(weights))
    loras = resolve_adapters([Lora(name="a", scale=1.0)], adapters.info)
    work = replace(WORK, loras=loras)
    changed = denoise(build(keep(), adapters), work)
    exact = denoise(build_engine(build_tiny_pipeline(), adapters=adapters), work)
    unchanged = denoise(build_engine(build_tiny_pipeline()))
    assert relative(changed, exact) < 2 * relative(plain, unchanged)
    assert largest_difference(changed, plain) > 1e-3


def test_after_a_cast_the_operands_are_the_same_and_products_have_the_new_type() -> None:
    pipe = build_tiny_pipeline()
    pipe.transformer.to(torch.float16)
    weights = keep_everything(pipe, Quantization("fp8", "none"), fp8_products=True)
    weights.cast(torch.bfloat16)
    for block in weights.blocks():
        layer: Any = block.attn.to_q  # type: ignore[union-attr]
        assert layer.weight.dtype == FP8.dtype
        assert layer.bias.dtype == torch.bfloat16
        assert linear(layer, torch.ones(1, 3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_expands_instead(dtype: torch.dtype) -> None:
    assert not can_multiply_fp8(torch.device("cpu"), dtype)
