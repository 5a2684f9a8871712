"""Attention kernels: check each against a float32 reference, time them, and choose one."""

import ctypes
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from typing import Any

import torch
from torch.nn import functional

from retouch.errors import ModelError

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Query, key and value to the attended values, each (1, token, head, channel)."""

AUTO = "auto"
NATIVE = "native"
"""PyTorch's own choice among its kernels."""
FA3 = "fa3"
"""FlashAttention 3 (https://arxiv.org/abs/2407.08608) of the package fa3-fwd: Hopper, bfloat16."""
CANDIDATES = ("_native_cudnn", FA3, "_native_flash")
"""What `auto` tries, the preferred first. Underscored names are diffusers'."""
MAX_SLOWER = 1.03
"""A preferred kernel may be this much slower than the fastest, so that starts agree."""
MAX_ERROR = 0.1
"""Relative to the norm: int8 kernels stay within a few per cent, a wrong layout does not."""
CUDA_12 = "nvidia-cuda-runtime-cu12"

_WARM_UPS, _TIMED = 2, 5
_CHECKED_QUERIES = 256


@dataclass(frozen=True, slots=True)
class Attention:
    """A kernel that has been checked here, by its name in `ATTENTION_BACKEND`."""

    name: str
    attend: Attend


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """The size that the kernels are tried at: of one joint attention of the model."""

    tokens: int = 128
    heads: int = 2
    channels: int = 128


def choose_attention(
    name: str, *, device: torch.device, dtype: torch.dtype, shape: AttentionShape
) -> tuple[Attention, Mapping[str, float]]:
    """Return the kernel `name`, or for `auto` the best that runs here, with the times in ms.

    Only `auto` on a GPU measures; without one it is PyTorch's own choice.

    Raises:
        ModelError: the named kernel is unknown, does not run here, or is wrong.
    """
    if name not in (AUTO, NATIVE):
        return _require(name, device, dtype), {}
    if name == NATIVE or device.type != "cuda":
        return Attention(NATIVE, _build(NATIVE)), {}
    times_ms = dict(_time_candidates(device, dtype, shape))  # pragma: no cover - needs a GPU
    chosen = pick_fastest(times_ms) or NATIVE  # pragma: no cover
    return Attention(chosen, _build(chosen)), times_ms  # pragma: no cover


def pick_fastest(times_ms: Mapping[str, float]) -> str | None:
    """Return the first name that is at most `MAX_SLOWER` times as slow as the fastest.

    >>> pick_fastest({"_native_cudnn": 1.84, "fa3": 1.56, "_native_flash": 3.19})
    'fa3'
    >>> pick_fastest({"_native_cudnn": 1.58, "fa3": 1.56})
    '_native_cudnn'
    """
    limit_ms = MAX_SLOWER * min(times_ms.values(), default=0.0)
    return next((name for name, ms in times_ms.items() if ms <= limit_ms), None)


def measure_error(
    attend: Attend, tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> float:
    """Return the error against float32 attention, relative to the norm, over the first queries."""
    query, key, value = tensors
    # (1, token, head, channel) -> (head, token, channel), float32
    first, keys, values = (
        tensor[0].float().transpose(0, 1) for tensor in (query[:, :_CHECKED_QUERIES], key, value)
    )
    scores = first @ keys.transpose(1, 2) / first.shape[-1] ** 0.5  # (head, query, key)
    expected = (scores.softmax(-1) @ values).transpose(0, 1)  # (query, head, channel)
    found = attend(query, key, value)[0, :_CHECKED_QUERIES].float()
    return float((found - expected).norm() / expected.norm())


def _require(name: str, device: torch.device, dtype: torch.dtype) -> Attention:
    """Check one kernel on a small input."""
    if name == "xformers":
        open_cuda_12()
    from diffusers.models.attention_dispatch import AttentionBackendName  # imports xformers

    known = sorted([AUTO, FA3, *AttentionBackendName])
    if name not in known:
        raise ModelError(f"ATTENTION_BACKEND: unknown backend {name}; known: {', '.join(known)}")
    # Float32 runs on the CPU only, where most kernels want half precision.
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    try:
        attend = _build(name)
        error = measure_error(attend, _draw(device, half, AttentionShape()))
    except Exception as fault:
        reason = str(fault).strip().partition("\n")[0] or type(fault).__name__
        raise ModelError(f"ATTENTION_BACKEND: {name} does not run here: {reason}") from fault
    if not error < MAX_ERROR:
        raise ModelError(f"ATTENTION_BACKEND: {name} is wrong here by {error:.0%}")
    return Attention(name, attend)


def _time_candidates(
    device: torch.device, dtype: torch.dtype, shape: AttentionShape
) -> Iterable[tuple[str, float]]:  # pragma: no cover - needs a GPU
    """Yield each candidate that runs and is right, with its time in ms."""
    tensors = _draw(device, dtype, shape)
    for name in CANDIDATES:
        try:
            attend = _build(name)
            if measure_error(attend, tensors) < MAX_ERROR:
                yield name, _time_ms(partial(attend, *tensors))
        except Exception:  # noqa: BLE001, S112 - kernels raise what they like; this one is left out
            continue


def _time_ms(call: Callable[[], object]) -> float:  # pragma: no cover - needs a GPU
    times_ms = []
    for _ in range(_WARM_UPS + _TIMED):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        call()
        ended.record()
        ended.synchronize()
        times_ms.append(began.elapsed_time(ended))
    return float(statistics.median(times_ms[_WARM_UPS:]))


def _draw(
    device: torch.device, dtype: torch.dtype, shape: AttentionShape
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    size = (1, shape.tokens, shape.heads, shape.channels)
    query, key, value = (
        torch.randn(size, generator=generator, device=device, dtype=dtype) for _ in range(3)
    )
    return query, key, value


def attend_native(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend by the kernel that PyTorch chooses. Each tensor is (1, token, head, channel)."""
    # scaled_dot_product_attention wants (1, head, token, channel)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@cache
def _build(name: str) -> Attend:
    """Return the function of a kernel. The same object each time: compiled code is kept for it."""
    if name == NATIVE:
        return attend_native
    if name == FA3:
        return _build_fa3()
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    backend = AttentionBackendName(name)

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = dispatch_attention_fn(query, key, value, backend=backend)
        return attended

    return attend


def _build_fa3() -> Attend:  # pragma: no cover - needs a Hopper GPU
    """Wrap FA3; for the compiler as an operator of ours, which it leaves whole."""
    import fa3_fwd_interface

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        attended: Any = fa3_fwd_interface.flash_attn_func(
            query.contiguous(), key.contiguous(), value.contiguous()
        )
        found: torch.Tensor = attended[0] if isinstance(attended, tuple) else attended
        return found

    operator: Any = torch.library.custom_op(
        "retouch::fa3", attend, mutates_args=(), device_types="cuda"
    )
    operator.register_fake(lambda query, *_: torch.empty_like(query))

    def attend_either(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # A call of the operator would import the compiler, which takes seconds.
        call: Any = operator if torch.compiler.is_compiling() else attend
        attended: torch.Tensor = call(query, key, value)
        return attended

    return attend_either


def open_cuda_12() -> None:
    """Open CUDA 12's runtime, which xformers' wheel links to, beside torch's CUDA 13.

    Call it before anything imports xformers, as diffusers does. Does nothing if the package is not
    installed: xformers then reports the missing library itself.
    """
    try:
        files = metadata.files(CUDA_12) or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.startswith("libcudart.so"):
            ctypes.CDLL(str(file.locate()))
