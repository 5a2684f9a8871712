"""The engine over servers that answer as vLLM-Omni and SGLang do."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.responses import JSONResponse, PlainTextResponse, Response
from support.fakes import House
from support.servers import image_engines
from support.servers.image_engines import MODEL, ImageEngine, serving, vllm_error
from support.web import client, open_host, require_error, settings

import retouch
from retouch.editing.ports import EditParams, run_edit
from retouch.errors import (
    Cancelled,
    EditError,
    EngineDenied,
    EngineRefused,
    EngineUnavailable,
    ModelError,
)
from retouch.remote.engine import RemoteEngine, RemoteSettings, connect

pytestmark = pytest.mark.integration

KEY = "k-4dd0c1b2"
PICTURE = Image.new("RGB", (80, 60), "teal")
PARAMS = EditParams(
    prompt="make it warmer",
    negative_prompt=" ",
    seed=7,
    steps=8,
    guidance_scale=2.5,
    scheduler="Euler",
    width_px=96,
    height_px=64,
)


@contextmanager
def connected(url: str, **changes: Any) -> Iterator[RemoteEngine]:
    """Connect to a server, without pauses."""
    chosen = {"pauses_s": (0.0, 0.0), "start_pause_s": 0.01} | changes
    with closing(connect(RemoteSettings(url, **chosen), progress=lambda _: None)) as engine:
        yield engine


@dataclass(frozen=True)
class Pair:
    server: ImageEngine
    engine: RemoteEngine


@pytest.fixture(scope="module")
def pairs() -> Iterator[dict[str, Pair]]:
    with ExitStack() as exits:
        found = {}
        for kind in ("vllm", "sglang"):
            server = exits.enter_context(serving(ImageEngine(kind)))
            found[kind] = Pair(server, exits.enter_context(connected(server.url)))
        yield found


@pytest.fixture
def vllm(pairs: dict[str, Pair]) -> Pair:
    pairs["vllm"].server.reset()
    return pairs["vllm"]


@pytest.fixture(params=["vllm", "sglang"])
def pair(pairs: dict[str, Pair], request: pytest.FixtureRequest) -> Pair:
    pairs[request.param].server.reset()
    return pairs[request.param]


def edit(engine: RemoteEngine, params: EditParams = PARAMS, *, images: int = 1) -> Image.Image:
    return run_edit(engine, [PICTURE] * images, params)[0]


def test_a_server_makes_the_picture_from_all_the_parameters(pair: Pair) -> None:
    image = edit(pair.engine)
    assert (image.mode, image.size) == ("RGB", (96, 64))
    assert image.getpixel((0, 0)) == (0, 64, 67)  # teal and the seed's colour
    assert pair.server.forms == [
        {
            "prompt": "make it warmer",
            "negative_prompt": " ",
            "n": "1",
            "size": "96x64",
            "response_format": "b64_json",
            "output_format": "png",
            "seed": "7",
            "num_inference_steps": "8",
            "guidance_scale": "2.5",
            "true_cfg_scale": "2.5",
            "files": ["image"],
        }
    ]


def test_the_seed_is_that_of_each_edit_of_the_same_pictures(vllm: Pair) -> None:
    first = vllm.engine.prepare([PICTURE], PARAMS)
    for prepared in (first, replace(first, params=replace(PARAMS, seed=8))):
        vllm.engine.edit(prepared, on_step=lambda _done, _steps: None)
    assert [form["seed"] for form in vllm.server.forms] == ["7", "8"]


def test_several_images_are_sent_as_openai_s_clients_send_them(pair: Pair) -> None:
    edit(pair.engine, images=3)
    assert pair.server.forms[0]["files"] == ["image[]"] * 3


def test_the_model_is_named_as_the_server_lists_it(vllm: Pair) -> None:
    with connected(vllm.server.url + "/v1/") as engine:
        assert (engine.info.model, engine.info.memory_plan) == (MODEL, "remote")


def test_a_model_that_is_asked_for_and_not_there_is_refused_in_the_server_s_words(
    vllm: Pair,
) -> None:
    with (
        connected(vllm.server.url, model="other") as engine,
        pytest.raises(EngineRefused, match="Model mismatch: request specifies 'other'"),
    ):
        edit(engine)


def test_a_picture_of_another_size_is_resized_with_a_note(vllm: Pair) -> None:
    vllm.server.size_px = (90, 60)
    image, output = run_edit(vllm.engine, [PICTURE], PARAMS)
    assert image.size == (96, 64)
    assert output.notes == ("the engine made 90 x 60 pixels: they are resized",)


def test_a_mask_is_left_to_the_editor_with_a_note(vllm: Pair) -> None:
    prepared = vllm.engine.prepare([PICTURE], PARAMS, mask=Image.new("L", PICTURE.size, 255))
    output = vllm.engine.edit(prepared, on_step=lambda _done, _steps: None)
    assert output.notes[0].startswith("the engine takes no mask")
    assert vllm.server.forms[0]["files"] == ["image"]


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (vllm_error("too\nlarge \x1b[31m" + "x" * 300, 400), EngineRefused, "too large"),
        (JSONResponse({"detail": [{"msg": "no seed"}]}, 422), EngineRefused, "edit: no seed$"),
        (PlainTextResponse("<html>", 413), EngineRefused, "edit: status 413$"),
        (vllm_error("who?", 403), EngineDenied, "refuses the key of this service$"),
        (vllm_error("later", 429), EngineUnavailable, "busy or starting"),
        (JSONResponse({"status": "unhealthy"}, 503), EngineUnavailable, "busy or starting"),
        (PlainTextResponse("bad gateway", 502), EngineUnavailable, "busy or starting"),
        (PlainTextResponse("Internal Server Error", 500), ModelError, "failed .*500"),
        (PlainTextResponse("", 307, headers={"Location": "/v2"}), ModelError, "failed .*307"),
        (JSONResponse({"data": []}), ModelError, "no picture"),
        (JSONResponse({"data": [{"b64_json": "AAAA"}]}), ModelError, "cannot be used"),
        (PlainTextResponse("[" * 100_000), ModelError, "no picture"),
    ],
)
def test_a_failure_of_the_server_is_an_error_of_ours(
    vllm: Pair, fault: Response, kind: type[EditError], words: str
) -> None:
    vllm.server.fault = fault
    with pytest.raises(kind, match=words) as caught:
        edit(vllm.engine)
    assert type(caught.value) is kind
    assert len(caught.value.message) < 250
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(("status", "attempts"), [(429, 3), (503, 3), (500, 1), (502, 1)])
def test_only_what_the_server_has_not_begun_is_sent_again(
    vllm: Pair, status: int, attempts: int
) -> None:
    vllm.server.fault = vllm_error("no", status)
    with pytest.raises(EditError):
        edit(vllm.engine)
    assert vllm.server.begun == attempts


def test_an_answer_over_the_limit_is_not_read_to_its_end(
    vllm: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retouch.remote.engine._MAX_ANSWER_BYTES", 100)
    with pytest.raises(ModelError, match="over 100 bytes"):
        edit(vllm.engine)


def test_a_key_goes_along_and_a_refused_one_ends_the_start() -> None:
    with serving(ImageEngine(key=KEY)) as server:
        with connected(server.url, key=KEY) as engine:
            edit(engine)
        with pytest.raises(EngineDenied), connected(server.url):
            pass


def test_the_start_waits_for_a_server_that_is_not_up_yet() -> None:
    port = free_port()
    heard = threading.Event()
    found: list[RemoteEngine] = []

    def wait() -> None:
        settings = RemoteSettings(f"http://127.0.0.1:{port}", start_pause_s=0.01)
        found.append(connect(settings, progress=lambda _: heard.set()))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert heard.wait(5)
    with serving(ImageEngine(port=port)):
        waiting.join(10)
    assert found[0].info.model == MODEL


def test_the_start_gives_up_in_the_end() -> None:
    settings = RemoteSettings(f"http://127.0.0.1:{free_port()}", start_s=0.0)
    with pytest.raises(ModelError, match="ENGINE_URL: the engine cannot be reached"):
        connect(settings, progress=lambda _: None)


def test_an_edit_that_is_to_end_closes_the_connection(vllm: Pair) -> None:
    vllm.server.is_open.clear()

    def leave(_done: int, _steps: int) -> None:
        if vllm.server.begun:
            raise Cancelled("the caller went away")

    with pytest.raises(Cancelled):
        run_edit(vllm.engine, [PICTURE], PARAMS, on_step=leave)
    wait_until(lambda: vllm.server.dropped == 1)
    vllm.server.is_open.set()
    edit(vllm.engine)


@contextmanager
def watching(engine: RemoteEngine) -> Iterator[None]:
    """Let it watch its server, in a thread."""
    loop = asyncio.new_event_loop()
    watch = loop.create_task(engine.watch())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(watch)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    loop.call_soon_threadsafe(watch.cancel)
    thread.join()
    loop.close()


def is_reachable(engine: RemoteEngine) -> bool:
    with suppress(EngineUnavailable, EngineDenied):
        engine.require_reachable()
        return True
    return False


async def ask_whether_ready(engine: RemoteEngine) -> httpx.Response:
    house = House(engine=engine)  # type: ignore[arg-type]
    async with client(host=open_host(settings(), house)) as http:
        return await http.get("/readyz")


def test_a_server_that_goes_is_noticed_and_so_is_one_that_comes_with_another_model() -> None:
    with ExitStack() as exits:
        with serving(ImageEngine()) as server:
            engine = exits.enter_context(connected(server.url, watch_s=0.05))
            exits.enter_context(watching(engine))
            assert asyncio.run(ask_whether_ready(engine)).text == f"ready: {MODEL}\n"
        wait_until(lambda: not is_reachable(engine))
        require_error(asyncio.run(ask_whether_ready(engine)), EngineUnavailable)
        with serving(ImageEngine(port=server.port, model="another")):
            wait_until(lambda: is_reachable(engine))
            assert asyncio.run(ask_whether_ready(engine)).text == "ready: another\n"
            assert edit(engine).size == (96, 64)


def test_a_model_that_changes_in_a_running_server_is_noticed() -> None:
    with (
        serving(ImageEngine()) as server,
        connected(server.url, watch_s=0.05) as engine,
        watching(engine),
    ):
        server.model = "another"
        wait_until(lambda: engine.info.model == "another")


def test_a_key_that_is_refused_later_is_noticed() -> None:
    with (
        serving(ImageEngine()) as server,
        connected(server.url, watch_s=0.05) as engine,
        watching(engine),
    ):
        server.key = KEY
        wait_until(lambda: not is_reachable(engine))
        with pytest.raises(EngineDenied):
            engine.require_reachable()


def test_a_server_killed_in_the_middle_of_an_edit_is_a_retryable_error_and_the_next_edit_works() -> (
    None
):
    port = free_port()
    with ExitStack() as exits:
        with stuck_server(port) as kill:
            engine = exits.enter_context(connected(f"http://127.0.0.1:{port}"))
            kill_in_edit(engine, kill)
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            edit(engine)
        with serving(ImageEngine(port=port)):
            assert edit(engine).size == (96, 64)


def kill_in_edit(engine: RemoteEngine, kill: Callable[[], None]) -> None:
    threading.Thread(target=kill).start()
    with pytest.raises(EngineUnavailable, match="dropped the connection") as caught:
        edit(engine)
    assert caught.value.retryable


@contextmanager
def stuck_server(port: int) -> Iterator[Callable[[], None]]:
    """Serve in a process of its own; the function kills it once it has begun an edit."""
    source = Path(image_engines.__file__)
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, str(source), str(port)], stdout=subprocess.PIPE, text=True
    ) as process:
        wait_until(lambda: accepts(port))

        def kill() -> None:
            assert process.stdout
            assert process.stdout.readline() == "begun\n"
            process.kill()

        try:
            yield kill
        finally:
            process.kill()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def wait_until(is_so: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(3000):
        if is_so():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come true")


def test_an_edit_needs_neither_torch_nor_diffusers(vllm: Pair) -> None:
    """In a process of its own: this one has loaded both."""
    program = (
        "import sys; from PIL import Image; from retouch import lifecycle, wiring;"
        "from retouch.editing.ports import EditParams, run_edit;"
        "from retouch.settings import Settings;"
        "engine = wiring.build_engine(Settings(_env_file=None, engine_url=sys.argv[1]));"
        "params = EditParams('warmer', ' ', 7, 4, 1.0, 'Euler', 96, 64);"
        "print(run_edit(engine, [Image.new('RGB', (80, 60))], params)[0].size);"
        "print(sys.modules.keys() & {'torch', 'diffusers', 'transformers'}); engine.close()"
    )
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", program, vllm.server.url],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(retouch.__path__[0]).parent), "HOME": "/nonexistent"},
    )
    assert done.stdout == "(96, 64)\nset()\n", done.stderr
