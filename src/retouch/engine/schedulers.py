"""The schedulers a request may name: one model call a step, repeatable by seed.

What the pipelines cannot run is not here: they pass `sigmas` and `mu`, which Heun, DPM-Solver, DDIM
and the others refuse, and they pass no generator, so diffusers' own stochastic ones ignore the seed.
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
    """Euler that steps below the next noise level and makes up for it with fresh noise.

    In rectified flow a sample is (1 - sigma) data + sigma noise: the lower sample is scaled to the
    next level's share of data, and noise is added up to its share. The rule is that of
    `sample_euler_ancestral_RF` in comfyanonymous/ComfyUI, `comfy/k_diffusion/sampling.py`.
    """

    eta = 1.0
    """0 is plain Euler, 1 renews the most noise."""
    generator: torch.Generator | None = None
    """The request's own: the noise goes on where its first latents ended, so the seed decides all."""

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
        if (
            self.step_index == len(self.sigmas) - 1
        ):  # asked of the index: a tensor would wait for the GPU
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
"""Class and settings by the names of `retouch.contract.SCHEDULERS`."""


def build_scheduler(
    name: str, config: Mapping[str, Any], *, steps: int, generator: torch.Generator
) -> Any:
    """Build the scheduler `name` for one edit, shifted as the checkpoint's `config` says.

    A scheduler keeps state between steps, so every edit gets its own.
    """
    scheduler_class, changes = SCHEDULERS[name]
    # Named as what it is, diffusers carries over what only the pipeline reads (`base_shift`, ...);
    # with its list of defaults it would drop them, and changes to them, without a word.
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    settings |= {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": False}
    settings |= changes
    if steps == 1:
        # Stretching to the terminal divides by 1 - the last sigma, here 0: NaN, a black image.
        settings["shift_terminal"] = None
    if scheduler_class is UniPCMultistepScheduler:
        settings["flow_shift"] = config["shift"]  # its name for the same thing
    scheduler = scheduler_class.from_config(settings)
    scheduler.generator = generator  # read by the ancestral one only
    return scheduler


def start_schedule(scheduler: Any, *, steps: int, image_tokens: int) -> torch.Tensor:
    """Set `scheduler` to its beginning for an image of so many tokens, and return its timesteps.

    The shift grows with the image's size along the line that the checkpoint's config draws. All stays
    on the CPU: numbers from there cost a GPU's queue nothing, while numbers on the GPU must be waited for.
    """
    config = scheduler.config
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (image_tokens - least) / (most - least)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    scheduler.set_begin_index(0)
    timesteps: torch.Tensor = scheduler.timesteps
    return timesteps
