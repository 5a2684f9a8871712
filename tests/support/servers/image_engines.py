"""Other servers of `/v1/images/edits` as their published code answers, each on a port of 127.0.0.1.

vLLM-Omni 0.30.0 (entrypoints/openai/api_server.py `edit_images`) and SGLang 0.5.23
(multimodal_gen/runtime/entrypoints/openai/image_api.py `edits`): fields, refusals and answers. The
picture is the first one sent, coloured by the seed. As a program it serves one until it is killed.
"""

import asyncio
import base64
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from typing import Any

import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

MODEL = "Qwen/Qwen-Image-Edit-2511"


@dataclass
class ImageEngine:
    """A server of one kind. It answers edits while `is_open` is set, with `fault` if there is one."""

    kind: str = "vllm"
    key: str = ""
    model: str = MODEL
    fault: Response | None = None
    size_px: tuple[int, int] | None = None
    forms: list[dict[str, Any]] = field(default_factory=list)
    begun: int = 0
    dropped: int = 0
    is_open: threading.Event = field(default_factory=threading.Event)
    at_begin: Callable[[], object] = lambda: None
    port: int = 0

    def __post_init__(self) -> None:
        self.is_open.set()

    def reset(self) -> None:
        """Forget what was asked, and answer as at first."""
        self.fault, self.size_px = None, None
        self.begun = self.dropped = 0
        self.forms.clear()
        self.is_open.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def app(self) -> Starlette:
        routes = [
            Route("/v1/images/edits", self._edit, methods=["POST"]),
            Route("/v1/models", self._models),
        ]
        return Starlette(routes=routes)

    async def _models(self, request: Request) -> Response:
        if refusal := self._refuse_key(request):
            return refusal
        return JSONResponse({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    async def _edit(self, request: Request) -> Response:
        if refusal := self._refuse_key(request):
            return refusal
        async with request.form() as form:
            return await self._answer_form(request, form)

    async def _answer_form(self, request: Request, form: FormData) -> Response:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        self.forms.append(fields | {"files": [name for name, _ in _files(form)]})
        self.begun += 1
        self.at_begin()
        while not self.is_open.is_set():
            await asyncio.sleep(0.005)
            if await request.is_disconnected():
                self.dropped += 1
                return PlainTextResponse("")
        return self.fault or self._refuse_vllm(fields) or await self._answer(form, fields)

    def _refuse_key(self, request: Request) -> Response | None:
        if not self.key or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        return JSONResponse({"error": "Unauthorized"}, status_code=401)  # vllm's middleware

    def _refuse_vllm(self, fields: dict[str, str]) -> Response | None:
        fault = ""
        if fields.get("model", self.model) != self.model:
            fault = f"Model mismatch: request specifies '{fields['model']}' but server is running '{self.model}'."
        if fields.get("stream") == "true":
            fault = "stream=true is only supported for multi-stage image editing pipelines."
        if self.kind != "vllm" or not fault:
            return None
        return vllm_error(fault, 400)

    async def _answer(self, form: FormData, fields: dict[str, str]) -> Response:
        uploads = _files(form)
        if not uploads or not {name for name, _ in uploads} <= {"image", "image[]", "mask"}:
            return JSONResponse({"detail": "Field 'image' or 'url' is required"}, status_code=422)
        width, height = map(int, fields["size"].split("x"))
        picture = Image.open(BytesIO(await uploads[0][1].read())).convert("RGB")
        picture = picture.resize(self.size_px or (width, height))
        tint = Image.new("RGB", picture.size, f"#{int(fields['seed']) % (1 << 24):06x}")
        buffer = BytesIO()
        Image.blend(picture, tint, 0.5).save(buffer, fields["output_format"])
        b64 = base64.b64encode(buffer.getvalue()).decode()
        if self.kind == "sglang":
            data = {"b64_json": b64, "url": None, "revised_prompt": fields["prompt"]}
            return JSONResponse({"id": "1", "created": 0, "data": [data], "inference_time_s": 1.0})
        size, metrics = f"{width}x{height}", {"stage_durations": None, "peak_memory_mb": None}
        data = {"b64_json": b64, "url": None, "revised_prompt": None}
        answer = {"created": 0, "data": [data], "output_format": "png", "size": size}
        return JSONResponse(answer | {"cot_output": None, "metrics": metrics})


def _files(form: FormData) -> list[tuple[str, UploadFile]]:
    return [(name, one) for name, one in form.multi_items() if isinstance(one, UploadFile)]


def vllm_error(message: str, status: int) -> Response:
    """An error as vLLM's handler of HTTPException writes it."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)


@contextmanager
def serving(engine: ImageEngine) -> Iterator[ImageEngine]:
    """Serve it in a thread."""
    # Without `log_config` uvicorn sets its loggers anew for the whole process, other tests too.
    config = uvicorn.Config(
        engine.app(), host="127.0.0.1", port=engine.port, log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        engine.port = server.servers[0].sockets[0].getsockname()[1]
        yield engine
    finally:
        engine.is_open.set()
        server.should_exit = True
        thread.join()


def main(port: int) -> None:
    """Serve a vLLM-Omni that prints a line for each edit and ends none, until it is killed."""
    engine = ImageEngine(at_begin=partial(print, "begun", flush=True))
    engine.is_open.clear()
    uvicorn.run(engine.app(), host="127.0.0.1", port=port, log_level="critical", lifespan="off")


if __name__ == "__main__":
    main(int(sys.argv[1]))
