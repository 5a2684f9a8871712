"""What the editor needs from others: the shapes it hands over and the three ports."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
class Preset:
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
    preset: Preset
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
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
class Edited:
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

    def edit(self, image: Image, work: Work, *, before_step: Callable[[int, int], None]) -> Edited:
        """Edit `image` (RGB, any size) as `work` says; the same work gives the same pixels.

        `before_step(step, steps)` is called before each denoising step, 0-based, and once more as
        `before_step(steps, steps)` before decoding; what it raises ends the edit within that step
        and passes through unchanged. After any outcome the engine is as it was before the call.

        Raises:
            ModelError: the model failed, ran out of memory, or made values that are no numbers.
        """
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """An object from the store: its bytes and the metadata it was put with."""

    body: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """Where cached sources and results live. Sync and thread-safe; every call has a time limit.

    Keys are `[0-9a-z/._-]`, without empty, `.` or `..` segments, and come with their prefix.
    Metadata keys are lower-case `[a-z0-9-]`, values printable ASCII.
    """

    name: str
    """The bucket, or for a local store the word `local`."""

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> Stored | None:
        """Return the object, or None where there is none. One request.

        Raises:
            StorageError: it cannot be read, or is over `max_bytes`.
        """
        ...

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        """Store `body` whole or not at all.

        Raises:
            StorageError: it could not be stored in time.
        """
        ...

    def link(self, key: str, *, content_type: str, filename: str, expires_in_s: int) -> str:
        """Sign a URL that opens the object for 1 s to 7 days. No request is made.

        Raises:
            StorageError: the link could not be signed.
        """
        ...

    def check(self, *, timeout_s: float) -> None:
        """Put, get and delete a probe object.

        Raises:
            StorageError: one of the three failed; the message says what to mend.
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
