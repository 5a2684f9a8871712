"""The ports of the editor: the engine and the sources, with the types that cross them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL.Image import Image

from retouch.images.kind import Kind
from retouch.schema import CacheMode, Upload


@dataclass(frozen=True, slots=True)
class Source:
    """A decoded source image.

    `image` is RGB in sRGB, or a mask in L (255: edit), upright, of at most
    `images.Limits.working_pixels`; `width_px` and `height_px` are its own size before that reduction.
    `id` names the source in keys, `content_sha256` hashes the file's bytes: 64 hex digits each.
    """

    id: str
    content_sha256: str
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
    """Values of a checkpoint for what a request leaves out.

    `guided` is False for weights without classifier-free guidance (few-step and demo weights).
    """

    steps: int
    guidance_scale: float
    area_px: int
    guided: bool = True


MAX_ADAPTER_RANK = 512
"""Of all adapters of one edit together."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A loaded adapter. `scale` is used where a request gives none.

    With `always` it is applied also to requests that do not name it. A `merged` one is in the weights
    at its `scale`: another scale of a request is applied as the difference. `rank` is its largest.
    """

    name: str
    sha256: str
    layers: int
    rank: int
    scale: float = 1.0
    always: bool = False
    merged: bool = False


@dataclass(frozen=True, slots=True)
class AppliedAdapter:
    """An adapter of one edit, at a scale other than 0. `sha256` is its file's, `layers` their number."""

    name: str
    scale: float
    sha256: str
    layers: int
    merged: bool = False


@dataclass(frozen=True, slots=True)
class ProfileInfo:
    """What a profile runs with: steps, guidance, the schedule's shift and an adapter.

    Where `is_fixed`, requests cannot change that; else the values are for what a request leaves out.
    Without a `shift` the checkpoint's own applies, which grows with the size.
    """

    name: str
    steps: int
    guidance_scale: float
    is_fixed: bool = True
    shift: float | None = None
    adapter: AdapterInfo | None = None


@dataclass(frozen=True, slots=True)
class AdapterChoice:
    """What a request chooses: a profile, or "" where there are none, and scales of adapters by name."""

    profile: str = ""
    scales: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is loaded: names for `meta`, the generation defaults, and the adapters.

    A request chooses among the `adapters` and the `profiles`, of which the first is the default.
    `max_areas_px` has the largest result in pixels, from one image, from two and so on: as many
    images as one edit takes. `load_phases_s` has the seconds that each phase of loading took.
    `lora_urls`: requests may bring adapters; the ranks of one edit's are at most `max_adapter_rank`.
    `adapter_choices` has one for each kind of block that they make the engine run, the default's first.
    `examples` are instructions that suit it. `code` is the engine's own: the compiled code that it has
    or could have. With `fixed_schedule` it takes neither a scheduler nor a strength.
    """

    model: str
    revision: str
    dtype: str
    memory_plan: str
    preset: GenerationDefaults
    notes: tuple[str, ...] = ()
    attention: str = "native"
    examples: tuple[str, ...] = ()
    quantization: str = "none"
    max_areas_px: tuple[int, ...] = (2048 * 2048,)
    compiled: bool = False
    code: Any = field(default=None, compare=False)
    load_phases_s: Mapping[str, float] = field(default_factory=dict, compare=False)
    adapters: tuple[AdapterInfo, ...] = ()
    profiles: tuple[ProfileInfo, ...] = ()
    lora_urls: bool = False
    max_adapter_rank: int = MAX_ADAPTER_RANK
    adapter_choices: tuple[AdapterChoice, ...] = (AdapterChoice(),)
    fixed_schedule: bool = False


@dataclass(frozen=True, slots=True)
class EditParams:
    """Parameters of one edit, with every default filled in. Sizes are multiples of 16.

    `width_px` and `height_px` are what the model makes; `strength` is how far from the source the
    denoising starts: 1 is from noise alone.
    """

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str
    width_px: int
    height_px: int
    loras: tuple[AppliedAdapter, ...] = ()
    profile: str = "full"
    shift: float | None = None
    strength: float = 1.0

    @property
    def run_steps(self) -> int:
        """Steps that run."""
        return self.steps - self.skipped_steps

    @property
    def skipped_steps(self) -> int:
        """Steps at the start of the schedule that do not run; the last one always does.

        As in diffusers' `QwenImageEditInpaintPipeline.get_timesteps`.
        """
        most = self.steps - 1
        return min(int(max(self.steps - min(self.steps * self.strength, self.steps), 0)), most)


@dataclass(frozen=True, slots=True)
class PreparedEdit:
    """An edit whose host work is done. `inputs` belongs to the engine that made it.

    `on_preview` gets up to `previews` intermediate results, on the thread of `Engine.edit`.
    `conditioning` is that of an edit of the same inputs, which then is not computed again.
    """

    params: EditParams
    inputs: Any
    conditioning: Any = None
    previews: int = 0
    on_preview: Callable[["EngineOutput"], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What the model made, and the milliseconds of each phase.

    `pixels` belongs to the engine that made it, until `finish` turns it into an image; so does
    `conditioning`, for a further edit of the same inputs, which holds GPU memory.
    """

    pixels: Any
    condition_ms: float
    denoise_ms: float
    vae_decode_ms: float
    notes: tuple[str, ...] = ()
    conditioning: Any = None


class Engine(Protocol):
    """The model: `prepare` and `finish` work on the host, `edit` on the GPU.

    `edit` is called by one thread, one edit at a time. `prepare`, `finish` and `count_tokens` are
    safe to call from any thread, also during an edit.
    """

    @property
    def info(self) -> EngineInfo:
        """Name what is loaded."""
        ...

    def count_tokens(self, text: str) -> int:
        """Count the tokenizer's tokens in `text`."""
        ...

    def prepare(
        self, images: Sequence[Image], params: EditParams, *, mask: Image | None = None
    ) -> PreparedEdit:
        """Do the host's part before the model is needed: resize, preprocess, tokenize.

        `images` are RGB of any size, in the order of the request. Where the `mask` (L, of the first
        image's shape) is 0, the model keeps to the first image.

        Raises:
            ModelError: the images or the prompt cannot be prepared.
        """
        ...

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        """Run the model. The same prepared edit gives the same pixels.

        `on_step(done, steps)` is called with 0 before the first denoising step, and after each step
        with the number of steps done; the same number again only asks whether to go on. What it
        raises ends the edit before the next step, or before decoding, and passes through unchanged.
        After any outcome the engine is as it was before.

        Raises:
            ModelError: the model failed, ran out of memory, or made non-finite values.
        """
        ...

    def finish(self, output: EngineOutput) -> Image:
        """Return the edited image: RGB, of the size in the parameters."""
        ...


def run_edit(
    engine: Engine,
    images: Sequence[Image],
    params: EditParams,
    *,
    on_step: Callable[[int, int], None] = lambda _done, _steps: None,
) -> tuple[Image, EngineOutput]:
    """Prepare, edit and finish in the calling thread; return the image and what the model said.

    Raises:
        ModelError: as `Engine.edit`.
    """
    output = engine.edit(engine.prepare(images, params), on_step=on_step)
    return engine.finish(output), output


class Sources(Protocol):
    """Where decoded source images come from."""

    async def source_id(self, image: str | Upload) -> str:
        """Return the `id` of the source that `load` would return, without loading it.

        Raises:
            BadInput: the URL is malformed, or a data: URL holds too many bytes.
        """
        ...

    async def load(
        self,
        image: str | Upload,
        *,
        timeout_s: float,
        cache: CacheMode = "default",
        kind: Kind = "picture",
    ) -> Source:
        """Return the picture in `image`, or at that URL: from the cache or its origin.

        Of the `kind` mask it is the mask that the picture stands for.

        `cache`: no-store neither reads nor keeps a copy, revalidate asks the origin whether it is
        current.

        Raises:
            BadInput: the URL, the bytes or the picture cannot be used.
            DownloadFailed: the origin did not deliver.
            CacheReadFailed: neither the cache nor the origin did.
        """
        ...
