"""The `Engine` port over a Qwen-Image-Edit checkpoint: an edit loop of our own, in named steps.

It equals the stock pipelines with their positions set right (1e-5 in float32, every scheduler).
"""

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch
from PIL import Image

from retouch.editing.ports import (
    EditParams,
    EngineOutput,
    PreparedEdit,
)
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.attention import NATIVE
from retouch.engine.block import BlockCall, run_block
from retouch.engine.branches import BranchInputs, LocalBranches
from retouch.engine.compilation import BlockCode
from retouch.engine.guidance import classifier_free_guidance
from retouch.engine.hooks import (
    EditTimer,
    StepHook,
    StepState,
    predict_result,
    preview_steps,
    run_hooks,
)
from retouch.engine.info import describe, name_of
from retouch.engine.inpaint import start_latents
from retouch.engine.inputs import Conditioning, EditInputs, prepare_inputs
from retouch.engine.memory.weights import Weights
from retouch.engine.precision import Fp16Overflow
from retouch.engine.preset import PresetFile
from retouch.engine.schedulers import build_scheduler, start_schedule
from retouch.engine.team import SplitBranches, Team
from retouch.engine.text_encoder import PromptTemplate, TextEncoder
from retouch.engine.vae import SingleFrameVae, draw_noise
from retouch.errors import EditError, ModelError, NonFiniteResult, OutOfMemory
from retouch.logs import event

_log = logging.getLogger(__name__)


class QwenEngine:
    """`Engine` over `weights`, which it then owns; named by its preset, or else `model`.

    `processor` has the checkpoint's `tokenizer` and `image_processor`, `scheduler` is its scheduler
    configuration, and `run_block` runs a block with the attention kernel that `attention` names.
    Requests choose among the `adapters`. `prompt_cache_bytes` is host memory for the embeddings of
    repeated prompts. `team` computes parts of edits on further GPUs.
    """

    def __init__(  # noqa: PLR0913 - each names a part of a checkpoint
        self,
        weights: Weights,
        *,
        processor: Any,
        scheduler: Mapping[str, Any],
        template: PromptTemplate,
        preset: PresetFile,
        model: str,
        revision: str,
        run_block: BlockCall = run_block,
        attention: str = NATIVE,
        compiled: bool = False,
        code: BlockCode | None = None,
        load_phases_s: Mapping[str, float] | None = None,
        adapters: LoadedAdapters | None = None,
        prompt_cache_bytes: int = 0,
        team: Team | None = None,
    ) -> None:
        adapters = adapters or LoadedAdapters()
        self.info = describe(
            weights,
            preset,
            adapters,
            model=preset.name or model,
            revision=revision,
            attention=attention,
            max_areas_px=weights.plan.max_areas_px[: template.max_images],
            compiled=compiled,
            code=code,
            load_phases_s=load_phases_s or {},
        )
        self.weights = weights
        self.keeper = adapters.kept
        self._scheduler = scheduler
        self._preset = preset
        self._text_encoder = TextEncoder(
            weights.text_encoder,
            processor=processor,
            template=template,
            cache_bytes=prompt_cache_bytes,
        )
        self._vae = SingleFrameVae(weights.vae)
        self.local = LocalBranches(weights, adapters, run_block=run_block)
        self._branches = SplitBranches(self.local, team) if team else self.local

    def count_tokens(self, text: str) -> int:
        """Count the tokenizer's tokens in `text`."""
        return len(self._text_encoder.tokenizer.encode(text))

    def prepare(
        self,
        images: Sequence[Image.Image],
        params: EditParams,
        *,
        mask: Image.Image | None = None,
    ) -> PreparedEdit:
        """Resize, preprocess and tokenize, see `prepare_inputs`."""
        inputs = prepare_inputs(
            images,
            params,
            mask,
            text_encoder=self._text_encoder,
            vae=self._vae,
            preset=self._preset,
        )
        return PreparedEdit(params, inputs)

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        """Run the model.

        Where float16 overflows, the weights become bfloat16 for good and the edit starts again, so
        that `on_step` begins again too.
        """
        timer = EditTimer(on_step, device=self.weights.device)
        try:
            with torch.no_grad():
                output = self._edit_in_range(prepared, timer)
            self.weights.release()
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold this edit's tensors
            with suppress(Exception):  # on a broken GPU this fails too; the first error says more
                self.weights.release()
            if error is timer.raised or isinstance(error, EditError):
                raise
            if isinstance(error, torch.OutOfMemoryError):
                raise OutOfMemory("the GPU ran out of memory; a smaller image may fit") from error
            raise ModelError("the model failed on this edit") from error
        return output

    def finish(self, output: EngineOutput) -> Image.Image:
        """Return the edited image."""
        return Image.fromarray(output.pixels.numpy())

    def _edit_in_range(self, prepared: PreparedEdit, timer: EditTimer) -> EngineOutput:
        notes: tuple[str, ...] = ()
        while True:
            try:
                return replace(self._edit(prepared, timer), notes=notes)
            except Fp16Overflow as error:
                traceback.clear_frames(error.__traceback__)
                if self.weights.transformer.dtype != torch.float16:
                    raise NonFiniteResult(
                        "the model produced non-finite values (NaN or infinity)"
                    ) from error
            self._fall_back_to_bf16()
            prepared = replace(prepared, conditioning=None)
            notes = ("float16 overflowed: the edit was made in bfloat16",)

    def _fall_back_to_bf16(self) -> None:
        """Continue in bfloat16, which reaches 3e38 and takes the same memory."""
        self._branches.cast(torch.bfloat16)
        self.info = replace(self.info, dtype=name_of(torch.bfloat16))
        event(_log, "precision.widened", level=logging.WARNING, dtype=self.info.dtype)

    def _edit(self, prepared: PreparedEdit, timer: EditTimer) -> EngineOutput:
        timer.start()
        found = prepared.conditioning or self._condition(prepared.inputs)
        timer.end_phase()
        hooks = [timer.report_step, self._show_previews(prepared)]
        latents = self.denoise(prepared, found.texts, found.images, found.source, hooks=hooks)
        timer.end_phase()
        pixels = self.decode(latents, rows=prepared.inputs.grids[0][0])
        timer.end_phase()
        condition_ms, denoise_ms, vae_decode_ms = timer.phases_ms()
        return EngineOutput(pixels, condition_ms, denoise_ms, vae_decode_ms, conditioning=found)

    def _condition(self, inputs: EditInputs) -> Conditioning:
        texts = self.encode_prompts(inputs)
        return Conditioning(texts, self.encode_images(inputs), self.encode_source(inputs))

    def _show_previews(self, prepared: PreparedEdit) -> StepHook:
        wanted = preview_steps(prepared.params.run_steps, prepared.previews)

        def show(state: StepState) -> None:
            if state.done in wanted and state.predict is not None:
                pixels = self.decode(state.predict(), rows=prepared.inputs.grids[0][0])
                prepared.on_preview(EngineOutput(pixels, 0.0, 0.0, 0.0))

        return show

    def encode_prompts(self, inputs: EditInputs) -> list[torch.Tensor]:
        """Return hidden states (1, text token, width): of the prompt, then of the negative prompt."""
        return self._text_encoder.encode(inputs.text, self.weights.device)

    def encode_images(self, inputs: EditInputs) -> list[torch.Tensor]:
        """Return the float32 latents of each condition image: (1, rows x columns, 4 c)."""
        return [self._vae.encode(pixels, self.weights.device) for pixels in inputs.pixels]

    def encode_source(self, inputs: EditInputs) -> torch.Tensor | None:
        """Return the float32 latents of the first image at the result's size, where they are needed."""
        if inputs.source is None:
            return None
        return self._vae.encode(inputs.source, self.weights.device)

    def denoise(
        self,
        prepared: PreparedEdit,
        texts: Sequence[torch.Tensor],
        images: Sequence[torch.Tensor],
        source: torch.Tensor | None = None,
        *,
        hooks: Sequence[StepHook] = (),
    ) -> torch.Tensor:
        """Denoise from the seed's noise to the result's latents: (1, rows x columns, 4 c).

        `texts` are of `encode_prompts`, `images` of `encode_images`, `source` of `encode_source`. The
        scheduler computes in float32, whatever the model's precision. `hooks` run in order before the
        first step and after each; what they raise passes through.

        Raises:
            Fp16Overflow: a step produced non-finite values.
        """
        params, grids = prepared.params, prepared.inputs.grids
        generator = torch.Generator("cpu").manual_seed(params.seed)
        scheduler, timesteps = self._start_schedule(params, prod(grids[0]), generator)
        latents, keep = self._start_latents(prepared, source, scheduler, generator)
        hooks = [*keep, *hooks]
        compute = self._branches.start(BranchInputs(texts, images, grids, timesteps, params.loras))
        latents = run_hooks(hooks, StepState(0, params.run_steps, latents))
        for step, timestep in enumerate(timesteps):
            velocity = classifier_free_guidance(compute(latents, step), params.guidance_scale)
            share = timestep / scheduler.config.num_train_timesteps
            predict = partial(predict_result, latents, velocity, share)
            latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
            # Waits for the GPU, so that the hooks run when the step has really ended.
            if not torch.isfinite(latents).all():
                raise Fp16Overflow
            latents = run_hooks(hooks, StepState(step + 1, params.run_steps, latents, predict))
        return latents

    def _start_schedule(
        self, params: EditParams, image_tokens: int, generator: torch.Generator
    ) -> tuple[Any, torch.Tensor]:
        """Return the scheduler and the timesteps (step,) that run."""
        scheduler = build_scheduler(
            params.scheduler,
            self._scheduler,
            steps=params.steps,
            generator=generator,
            shift=params.shift,
        )
        return scheduler, start_schedule(
            scheduler, steps=params.steps, image_tokens=image_tokens, skipped=params.skipped_steps
        )

    def _start_latents(
        self,
        prepared: PreparedEdit,
        source: torch.Tensor | None,
        scheduler: Any,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, list[StepHook]]:
        """Draw the seed's noise, and start from it as `start_latents` does."""
        rows, columns = prepared.inputs.grids[0]
        noise = draw_noise(self._vae.channels, rows=rows, columns=columns, generator=generator)
        sigmas = scheduler.sigmas[prepared.params.skipped_steps :]
        return start_latents(noise.to(self.weights.device), sigmas, source, prepared.inputs.mask)

    def decode(self, latents: torch.Tensor, *, rows: int) -> torch.Tensor:
        """Decode latents (1, rows x columns, 4 c) to 8-bit RGB on the host: (h, w, 3).

        Raises:
            NonFiniteResult: the decoder produced non-finite values.
        """
        pixels = self._vae.decode(latents, rows=rows)[0]  # (3, h, w)
        if not torch.isfinite(pixels).all():
            raise NonFiniteResult("the decoder produced non-finite values (NaN or infinity)")
        values = (pixels * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0)  # (3, h, w) -> (h, w, 3)
        return (values * 255).round().to(torch.uint8).cpu()
