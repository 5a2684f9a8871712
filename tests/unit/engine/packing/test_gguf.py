from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from support.models.gguf_blocks import make_blocks, pack_q6_k
from support.models.no_compiler import no_compiler

from retouch.engine.packing.encoding import Encoding
from retouch.engine.packing.gguf import TYPES, GgufBlocks

ROWS, COLUMNS = 24, 1024


@pytest.mark.parametrize("number", TYPES, ids=lambda number: TYPES[number].name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_type_equals_the_reference_dequantiser(number: int, dtype: torch.dtype) -> None:
    kind = gguf.GGMLQuantizationType(number)
    packed = make_blocks(kind, (ROWS, COLUMNS))
    out = torch.empty(ROWS, COLUMNS, dtype=dtype)

    TYPES[number].expand(torch.from_numpy(packed).view(-1), out)

    wanted = gguf.quants.dequantize(packed, kind)
    error = np.linalg.norm(out.float().numpy() - wanted) / np.linalg.norm(wanted)
    assert error <= (1e-3 if dtype == torch.float16 else 1e-7)


@pytest.mark.parametrize("number", TYPES, ids=lambda number: TYPES[number].name)
def test_sizes_are_those_of_the_file_format(number: int) -> None:
    values, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]

    assert TYPES[number].size_bytes((3, 2 * values)) == 6 * block_bytes


def test_a_factor_is_part_of_the_scale() -> None:
    packed = torch.from_numpy(make_blocks(gguf.GGMLQuantizationType.Q4_K, (2, 256))).view(-1)
    plain, scaled = torch.empty(2, 256), torch.empty(2, 256)

    TYPES[12].expand(packed, plain)
    TYPES[12].expand(packed, scaled, 1 / 512)

    assert torch.equal(scaled, plain / 512)


@pytest.mark.parametrize("shape", [(), (4, 0), (4, 255), (256, 4)])
def test_rows_that_are_no_whole_blocks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="rows in multiples of 256"):
        TYPES[12].size_bytes(shape)


@pytest.mark.parametrize("encoding", [*TYPES.values()], ids=lambda encoding: encoding.name)
def test_no_step_of_expanding_depends_on_the_data(encoding: Encoding) -> None:
    packed = torch.empty(encoding.size_bytes((4, 256)), dtype=torch.uint8, device="meta")

    with no_compiler():
        encoding.expand(packed, torch.empty(4, 256, device="meta"))  # has no data to look at


@pytest.mark.parametrize(
    "encoding",
    [one for one in TYPES.values() if isinstance(one, GgufBlocks)],
    ids=lambda encoding: encoding.name,
)
def test_every_scale_that_is_not_finite_is_seen(encoding: GgufBlocks) -> None:
    kind = gguf.GGMLQuantizationType[encoding.name]
    values = torch.empty(4, 256)

    assert encoding.is_finite(torch.from_numpy(make_blocks(kind, (4, 256))).view(-1))
    for at in encoding.halves:
        for half in (b"\x00\x7c", b"\x00\xfc", b"\x01\x7e"):
            packed = torch.from_numpy(make_blocks(kind, (4, 256))).view(-1)
            start = encoding.block_bytes + at if encoding.values == 32 else at
            packed[start : start + 2] = torch.frombuffer(bytearray(half), dtype=torch.uint8)
            encoding.expand(packed, values)
            assert not values.isfinite().all()
            assert not encoding.is_finite(packed)


def test_an_encoding_may_have_a_factor_of_its_own() -> None:
    packed = torch.from_numpy(make_blocks(gguf.GGMLQuantizationType.Q6_K, (2, 256))).view(-1)
    plain, scaled = torch.empty(2, 256), torch.empty(2, 256)
    encoding = TYPES[14]
    assert isinstance(encoding, GgufBlocks)

    encoding.expand(packed, plain, 0.5)
    replace(encoding, factor=0.25).expand(packed, scaled, 2.0)

    assert torch.equal(scaled, plain)
    assert replace(encoding, factor=0.25) != encoding


def test_the_tests_own_q6_k_rounds_normal_weights_by_less_than_two_per_cent() -> None:
    values = np.random.default_rng(1).standard_normal((8, 512), dtype=np.float32) * 0.02
    again = gguf.quants.dequantize(pack_q6_k(values), gguf.GGMLQuantizationType.Q6_K)
    assert np.linalg.norm(again - values) / np.linalg.norm(values) < 0.02
