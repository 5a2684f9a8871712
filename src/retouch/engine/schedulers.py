"""Schedulers that a request may name: one model call a step, deterministic by seed.

Left out is what the pipelines cannot run: they pass `sigmas` and `mu`, which Heun, DPM-Solver, DDIM
and others refuse, and no generator, so diffusers' own stochastic schedulers ignore the seed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor


class EulerAncestral(FlowMatchEulerDiscreteScheduler):
    """Euler that steps below the next noise level and returns to it with fresh noise.

    In rectified flow a sample is (1 - sigma) data + sigma noise: the lower sample is scaled to the
    next level's share of data, and noise is added up to its share. The formula is that of
    `sample_euler_ancestral_RF` in comfyanonymous/ComfyUI, `comfy/k_diffusion/sampling.py`.
    """

    eta = 1.0
    """0 is plain Euler, 1 replaces the most noise."""
    generator: torch.Generator | None = None
    """The request's own, which has drawn the initial latents: the seed determines all noise."""

    _step_index: Any  # the base class is untyped

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        **_options: Any,
    ) -> tuple[torch.Tensor]:
        """Take one step, in float32 whatever the model's precision."""
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, sigma_next = self.sigmas[self.step_index], self.sigmas[self.step_index + 1]
        self._step_index += 1
        noisy = sample.float()
        data = noisy - sigma * model_output.float()
        # Not by sigma: a GPU tensor would be waited for.
        if self.step_index == len(self.sigmas) - 1:
            return (data.to(model_output.dtype),)
        sigma_down = sigma_next * (1 + (sigma_next / sigma - 1) * self.eta)
        ratio = sigma_down / sigma
        lower = ratio * noisy + (1 - ratio) * data
        share, share_down = 1 - sigma_next, 1 - sigma_down
        added = (sigma_next**2 - sigma_down**2 * share**2 / share_down**2).clamp(min=0).sqrt()
        noise = randn_tensor(
            lower.shape, generator=self.generator, device=lower.device, dtype=lower.dtype
        )
        return ((share / share_down * lower + noise * added).to(model_output.dtype),)


_SIGMA_KINDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Euler": (FlowMatchEulerDiscreteScheduler, {}),
    "EulerAncestral": (EulerAncestral, {}),
    "UniPC": (
        UniPCMultistepScheduler,
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    ),
    "EulerKarras": (FlowMatchEulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "EulerExponential": (FlowMatchEulerDiscreteScheduler, {"use_exponential_sigmas": True}),
}
"""Class and configuration by the names in `retouch.schema.SCHEDULERS`."""


def build_scheduler(
    name: str,
    config: Mapping[str, Any],
    *,
    steps: int,
    generator: torch.Generator,
    shift: float | None = None,
) -> Any:
    """Build the scheduler `name` for one edit, with the shift of the checkpoint's `config`.

    A `shift` takes its place, whatever the size, and the schedule then ends where it ends. A scheduler
    keeps state between steps, so every edit gets its own.
    """
    scheduler_class, changes = SCHEDULERS[name]
    # With the class name diffusers keeps values that only the pipeline reads (`base_shift`, ...); with
    # the private keys, its list of defaults, it would silently drop them and changes to them.
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    settings |= {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": False}
    # The checkpoint's own kind of sigmas must not join that of the named scheduler.
    settings |= dict.fromkeys(_SIGMA_KINDS, False) | changes
    if shift is not None:
        settings |= {"shift": shift, "use_dynamic_shifting": False, "shift_terminal": None}
    if steps == 1:
        # Stretching to the terminal divides by 1 - the last sigma, here 0: NaN, a black image.
        settings["shift_terminal"] = None
    if scheduler_class is UniPCMultistepScheduler:
        settings["flow_shift"] = settings["shift"]  # the same value under its own name
    scheduler = scheduler_class.from_config(settings)
    scheduler.generator = generator  # read by the ancestral one only
    return scheduler


def start_schedule(
    scheduler: Any, *, steps: int, image_tokens: int, skipped: int = 0
) -> torch.Tensor:
    """Start `scheduler` for a result of `image_tokens`; return its timesteps (step,), 1000 to 0.

    The first `skipped` of `steps` do not run and are left out.

    The shift grows linearly with the image's size, as the checkpoint's config says. All values stay
    on the CPU: a GPU's queue takes them from there, while values on the GPU would be waited for.
    """
    config = scheduler.config
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (image_tokens - least) / (most - least)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    scheduler.set_begin_index(skipped)
    timesteps: torch.Tensor = scheduler.timesteps[skipped:]
    return timesteps
