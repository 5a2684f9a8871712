import pytest
import torch
from support.models.no_compiler import no_compiler

from retouch.engine.packing.encoding import Encoding, Packer, Plain
from retouch.engine.packing.nf4 import NF4
from retouch.engine.packing.rows import FP8, INT8

PACKERS: list[Packer] = [Plain(torch.bfloat16), Plain(torch.float16), INT8, FP8, NF4]
ids = [packer.name for packer in PACKERS]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def expanded(encoding: Encoding, packed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(like)
    encoding.expand(packed, out)
    return out


@pytest.mark.parametrize(
    ("packer", "error"),
    list(zip(PACKERS, (2e-3, 3e-4, 1e-2, 3e-2, 0.1), strict=True)),
    ids=ids,
)
def test_normal_weights_come_back_within_the_encodings_error(packer: Packer, error: float) -> None:
    weight = normal(96, 128) * 0.02

    packed = packer.pack(weight)
    again = expanded(packer, packed, weight)

    assert packed.dtype == torch.uint8
    assert packed.shape == (packer.size_bytes((96, 128)),)
    assert float((again - weight).norm() / weight.norm()) < error


@pytest.mark.parametrize("packer", PACKERS, ids=ids)
def test_packing_expanded_weights_again_changes_nothing(packer: Packer) -> None:
    once = expanded(packer, packer.pack(normal(32, 64)), normal(32, 64))

    twice = expanded(packer, packer.pack(once), once)

    torch.testing.assert_close(twice, once, rtol=1e-3, atol=0)


@pytest.mark.parametrize("packer", PACKERS, ids=ids)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_power_of_two_as_factor_only_shifts_the_exponent(
    packer: Packer, dtype: torch.dtype
) -> None:
    packed = packer.pack(normal(16, 64))
    plain, scaled = torch.empty(16, 64, dtype=dtype), torch.empty(16, 64, dtype=dtype)

    packer.expand(packed, plain)
    packer.expand(packed, scaled, 0.125)

    assert torch.equal(scaled, plain * 0.125)


@pytest.mark.parametrize("packer", PACKERS, ids=ids)
def test_zeros_come_back_as_zeros(packer: Packer) -> None:
    weight = normal(4, 64)
    weight[1] = 0

    for zeros in (torch.zeros(4, 64), weight):
        again = expanded(packer, packer.pack(zeros), zeros)
        assert torch.equal(again[1], torch.zeros(64))
        assert bool(again.isfinite().all())


@pytest.mark.parametrize("packer", [INT8, FP8], ids=["int8", "fp8"])
def test_a_large_row_costs_the_others_no_precision(packer: Packer) -> None:
    weight = normal(8, 64)
    weight[0] *= 1e4

    again = expanded(packer, packer.pack(weight), weight)

    assert float((again[1:] - weight[1:]).norm() / weight[1:].norm()) < 0.03


def test_one_scale_for_a_whole_tensor_is_that_scale_in_every_row() -> None:
    values = normal(5, 16).to(torch.float8_e4m3fn)

    packed = FP8.join(values, torch.tensor(0.25))

    assert torch.equal(expanded(FP8, packed, normal(5, 16)), values.float() * 0.25)


def test_weights_of_more_than_two_dimensions_have_a_scale_for_each_first_index() -> None:
    weight = normal(6, 4, 3, 5)

    again = expanded(INT8, INT8.pack(weight), weight)

    assert float((again - weight).norm() / weight.norm()) < 1e-2


@pytest.mark.parametrize("shape", [(3, 21), (0, 64)])
def test_values_that_make_no_whole_blocks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        NF4.size_bytes(shape)


def test_a_scalar_has_no_rows() -> None:
    with pytest.raises(ValueError, match="rows"):
        INT8.size_bytes(())


def test_equal_encodings_have_equal_hashes() -> None:
    assert len({Plain(torch.float16), Plain(torch.float16), INT8, FP8, NF4}) == 4


@pytest.mark.parametrize("packer", PACKERS, ids=ids)
def test_no_step_of_expanding_depends_on_the_data(packer: Packer) -> None:
    packed = torch.empty(packer.size_bytes((8, 64)), dtype=torch.uint8, device="meta")

    with no_compiler():
        packer.expand(packed, torch.empty(8, 64, device="meta"))  # has no data to look at


def test_fp8_values_that_are_nan_are_seen_and_int8_has_none() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    nan = values.view(torch.float8_e4m3fn).float().isnan()

    assert [FP8.is_finite(values[at : at + 1]) for at in range(256)] == (~nan).tolist()
    assert INT8.is_finite(values)
