import gguf
import numpy as np
import pytest
import torch

from retouch.engine.packing.encoding import Encoding
from retouch.engine.packing.gguf import TYPES
from tests.support.models.gguf_blocks import make_blocks

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

    encoding.expand(packed, torch.empty(4, 256, device="meta"))  # has no data to look at
