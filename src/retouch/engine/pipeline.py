"""The `Engine` over diffusers' stock edit pipelines, with the positions and sizes they get wrong set right."""

import inspect
import time
import traceback
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from retouch.engine.checkpoint import PresetFile
from retouch.engine.conditioning import Tokens, correct_positions
from retouch.engine.schedulers import build_scheduler
from retouch.errors import EditError, ModelError, NonFiniteResult, OutOfMemory
from retouch.ports import Edited, EngineInfo, Preset, Work

MIN_SIDE_PX = 32
"""The stock sizes are multiples of it; a very narrow image would round to none."""


class QwenEngine:
    """`Engine` over a `QwenImageEditPipeline` or `QwenImageEditPlusPipeline`, which it then owns.

    It is named by its preset, or else `model`.
    """

    def __init__(self, pipe: Any, *, preset: PresetFile, model: str, revision: str) -> None:
        self.info = EngineInfo(
            model=preset.name or model,
            revision=revision,
            dtype=str(pipe.transformer.dtype).removeprefix("torch."),
            memory_plan="resident",
            preset=Preset(
                steps=preset.steps,
                guidance_scale=preset.guidance_scale,
                area_px=preset.area_px,
                guided=preset.guided,
            ),
            notes=preset.notes,
        )
        self.pipe = pipe
        self._scheduler = pipe.scheduler
        self._tokens = Tokens(pipe.tokenizer)
        self._call = _bound_call(type(pipe), preset.condition_area_px)
        correct_positions(pipe.text_encoder)
        pipe.set_progress_bar_config(disable=True)

    def count_tokens(self, text: str) -> int:
        """Count the tokenizer's tokens in `text`."""
        return self._tokens.count(text)

    def edit(self, image: Image, work: Work, *, before_step: Callable[[int, int], None]) -> Edited:
        """Edit `image`; 1.0 is the one guidance scale that runs without the negative prompt."""
        self._tokens.require_plain(prompt=work.prompt, negative_prompt=work.negative_prompt)
        watch = _Watch(before_step, steps=work.steps, device=self.pipe.transformer.device)
        try:
            with torch.inference_mode():
                return self._run(image, work, watch)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold this edit's tensors
            if error is watch.raised or isinstance(error, EditError):
                raise
            if isinstance(error, torch.OutOfMemoryError):
                raise OutOfMemory("the GPU ran out of memory; a smaller image may fit") from error
            raise ModelError("the model failed on this edit") from error
        finally:
            self._restore()

    def _run(self, image: Image, work: Work, watch: "_Watch") -> Edited:
        pipe = self.pipe
        generator = torch.Generator("cpu").manual_seed(work.seed)
        pipe.scheduler = build_scheduler(
            work.scheduler, self._scheduler.config, steps=work.steps, generator=generator
        )
        with pipe.transformer.register_forward_pre_hook(watch.on_forward):
            pixels = self._call(
                pipe,
                image=image,  # never a list: with one the original pipeline skips its resize
                prompt=work.prompt,
                negative_prompt=work.negative_prompt if work.guidance_scale > 1 else None,
                true_cfg_scale=work.guidance_scale,
                width=work.width_px,
                height=work.height_px,
                num_inference_steps=work.steps,
                generator=generator,
                callback_on_step_end=watch.on_step_end,
                output_type="np",
            ).images
        if not np.isfinite(pixels).all():
            raise NonFiniteResult("the decoder produced values that are no numbers")
        edited = pipe.image_processor.numpy_to_pil(pixels)[0]
        condition_ms, denoise_ms, vae_decode_ms = watch.phases_ms()
        return Edited(
            image=edited,
            condition_ms=condition_ms,
            denoise_ms=denoise_ms,
            vae_decode_ms=vae_decode_ms,
        )

    def _restore(self) -> None:
        self.pipe.scheduler = self._scheduler
        self.pipe.maybe_free_model_hooks()  # also resets the transformer's caches
        if self.pipe.transformer.device.type == "cuda":  # pragma: no cover - needs a GPU
            torch.cuda.empty_cache()


class _Watch:
    """What stands inside the stock loop: `before_step`, the finite check and the clock."""

    def __init__(
        self, before_step: Callable[[int, int], None], *, steps: int, device: torch.device
    ) -> None:
        self.raised: Exception | None = None
        self._before_step = before_step
        self._steps = steps
        self._device = device
        self._marks_s = [time.perf_counter()]

    def on_forward(self, *_: object) -> None:
        """Stand before each call of the transformer; the first begins the first step."""
        if len(self._marks_s) == 1:
            self._mark()
            self._tell(0)

    def on_step_end(
        self, _pipe: object, step: int, _timestep: object, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Stand after each step, as diffusers' `callback_on_step_end`."""
        if step + 1 == self._steps:
            if not torch.isfinite(tensors["latents"]).all():
                raise NonFiniteResult("the model produced values that are no numbers")
            self._mark()
        self._tell(step + 1)
        return tensors

    def phases_ms(self) -> tuple[float, ...]:
        """End the last phase and return the milliseconds of each."""
        self._mark()
        ends_s = self._marks_s[1:]
        return tuple(
            (end - start) * 1000 for start, end in zip(self._marks_s, ends_s, strict=False)
        )

    def _mark(self) -> None:
        if self._device.type == "cuda":  # pragma: no cover - only a GPU works ahead of its caller
            torch.cuda.synchronize(self._device)
        self._marks_s.append(time.perf_counter())

    def _tell(self, step: int) -> None:
        try:
            self._before_step(step, self._steps)
        except Exception as error:
            self.raised = error
            raise


def _bound_call(pipeline_class: type, area_px: int) -> Callable[..., Any]:
    """Copy a pipeline's `__call__` such that it makes no conditioning image over `area_px`.

    The areas are literals in the stock code. A copy with its own `calculate_dimensions` leaves the
    library as it is for everybody else in the process.
    """
    stock = inspect.unwrap(pipeline_class.__call__)
    sized = stock.__globals__["calculate_dimensions"]

    def calculate_dimensions(target_area: int, ratio: float) -> tuple[int | None, ...]:
        sides = sized(min(target_area, area_px), ratio)
        return tuple(side if side is None else max(side, MIN_SIDE_PX) for side in sides)

    names = {**stock.__globals__, "calculate_dimensions": calculate_dimensions}
    return FunctionType(
        stock.__code__, names, stock.__name__, stock.__defaults__, stock.__closure__
    )
