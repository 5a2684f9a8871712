"""Check an attention backend against the reference before it is used."""

import ctypes
from importlib import metadata

import torch

from retouch.errors import ModelError

MAX_BACKEND_ERROR = 0.1
"""Relative to the norm: int8 kernels stay within a few per cent, a wrong layout does not."""
CUDA_12 = "nvidia-cuda-runtime-cu12"


def require_backend(name: str, device: torch.device) -> None:
    """Run `name`, one of diffusers' attention backends, once on a small input.

    Raises:
        ModelError: there is no such backend, it does not run here, or its result is wrong.
    """
    if name == "xformers":
        open_cuda_12()
    from diffusers.models import attention_dispatch as diffusers  # imports xformers

    backends = diffusers.AttentionBackendName
    if name not in {backend.value for backend in backends}:
        known = ", ".join(sorted(backend.value for backend in backends))
        raise ModelError(f"ATTENTION_BACKEND: unknown backend {name}; known: {known}")
    if name == "native":
        return
    half = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.half
    generator = torch.Generator().manual_seed(0)
    shape = (1, 128, 2, 128)  # (b, s, h, c), with the model's own 128 channels a head
    query, key, value = (torch.randn(shape, generator=generator).to(device, half) for _ in range(3))
    try:
        found, expected = (
            diffusers.dispatch_attention_fn(query, key, value, backend=backend).float()
            for backend in (backends(name), backends.NATIVE)
        )
        error = float((found - expected).norm() / expected.norm())
    except Exception as fault:
        reason = str(fault).strip().partition("\n")[0] or type(fault).__name__
        raise ModelError(f"ATTENTION_BACKEND: {name} does not run here: {reason}") from fault
    if not error < MAX_BACKEND_ERROR:
        raise ModelError(f"ATTENTION_BACKEND: {name} is wrong here by {error:.0%}")


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
