"""Runs the service as its users do, `bentoml serve` in a process of its own, on 127.0.0.1.

Beside it an origin to fetch from, and the requests that the tests send.
"""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx

from support.models.tiny_folder import tiny_folder
from support.servers.origin import Origin, Script, answer, by_path

ROOT = Path(__file__).parents[3]
SAMPLE = (ROOT / "src/retouch/web/static/sample.jpg").read_bytes()
JSON = {"Content-Type": "application/json"}
SAMPLE_URL = "data:image/jpeg;base64," + base64.b64encode(SAMPLE).decode()
ALL_DAY: dict[str, Any] = {
    "width": 1280,
    "height": 1280,
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
}
"""Takes the tiny model well over 10 s on one core, in steps of some 0.3 s."""
_START_S = 120.0
_STOP_S = 20.0


class Service:
    """One service in a folder of its own: its home, its local store, its log.

    The folder holds links to the code and no `.env`, so nothing but `settings` decides; unless they
    name a model it is the tiny one.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.store = folder / "store"
        for name in ("service.py", "src"):
            (folder / name).symlink_to(ROOT / name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self.client = httpx.Client(base_url=self.url, timeout=180, trust_env=False)
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "BENTOML_HOME": str(self.home),
            "BENTOML_DO_NOT_TRACK": "True",
            "HF_HUB_OFFLINE": "1",
            # The threads of several services would spin for one another on two cores.
            "OMP_NUM_THREADS": "1",
            "LOCAL_STORE_DIR": str(self.store),
            "MODEL_ID": str(tiny_folder()),
            **settings,
        }

    def start(self) -> None:
        options = ["service:Retouch", "--host", "127.0.0.1", "--port", str(self.port)]
        out, err = self.folder / "stdout", self.folder / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and options
                [sys.executable, "-m", "bentoml", "serve", *options],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # what it starts can be ended with it
            )

    @property
    def pid(self) -> int:
        """The process that was started; what it starts is below it."""
        return self._process.pid

    def stop(self) -> int:
        """End it as a platform does, and by force what has not ended then; return its status."""
        self.client.close()
        self._process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def kill(self) -> None:
        """Kill it with all it has started, in whatever session; it may be started again."""
        doomed = [self._process.pid]
        for pid in doomed:  # grows on the way
            for thread in Path(f"/proc/{pid}/task").glob("*/children"):
                doomed += [int(child) for child in thread.read_text().split()]
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def wait(self) -> int:
        """Return its status when it has ended by itself."""
        return self._process.wait(_START_S)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=_STOP_S)

    def wait_until_bound(self) -> None:
        self.wait_for(self._is_bound)

    def wait_until_ready(self) -> None:
        self.wait_for(self._is_ready)

    def ask(self, *, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """Send an edit, of the sample unless the fields name another image."""
        return self.client.post("/edit", json=request(**fields), headers=headers)

    def edit(self, **fields: Any) -> dict[str, Any]:
        """Return the result of an edit that must succeed."""
        response = self.ask(**fields)
        assert response.status_code == httpx.codes.OK, response.text
        result: dict[str, Any] = response.json()["result"]
        return result

    @contextmanager
    def stream(self, **fields: Any) -> Iterator["Events"]:
        """Send an edit, hear of its progress; leaving ends the connection."""
        headers = {"Accept": "text/event-stream"}
        with self.client.stream("POST", "/edit", json=request(**fields), headers=headers) as answer:
            yield Events(answer)

    @contextmanager
    def busy(self) -> Iterator["Events"]:
        """Have the model at work on an edit that takes long, and cancel it in the end."""
        with self.stream(**ALL_DAY) as events:
            events.skip_to("progress", stage="denoise", step=1)
            yield events

    @property
    def output(self) -> str:
        """All it has printed, on both streams."""
        return "".join((self.folder / name).read_text() for name in ("stdout", "stderr"))

    def require_clean_log(self, secrets: Iterable[str]) -> list[dict[str, Any]]:
        """Return its log: every line printed is one JSON object, and no secret is in any."""
        lines = self.output.splitlines()
        for secret in secrets:
            assert not [line for line in lines if secret in line], secret
        return [json.loads(line) for line in lines]

    def events(self, name: str, **fields: object) -> list[dict[str, Any]]:
        """Return the log lines of `name` that have these fields."""
        lines = (self.folder / "stdout").read_text().splitlines()
        found = [json.loads(line) for line in lines if f'"message": "{name}"' in line]
        return [line for line in found if fields.items() <= line.items()]

    def wait_for_event(self, name: str, **fields: object) -> dict[str, Any]:
        self.wait_for(lambda: bool(self.events(name, **fields)))
        return self.events(name, **fields)[-1]

    def _is_bound(self) -> bool:
        with suppress(OSError), self.connect():
            return True
        return False

    def _is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return self.client.get("/readyz").status_code == httpx.codes.OK
        return False

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        give_up_at_s = time.monotonic() + _START_S
        while not is_so():
            assert self._process.poll() is None, f"the service ended: {self.output[-3000:]}"
            assert time.monotonic() < give_up_at_s, self.output[-3000:]
            time.sleep(0.02)


class Events:
    """The server-sent events of one answer."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.request_id = response.headers["x-request-id"]
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        name = ""
        for line in self._lines:
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            if line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    def skip_to(self, name: str, **fields: object) -> None:
        """Read on until such an event has come."""
        for found, body in self:
            if found == name and fields.items() <= body.items():
                return
        raise AssertionError(f"the stream ended without {name} {fields}")


def request(**fields: Any) -> dict[str, Any]:
    """Return a request for an edit of the sample, with these fields."""
    return {"image_url": SAMPLE_URL, "prompt": "make colors warmer", **fields}


def opened(url: str) -> httpx.Response:
    """Follow a link as anybody would."""
    return httpx.get(url, trust_env=False)


def require_error(response: httpx.Response, status: int, kind: str, code: str) -> dict[str, Any]:
    """Hold an answer to the envelope of errors and return its `error`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"status", "error"}
    assert body["status"] == "error"
    error: dict[str, Any] = body["error"]
    assert set(error) == {"type", "message", "details"}
    assert (error["type"], error["details"]["code"]) == (kind, code)
    assert isinstance(error["details"]["retryable"], bool)
    assert error["details"]["request_id"] == response.headers["x-request-id"]
    return error


class LiveOrigin:
    """An `Origin` in a thread of its own; the scripts of its paths may come later, if it has no other."""

    def __init__(self, script: Script | None = None) -> None:
        self.scripts: dict[str, Script] = {}
        self._origin = Origin(script or by_path(self.scripts))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._origin.__aenter__(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._origin.__aexit__(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def port(self) -> int:
        return self._origin.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def offer(self, target: str, script: Script | None = None) -> str:
        """Answer requests for `target` by the script, or with the sample; return the URL."""
        self.scripts[target] = script or answer(SAMPLE, headers=["Content-Type: image/jpeg"])
        return f"http://{self.address}{target}"

    def count(self, target: str) -> int:
        """Return how often `target` was asked for."""
        return len(self.heads(target))

    def heads(self, target: str) -> list[bytes]:
        """Return the requests for `target` as they came."""
        start = f"GET {target} ".encode()
        return [head for head in self._origin.requests if head.startswith(start)]


@contextmanager
def started(folder: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """Start a service and end it afterwards, whether or not it has become ready."""
    service = Service(folder, settings)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def serving(folder: Path, settings: Mapping[str, str]) -> Iterator[Service]:
    """As `started`, and wait until it is ready."""
    with started(folder, settings) as service:
        service.wait_until_ready()
        yield service
