"""What the editor needs from others: the shapes it hands over and the three ports."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Source:
    """A decoded source image.

    `image` is RGB in sRGB, upright, at most `images.Limits.working_pixels` large; `width_px` and
    `height_px` are the picture's own size before that reduction, after orientation. `id` names the
    source in keys: 64 hex digits.
    """

    id: str
    image: Image
    width_px: int
    height_px: int
    format: str
    size_bytes: int
    cached: bool = False
    stale: bool = False
    fetch_ms: float = 0.0
    decode_ms: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a checkpoint wants where a request says nothing.

    `guided` is False for weights without classifier-free guidance (few-step and demo weights).
    """

    steps: int
    guidance_scale: float
    area_px: int
    guided: bool = True


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded: names for `meta`, the preset and the schedulers that run."""

    model: str
    revision: str
    dtype: str
    memory_plan: str
    preset: GenerationDefaults
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EditParams:
    """One edit as the engine gets it: nothing left to default. Sizes are multiples of 16."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """An edited image (RGB, the size asked for) and the milliseconds of each model phase."""

    image: Image
    condition_ms: float
    denoise_ms: float
    vae_decode_ms: float
    notes: tuple[str, ...] = ()


class Engine(Protocol):
    """The model. One `edit` at a time, called from one thread; the caller sees to that."""

    @property
    def info(self) -> EngineInfo:
        """Name what is loaded."""
        ...

    def count_tokens(self, text: str) -> int:
        """Count the tokenizer's tokens in `text`. Safe to call from any thread during an edit."""
        ...

    def edit(
        self, image: Image, work: EditParams, *, before_step: Callable[[int, int], None]
    ) -> EngineOutput:
        """Edit `image` (RGB, any size) as `work` says; the same work gives the same pixels.

        `before_step(step, steps)` is called before each denoising step, 0-based, and once more as
        `before_step(steps, steps)` before decoding; what it raises ends the edit within that step
        and passes through unchanged. After any outcome the engine is as it was before the call.

        Raises:
            ModelError: the model failed, ran out of memory, or made values that are no numbers.
        """
        ...


class Sources(Protocol):
    """Where decoded source images come from."""

    async def identify(self, image_url: str) -> str:
        """Return the id that `load` gives the source; nobody is asked for it.

        Raises:
            BadInput: the URL is wrong in form, or a data: URL is over the limit on bytes.
        """
        ...

    async def load(self, image_url: str, *, timeout_s: float) -> Source:
        """Return the picture at `image_url`, from the cache or its origin.

        Raises:
            BadInput: the URL, the bytes or the picture cannot be used.
            DownloadFailed: the origin did not deliver.
            CacheReadFailed: neither the cache nor the origin did.
        """
        ...
