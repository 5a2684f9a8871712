"""Measures the service without the model: an edit over HTTP with an engine that takes no time.

PYTHONPATH=.:src:tests python tests/bench/overhead.py --store local

A JPEG of 1 MP goes in, a PNG of 1 MP comes out, the source is in the cache. Two bars: what is neither
decoding, encoding nor storage stays under 15 ms, and so does what the decoder's child costs over
decoding in place. The exit status is 1 if one is missed.
"""

import argparse
import io
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

import httpx
import uvicorn
from PIL import Image
from support.servers.bentoml_service import SAMPLE, LiveOrigin
from support.servers.ceph_rgw import Rgw, free_ports
from support.servers.origin import answer

from retouch import wiring
from retouch.editing.ports import (
    EditParams,
    EngineInfo,
    EngineOutput,
    GenerationDefaults,
    PreparedEdit,
)
from retouch.images import decode

BAR_MS = 15.0
SIDES_PX = (1184, 896)
STORAGE = ("fetch", "store")
CODING = ("source_decode", "encode")


class NoTimeEngine:
    """Returns one image for every edit at once."""

    info = EngineInfo("none", "", "", "", GenerationDefaults(1, 1.0, SIDES_PX[0] * SIDES_PX[1]))

    def __init__(self, image: Image.Image) -> None:
        self._image = image

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def prepare(self, images: Sequence[Image.Image], params: EditParams) -> PreparedEdit:
        return PreparedEdit(params, None)

    def finish(self, output: EngineOutput) -> Image.Image:
        return self._image

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[..., None]) -> EngineOutput:
        on_step(0, prepared.params.steps)
        return EngineOutput(None, 0.0, 0.0, 0.0)


def make_photo() -> tuple[Image.Image, bytes]:
    image = Image.open(io.BytesIO(SAMPLE)).convert("RGB").resize(SIDES_PX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92)
    return image, buffer.getvalue()


@contextmanager
def s3_settings(folder: Path) -> Iterator[dict[str, str]]:
    with Rgw(folder) as gateway:
        yield gateway.settings()


@contextmanager
def service(settings: dict[str, str], engine: NoTimeEngine) -> Iterator[str]:
    """Serve the service's own app over HTTP from a thread of this process; yield its URL."""
    os.environ.update(settings)  # settings are read on import, so one process measures one store
    wiring.build_engine = lambda _settings: engine  # type: ignore[assignment]
    from service import Retouch

    port = free_ports(1)[0]
    config = uvicorn.Config(
        Retouch.to_asgi(),  # type: ignore[attr-defined]
        port=port,
        log_config=None,
        access_log=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def measure(url: str, image_url: str, runs: int) -> list[dict[str, float]]:
    """Return the milliseconds of each phase of each run, and `http`: the whole as the caller sees it."""
    measured = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        while client.get("/readyz").status_code != httpx.codes.OK:
            time.sleep(0.05)
        for number in range(runs + 3):
            began = time.perf_counter()
            response = client.post("/edit", json={"image_url": image_url, "prompt": "none"})
            took_ms = 1000 * (time.perf_counter() - began)
            meta = response.raise_for_status().json()["result"]["meta"]
            if number >= 3:
                assert meta["source"]["cached"]
                measured.append({**meta["timings_ms"], "http": took_ms})
            time.sleep(0.2)  # as callers do: the next child starts in the meantime
    return measured


def median_ms(call: Callable[[], object], runs: int) -> float:
    took_s = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        took_s.append(time.perf_counter() - began)
    return 1000 * statistics.median(took_s)


def tabulate(measured: list[dict[str, float]], in_place_ms: float) -> tuple[str, bool]:
    """Return the table and whether both bars are met."""
    phases = {name: statistics.median(run[name] for run in measured) for name in measured[0]}
    known = (*STORAGE, *CODING)
    rest_ms = statistics.median(run["http"] - sum(run[n] for n in known) for run in measured)
    editor_ms = statistics.median(run["total"] - sum(run[n] for n in known) for run in measured)
    child_ms = phases["source_decode"] - in_place_ms
    rows = [
        ("total over HTTP", phases["http"], ""),
        ("  storage: cache look-up", phases["fetch"], ""),
        ("  decode, in the child", phases["source_decode"], ""),
        ("  encode", phases["encode"], ""),
        ("  storage: result", phases["store"], ""),
        ("  all else", rest_ms, f"bar {BAR_MS:g}"),
        ("    of it in the editor", editor_ms, ""),
        ("decode in place", in_place_ms, ""),
        ("what the child costs", child_ms, f"bar {BAR_MS:g}"),
    ]
    lines = [f"{name:<26}{ms:>8.1f} ms  {bar}".rstrip() for name, ms, bar in rows]
    return "\n".join(lines) + "\n", max(rest_ms, child_ms) < BAR_MS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=50, help="edits measured (default: 50)")
    parser.add_argument("--store", choices=("local", "s3"), default="s3", help="default: s3")
    options = parser.parse_args()
    image, jpeg = make_photo()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.chdir(folder)  # no `.env` there
        origin = stack.enter_context(LiveOrigin())
        source = origin.offer("/1mp.jpg", answer(jpeg))
        settings = {
            "ALLOWED_SOURCE_HOSTS": origin.address,
            "BENTOML_HOME": str(folder / "home"),
            "LOCAL_STORE_DIR": str(folder / "store"),
        }
        if options.store == "s3":
            (folder / "rgw").mkdir()
            settings |= stack.enter_context(s3_settings(folder / "rgw"))
        log = stack.enter_context((folder / "log").open("w"))
        with redirect_stdout(log):  # the log is written as always, only not here
            url = stack.enter_context(service(settings, NoTimeEngine(image)))
            measured = measure(url, source, options.runs)
        in_place_ms = median_ms(lambda: decode.decode(jpeg, decode.Limits()), options.runs)
    table, met = tabulate(measured, in_place_ms)
    sys.stdout.write(
        f"{options.store} store, {options.runs} edits of {len(jpeg)} bytes, medians\n{table}"
    )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
