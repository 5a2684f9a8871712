"""Check attention backends against the reference before use."""

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from retouch.errors import ModelError


def require_backend(name: str, device: torch.device) -> None:
    """Run `name`, one of diffusers' attention backends, once on a small input.

    Raises:
        ModelError: there is no such backend, or it does not run here, or it is wrong.
    """
    if name not in {backend.value for backend in AttentionBackendName}:
        known = ", ".join(sorted(backend.value for backend in AttentionBackendName))
        raise ModelError(f"ATTENTION_BACKEND: there is no {name}, but {known}")
    if name == "native":
        return
    half = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.half
    generator = torch.Generator().manual_seed(0)
    shape = (1, 128, 2, 128)  # (b, s, h, d/h), with the model's own heads of 128
    query, key, value = (torch.randn(shape, generator=generator).to(device, half) for _ in range(3))
    try:
        found = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
        wanted = dispatch_attention_fn(query, key, value, backend=AttentionBackendName.NATIVE)
        error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    except Exception as fault:
        reason = str(fault).strip().partition("\n")[0] or type(fault).__name__
        raise ModelError(f"ATTENTION_BACKEND: {name} does not run here: {reason}") from fault
    if not error < MAX_BACKEND_ERROR:
        raise ModelError(f"ATTENTION_BACKEND: {name} is wrong here by {float(error):.0%}")


MAX_BACKEND_ERROR = 0.1
"""Of the norm: int8 kernels stay within a few per cent, a wrong layout does not."""
