"""The `Engine` over the parts of a Qwen-Image-Edit checkpoint: an edit loop of our own.

It equals the stock pipelines with their positions set right (1e-5 in float32, every scheduler).
"""

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image

from retouch.editing.ports import (
    EditParams,
    EngineInfo,
    EngineOutput,
    GenerationDefaults,
    PreparedEdit,
)
from retouch.engine import text_encoder, tokenizer, transformer, vae
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationCache
from retouch.engine.precision import Fp16Overflow
from retouch.engine.preset import PresetFile
from retouch.engine.schedulers import build_scheduler, start_schedule
from retouch.errors import EditError, ModelError, NonFiniteResult, OutOfMemory
from retouch.logs import event

MIN_SIDE_PX = 32
"""Conditioning sizes are multiples of it; a very narrow image would round to none."""
CONDITION_AREA_PX = 1024 * 1024
"""What the autoencoder sees of the image in the stock pipelines."""

_log = logging.getLogger(__name__)


class QwenEngine:
    """`Engine` over `weights`, which it then owns; it is named by its preset, or else `model`.

    `processor` is that of `conditioning.load_processor`, `scheduler` the checkpoint's scheduler
    configuration, `pipeline` the class its index names, and `run_block` what runs a block: compiled
    or as it stands in `denoise`.

    Raises:
        ModelError: the tokenizer is not this family's.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        processor: Any,
        scheduler: Mapping[str, Any],
        pipeline: str,
        preset: PresetFile,
        model: str,
        revision: str,
        run_block: transformer.BlockCall = transformer.run_block,
    ) -> None:
        self.info = EngineInfo(
            model=preset.name or model,
            revision=revision,
            dtype=_name(weights.transformer.dtype),
            memory_plan=weights.plan.name,
            preset=GenerationDefaults(
                steps=preset.steps,
                guidance_scale=preset.guidance_scale,
                area_px=preset.area_px,
                guided=preset.guided,
            ),
            notes=preset.notes,
        )
        self.weights = weights
        self._family = text_encoder.describe_template(pipeline)
        text_encoder.require_template(self._family, processor.tokenizer)
        self._processor = processor
        self._scheduler = scheduler
        self._condition_area_px = preset.condition_area_px
        self._condition_as_result = preset.condition_as_result
        self._run_block = run_block
        self._tokens = tokenizer.Tokens(processor.tokenizer)
        self._modulation = ModulationCache(weights)
        self._token_px = vae.side_px(weights.vae)
        self._images = VaeImageProcessor(vae_scale_factor=self._token_px)

    def count_tokens(self, text: str) -> int:
        """Count the tokenizer's tokens in `text`."""
        return self._tokens.count(text)

    def prepare(self, images: Sequence[Image], params: EditParams) -> PreparedEdit:
        """Return the edit as it is: `edit` does the host's part still."""
        return PreparedEdit(params, list(images))

    def finish(self, output: EngineOutput) -> Image:
        """Return the edited image."""
        image: Image = output.pixels
        return image

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        """Edit `image`; 1.0 is the one guidance scale that runs without the negative prompt.

        Where float16 overflows, the weights become bfloat16 for good and the edit starts again, so
        that `on_step` is told its steps anew.
        """
        [image], work = prepared.inputs, prepared.params
        self._tokens.require_plain(prompt=work.prompt, negative_prompt=work.negative_prompt)
        watch = _EditTimer(on_step, steps=work.steps, device=self.weights.device)
        try:
            with torch.no_grad():
                return self._run_safely(image, work, watch)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold this edit's tensors
            if error is watch.raised or isinstance(error, EditError):
                raise
            if isinstance(error, torch.OutOfMemoryError):
                raise OutOfMemory("the GPU ran out of memory; a smaller image may fit") from error
            raise ModelError("the model failed on this edit") from error
        finally:
            self.weights.release()

    def _run_safely(self, image: Image, work: EditParams, watch: "_EditTimer") -> EngineOutput:
        notes: tuple[str, ...] = ()
        while True:
            try:
                return replace(self._run(image, work, watch), notes=notes)
            except Fp16Overflow as error:
                traceback.clear_frames(error.__traceback__)
                if self.weights.transformer.dtype != torch.float16:
                    raise NonFiniteResult(
                        "the model produced values that are no numbers"
                    ) from error
            self._widen()
            notes = ("float16 overflowed: the edit was made in bfloat16",)

    def _widen(self) -> None:
        """Go on in bfloat16, which ends at 3e38 and takes the same memory."""
        self.weights.cast(torch.bfloat16)
        self.info = replace(self.info, dtype=_name(torch.bfloat16))
        event(_log, "precision.widened", level=logging.WARNING, dtype=self.info.dtype)

    def _run(self, image: Image, work: EditParams, watch: "_EditTimer") -> EngineOutput:
        watch.start()
        generator = torch.Generator("cpu").manual_seed(work.seed)
        condition = self._condition(image, work)
        watch.mark()
        tokens = self._denoise(condition, work, generator, watch)
        watch.mark()
        watch.tell(work.steps)
        with self.weights.borrow("vae") as model:
            rows = work.height_px // self._token_px
            pixels = vae.decode(model, tokens, rows=rows)
        values = self._images.postprocess(pixels, output_type="np")
        watch.mark()
        if not np.isfinite(values).all():
            raise NonFiniteResult("the decoder produced values that are no numbers")
        condition_ms, denoise_ms, vae_decode_ms = watch.phases_ms()
        return EngineOutput(
            pixels=self._images.numpy_to_pil(values)[0],
            condition_ms=condition_ms,
            denoise_ms=denoise_ms,
            vae_decode_ms=vae_decode_ms,
        )

    def _condition(self, image: Image, work: EditParams) -> "_Condition":
        """Encode the image and the prompts of the branches."""
        ratio = image.width / image.height
        area_px = min(CONDITION_AREA_PX, self._condition_area_px)
        width_px, height_px = fit(area_px, ratio)
        if self._condition_as_result:
            width_px, height_px = work.width_px, work.height_px
        vision_px = fit(min(self._family.vision_area_px, area_px), ratio)
        seen = self._images.resize(image, *reversed(vision_px))
        prompts = [work.prompt, *([work.negative_prompt] if work.guidance_scale > 1 else [])]
        with self.weights.borrow("text_encoder") as model:
            texts = text_encoder.encode(
                model,
                self._processor,
                self._family,
                image=seen,
                prompts=prompts,
                device=self.weights.device,
            )
        with self.weights.borrow("vae") as model:
            pixels = self._images.preprocess(image, height_px, width_px)
            tokens = vae.encode(model, pixels, device=self.weights.device)
        return _Condition(texts, tokens, (height_px // self._token_px, width_px // self._token_px))

    def _denoise(
        self,
        condition: "_Condition",
        work: EditParams,
        generator: torch.Generator,
        watch: "_EditTimer",
    ) -> torch.Tensor:
        """Take every step in float32, whatever the model computes in, and return the latents."""
        rows, columns = work.height_px // self._token_px, work.width_px // self._token_px
        scheduler = build_scheduler(
            work.scheduler, self._scheduler, steps=work.steps, generator=generator
        )
        timesteps = start_schedule(scheduler, steps=work.steps, image_tokens=rows * columns)
        channels = self.weights.vae.config.z_dim
        sample = vae.draw(channels, rows=rows, columns=columns, generator=generator)
        sample = sample.to(self.weights.device)
        with self.weights.borrow("transformer") as model:
            table = self._modulation.look_up(timesteps, model)
            sight = transformer.prepare_conditioning(
                model,
                condition=condition.tokens,
                texts=condition.texts,
                grids=((rows, columns), condition.grid),
            )
            for step, timestep in enumerate(timesteps):
                watch.tell(step)
                velocities = transformer.forward(
                    self.weights,
                    model,
                    sample,
                    sight,
                    (table, step),
                    run_block=self._run_block,
                )
                velocity = transformer.classifier_free_guidance(velocities, work.guidance_scale)
                sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
                # Waits for the step, so that `on_step` is told when the GPU is there.
                if not torch.isfinite(sample).all():
                    raise Fp16Overflow
        return sample


@dataclass(frozen=True)
class _Condition:
    """Each branch's text, and the image's tokens with their rows and columns."""

    texts: list[torch.Tensor]
    tokens: torch.Tensor
    grid: transformer.Grid


class _EditTimer:
    """Tells the caller of an edit each step, and keeps the time of its phases."""

    def __init__(
        self, on_step: Callable[[int, int], None], *, steps: int, device: torch.device
    ) -> None:
        self.raised: Exception | None = None
        self._on_step = on_step
        self._steps = steps
        self._device = device
        self._marks_s: list[float] = []

    def start(self) -> None:
        """Begin the first phase; of an edit that is run again only the phases of this run count."""
        self._marks_s = [time.perf_counter()]

    def mark(self) -> None:
        """End a phase."""
        if self._device.type == "cuda":  # pragma: no cover - only a GPU works ahead of its caller
            torch.cuda.synchronize(self._device)
        self._marks_s.append(time.perf_counter())

    def phases_ms(self) -> tuple[float, ...]:
        """Return the milliseconds of each phase."""
        pairs = zip(self._marks_s, self._marks_s[1:], strict=False)
        return tuple((end - start) * 1000 for start, end in pairs)

    def tell(self, step: int) -> None:
        """Call `on_step`, and remember what it raises as the caller's own."""
        try:
            self._on_step(step, self._steps)
        except Exception as error:
            self.raised = error
            raise


def fit(area_px: int, ratio: float) -> tuple[int, int]:
    """Return width and height of about `area_px` in this `ratio`, in the stock pipelines' rounding.

    >>> fit(1024 * 1024, 3 / 2), fit(128 * 128, 200.0)
    ((1248, 832), (1824, 32))
    """
    width_px = (area_px * ratio) ** 0.5
    height_px = width_px / ratio
    return max(round(width_px / 32) * 32, MIN_SIDE_PX), max(round(height_px / 32) * 32, MIN_SIDE_PX)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
