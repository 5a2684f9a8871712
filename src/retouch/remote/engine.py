"""The engine that another server has: send the pictures and the parameters, read the picture."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from PIL import Image

from retouch.editing.ports import EditParams, EngineInfo, EngineOutput, PreparedEdit
from retouch.errors import BadInput, EditError, EngineUnavailable, ModelError
from retouch.images.decode import Limits
from retouch.images.sandbox import Decoder, DecoderSettings
from retouch.logs import event
from retouch.remote.answer import read_picture
from retouch.remote.describe import describe
from retouch.remote.form import (
    MASK_FIELDS,
    Form,
    build_fields,
    build_form,
    build_own_fields,
    encode_files,
)
from retouch.remote.server import Answer, NotConnected, Server

_log = logging.getLogger(__name__)
_ROUTE = "/v1/images/edits"
_MAX_ANSWER_BYTES = 64 << 20
"""4 MP of noise as PNG in base64 take 17 MB; a server may write more than it was asked for."""
_DESCRIBE_S = 10.0
_DECODE_S = 60.0
_MISSES = 2
_POLL_S = 0.1
"""How soon an edit notices that it is to end."""
_BYTES_PER_TOKEN = 4
_NO_MASK = "the engine takes no mask: it edited the whole picture, and only the mask's part is used"


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """The server's address and key, the `model` to ask it for, and the limits of its pictures.

    `pauses_s` are before further attempts where the server took nothing on; `start_s` is how long it
    may take to answer at the start. Later it is asked every `watch_s` what it has.
    """

    url: str
    key: str = ""
    model: str = ""
    limits: Limits = field(default_factory=Limits)
    decoder: DecoderSettings = field(default_factory=partial(DecoderSettings, children=1))
    pauses_s: tuple[float, ...] = (0.5, 2.0)
    start_pause_s: float = 2.0
    start_s: float = 3600.0
    watch_s: float = 10.0


@dataclass(frozen=True, slots=True)
class _Inputs:
    """Of one or more edits: the files of the form by its fields, and whether there is a mask."""

    files: dict[str, list[bytes]]
    is_masked: bool


class RemoteEngine:
    """`Engine` over the server of `settings`, which described itself as `info`."""

    def __init__(
        self, settings: RemoteSettings, server: Server, info: EngineInfo, *, is_retouch: bool
    ) -> None:
        self.info = info
        self._settings = settings
        self._server = server
        self._is_retouch = is_retouch
        self._fault: EditError | None = None

    @cached_property
    def _decoder(self) -> Decoder:
        """Started with the first edit: the Runpod SDK forks after the start."""
        return Decoder(self._settings.limits, self._settings.decoder)

    def close(self) -> None:
        """End the decoder's processes."""
        if "_decoder" in vars(self):
            self._decoder.close()

    async def watch(self) -> None:
        """Ask the server again and again what it has, until cancelled: `info` follows.

        One question without an answer says little of a server that is at work. After it the next
        ones come five times as often.
        """
        misses = 0
        while True:
            await asyncio.sleep(self._settings.watch_s / (5 if misses else 1))
            try:
                info, is_retouch = await _describe(self._server, self._settings.model)
            except EditError as error:
                misses += 1
                if misses == _MISSES:
                    self._fault = error
                    event(_log, "engine.unreachable", level=logging.ERROR, reason=error.message)
                continue
            if self._fault or info != self.info:
                event(_log, "engine.reached", model=info.model)
            misses, self._fault = 0, None
            self.info, self._is_retouch = info, is_retouch

    def require_reachable(self) -> None:
        """Raise what `watch` met, if it does not reach the server.

        Raises:
            EngineUnavailable: the server is away or starting.
            EngineDenied: it refuses the key.
        """
        if self._fault:
            raise self._fault.with_traceback(None)  # or each time adds the frames of a request

    def count_tokens(self, text: str) -> int:
        """Estimate the tokens in `text`: the tokenizer is the server's."""
        return len(text.encode()) // _BYTES_PER_TOKEN

    def prepare(
        self, images: Sequence[Image.Image], params: EditParams, *, mask: Image.Image | None = None
    ) -> PreparedEdit:
        """Encode the files of the request."""
        files = encode_files(images, mask if self._is_retouch else None)
        return PreparedEdit(params, _Inputs(files, is_masked=mask is not None))

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        """Send the request and wait for the picture. Where `on_step` raises, the connection closes.

        The server reports no progress: `on_step` gets 0 until it has answered.

        Raises:
            EngineRefused, EngineDenied, EngineUnavailable: as `read_picture`.
            ModelError: the server failed, or made nothing usable.
        """
        return asyncio.run(self._edit(prepared, on_step))

    def finish(self, output: EngineOutput) -> Image.Image:
        """Return the picture."""
        image: Image.Image = output.pixels
        return image

    async def _edit(
        self, prepared: PreparedEdit, on_step: Callable[[int, int], None]
    ) -> EngineOutput:
        inputs: _Inputs = prepared.inputs
        form = build_form(self._build_fields(prepared), inputs.files)
        steps = prepared.params.run_steps
        on_step(0, steps)
        began_s = time.perf_counter()
        posting = asyncio.create_task(self._post(form))  # ends with this loop, whatever happens
        while not (await asyncio.wait([posting], timeout=_POLL_S))[0]:
            on_step(0, steps)
        body = read_picture(posting.result())
        answered_s = time.perf_counter()
        on_step(steps, steps)
        image, notes = await self._decode(body, prepared.params)
        return EngineOutput(
            pixels=image,
            condition_ms=0.0,
            denoise_ms=1000 * (answered_s - began_s),
            vae_decode_ms=1000 * (time.perf_counter() - answered_s),
            notes=(*notes, *([_NO_MASK] if inputs.is_masked and not self._is_retouch else [])),
        )

    def _build_fields(self, prepared: PreparedEdit) -> dict[str, str]:
        params, inputs = prepared.params, prepared.inputs
        fields = build_fields(params, model=self._settings.model)
        if self._is_retouch:
            fields |= build_own_fields(params, self.info.adapters)
            fields |= MASK_FIELDS if inputs.is_masked else {}
        return fields

    async def _post(self, form: Form) -> Answer:
        """Post the form, again only where the server has not begun the edit."""
        for pause_s in self._settings.pauses_s:
            try:
                answer = await self._post_once(form)
            except NotConnected:
                pass
            else:
                if not answer.is_busy:
                    return answer
            event(_log, "engine.retried", level=logging.WARNING)
            await asyncio.sleep(pause_s)
        return await self._post_once(form)

    async def _post_once(self, form: Form) -> Answer:
        return await self._server.post(
            _ROUTE, form.body, form.content_type, max_bytes=_MAX_ANSWER_BYTES
        )

    async def _decode(self, body: bytes, params: EditParams) -> tuple[Image.Image, tuple[str, ...]]:
        """Return the picture in the size of the parameters, and a note where it had another."""
        try:
            image = (await self._decoder.decode(body, timeout_s=_DECODE_S)).image
        except BadInput as error:
            raise ModelError("the engine's picture cannot be used", cause=error.code) from error
        size_px = (params.width_px, params.height_px)
        if image.size == size_px:
            return image, ()
        note = f"the engine made {image.width} x {image.height} pixels: they are resized"
        return image.resize(size_px, Image.Resampling.LANCZOS), (note,)


def connect(settings: RemoteSettings, *, progress: Callable[[str], None]) -> RemoteEngine:
    """Wait until the server answers, and return the engine; report to `progress` why it waits.

    Raises:
        ModelError: it refuses the key, or did not answer in an hour.
    """
    server = Server.parse(settings.url, key=settings.key)
    give_up_s = time.monotonic() + settings.start_s
    while True:
        try:
            info, is_retouch = asyncio.run(_describe(server, settings.model))
        except EngineUnavailable as error:
            if time.monotonic() >= give_up_s:
                raise ModelError(f"ENGINE_URL: {error.message}") from error
            progress(f"waiting for the engine: {error.message}")
            time.sleep(settings.start_pause_s)
        else:
            return RemoteEngine(settings, server, info, is_retouch=is_retouch)


async def _describe(server: Server, model: str) -> tuple[EngineInfo, bool]:
    try:
        async with asyncio.timeout(_DESCRIBE_S):
            return await describe(server, model=model)
    except TimeoutError as error:
        raise EngineUnavailable("the engine does not answer in time") from error
