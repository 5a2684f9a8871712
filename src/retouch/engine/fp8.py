"""fp8 products: weights as they are packed, activations quantised by row as they come."""

from functools import cache
from typing import Any

import torch

from retouch.engine.packing.rows import FP8

CAPABILITY = 8, 9
"""Ada Lovelace, the first generation with fp8 tensor cores."""
_SMALLEST = 1e-12
_TRIED = 16


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows (token, in) as e4m3 and their scales (token, 1), in float32.

    Each row's largest magnitude is at the end of the range.
    """
    wide = rows.float()
    scales = (wide.abs().amax(1, keepdim=True) / FP8.largest).clamp(min=_SMALLEST)
    return (wide / scales).to(FP8.dtype), scales


def quantize(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise rows as `quantize_rows` does; on a GPU always by compiled code, in one pass."""
    if rows.is_cuda and not torch.compiler.is_compiling():  # pragma: no cover - needs a GPU
        quantized: tuple[torch.Tensor, torch.Tensor] = _compile_quantize()(rows)
        return quantized
    return quantize_rows(rows)


@cache
def _compile_quantize() -> Any:  # pragma: no cover - needs a GPU
    return torch.compile(quantize_rows, dynamic=True)


def multiply_fp8(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the product of e4m3 rows (token, in) and weight (out, in), and the bias, to `out` (token, out).

    Scales are (token, 1) and (out,). Both sizes of the weight are multiples of 16.
    """
    torch._scaled_mm(  # noqa: SLF001 - it has no public name
        rows,
        weight.t(),
        scale_a=row_scales,
        scale_b=weight_scales[None],
        bias=bias,
        out_dtype=out.dtype,
        use_fast_accum=True,  # what makes it faster; exact accumulation is as slow as 16 bits
        out=out,
    )


def can_multiply_fp8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `device` makes fp8 products in `dtype`: asked for one, it must not refuse."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        return False
    try:  # pragma: no cover - needs a GPU
        ones = torch.ones(_TRIED, _TRIED, dtype=dtype, device=device)
        rows, scales = quantize_rows(ones)
        multiply_fp8(rows, scales, rows, scales[:, 0], ones[0], torch.empty_like(ones))
    except RuntimeError:  # pragma: no cover
        return False
    return True  # pragma: no cover
