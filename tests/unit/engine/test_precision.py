import pytest
import torch
from support.models.tiny import build_tiny_pipeline

from retouch.engine import precision
from retouch.engine.precision import RESIDUAL_SCALE, recast, residual_scale

WRITERS = {
    "attn.to_out.0",
    "attn.to_add_out",
    "img_mlp.net.2",
    "txt_mlp.net.2",
}


def test_exactly_what_writes_to_a_stream_is_folded() -> None:
    names = dict(build_tiny_pipeline().transformer.named_parameters())
    folded = {name for name in names if residual_scale(f"transformer.{name}", torch.float16) != 1}
    block = {f"transformer_blocks.{i}.{writer}" for i in (0, 1) for writer in WRITERS}
    owners = {"img_in", "txt_in", *block}
    assert folded == {f"{owner}.{kind}" for owner in owners for kind in ("weight", "bias")}
    assert {residual_scale(f"transformer.{name}", torch.float16) for name in folded} == {
        1 / RESIDUAL_SCALE
    }


def test_the_fold_is_a_power_of_two_with_room_for_what_the_model_reaches() -> None:
    assert RESIDUAL_SCALE.hex().startswith("0x1.0000000000000p")
    assert 65504 * RESIDUAL_SCALE > 2e7 > 65504 * RESIDUAL_SCALE / 2


@pytest.mark.parametrize("chunk", [3, 1 << 24])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (torch.bfloat16, torch.float16),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float32, torch.float32),
    ],
)
def test_recasting_scales_and_keeps_the_memory_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, chunk: int, before: torch.dtype, after: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "_CHUNK", chunk)
    weights = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).to(before)
    expected, place = (weights.float() / 8).to(after), weights.data_ptr()
    there = recast(weights, after, factor=1 / 8)
    assert torch.equal(there, expected)
    assert (there.data_ptr() == place) == (before.itemsize == after.itemsize)


def test_a_scalar_can_be_recast() -> None:
    assert recast(torch.tensor(3.0), torch.bfloat16) == 3


@pytest.mark.parametrize(
    ("dtype", "has_bfloat16", "others"),
    [
        (torch.float16, True, torch.bfloat16),
        (torch.bfloat16, True, torch.bfloat16),
        (torch.float16, False, torch.float32),
        (torch.float32, True, torch.float32),
    ],
)
def test_only_the_transformer_runs_in_float16(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, has_bfloat16: bool, others: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    chosen = precision.choose_dtypes(dtype, torch.device("cuda"))
    assert chosen == {"transformer": dtype, "text_encoder": others, "vae": others}
