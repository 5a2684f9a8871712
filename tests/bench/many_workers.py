"""Edits by several workers on one store: nothing lost, double or corrupt, and the metrics add up.

PYTHONPATH=src:tests python tests/bench/many_workers.py --help

The workers are those of one `bentoml serve`, with a model that answers at once: a source of one colour
becomes a result of one colour, which its seed says. Every fifth request repeats an earlier one. With
--kills so many workers are killed meanwhile, and their callers ask again. The exit
status is 1 if anything is wrong.
"""

import argparse
import io
import itertools
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from PIL import Image
from support.processes.hanging import write_sitecustomize
from support.servers.bentoml_service import LiveOrigin, Service, opened, serving
from support.servers.ceph_rgw import Rgw
from support.servers.origin import answer

SIDE_PX = 64
SOURCES = 20
MAX_ATTEMPTS = 5


class Run:
    """The requests to one service, and what came of them."""

    def __init__(self, service: Service, origin: LiveOrigin, seed: int) -> None:
        self.service = service
        self.origin = origin
        self.chance = random.Random(seed)  # noqa: S311 - which requests
        self.colours = [self.chance.randrange(1 << 24) for _ in range(SOURCES)]
        self.urls = [self._offer(number, colour) for number, colour in enumerate(self.colours)]
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.keys: dict[str, tuple[int, int]] = {}
        self.turn = threading.Lock()

    def requests(self, count: int, killing: "Future[None]") -> Iterator[tuple[int, int]]:
        """Yield pairs of a source's number and a seed: so many, and more while workers are killed."""
        sent: list[tuple[int, int]] = []
        for seed in itertools.count():
            if seed >= count and killing.done():
                return
            again = bool(sent) and seed % 5 == 4
            pair = self.chance.choice(sent) if again else (self.chance.randrange(SOURCES), seed)
            sent.append(pair)
            yield pair

    def ask_all(self, requests: Iterator[tuple[int, int]]) -> None:
        """Ask one after the other, as long as there are any for this caller."""
        while True:
            with self.turn:
                pair = next(requests, None)
            if pair is None:
                return
            self.ask(pair)

    def ask(self, pair: tuple[int, int]) -> None:
        """Edit, open the link, and judge what is there."""
        source, seed = pair
        fields = {"image_url": self.urls[source], "seed": seed, "width": SIDE_PX, "height": SIDE_PX}
        response = self.patiently(lambda: self.service.ask(**fields))
        if response is None:
            self.faults.append(f"{pair} got no answer")
            return
        if response.status_code != httpx.codes.OK:
            self.faults.append(f"{pair} got {response.text}")
            return
        self.judge(pair, response.json()["result"])

    def patiently(self, ask: Callable[[], httpx.Response]) -> httpx.Response | None:
        """Ask until the worker that is asked lives on."""
        for _ in range(MAX_ATTEMPTS):
            try:
                response = ask()
            except httpx.TransportError:
                self.counts["broken connections"] += 1
                continue
            if "model_lost" not in response.text:
                return response
            self.counts["model_lost"] += 1
        return None

    def judge(self, pair: tuple[int, int], result: Mapping[str, Any]) -> None:
        """Require the result's own pixels, and a key that no other request has."""
        self.counts["reused" if result["meta"]["reused"] else "edited"] += 1
        if self.keys.setdefault(result["object_key"], pair) != pair:
            self.faults.append(f"{pair} has the key of {self.keys[result['object_key']]}")
        link = self.patiently(lambda: opened(result["presigned_url"]))
        found = None
        if link is not None and link.is_success:
            found = Image.open(io.BytesIO(link.content)).convert("RGB")
        if found is None or found.tobytes() != self._expected(pair).tobytes():
            self.faults.append(f"{pair} has wrong pixels, or none ({link})")

    def kill(self, kills: int, every_s: float) -> None:
        """Kill a worker now and then, while others are ready."""
        for _ in range(kills):
            time.sleep(every_s)
            self.service.wait_for(lambda: self.count_ready() > 1)
            os.kill(self.chance.choice(find_workers(self.service)), signal.SIGKILL)
            self.counts["kills"] += 1

    def count_metrics(self, workers: int) -> None:
        """Require that the counters of all workers are what the callers saw."""
        self.service.wait_for(lambda: self.count_ready() == workers)
        text = self.scrape()
        found = re.findall(r'^retouch_edits_total{code="success".* (\S+)$', text, re.MULTILINE)
        counted, seen = sum(map(float, found)), self.counts["edited"] + self.counts["reused"]
        # Each was counted, or not: its worker died before or after.
        lost = self.counts["broken connections"] + self.counts["model_lost"]
        if not seen <= counted <= seen + lost:
            self.faults.append(f"the metrics count {counted:.0f} edits, callers {seen}")
        fetched = sum(self.origin.count(f"/{number}") for number in range(SOURCES))
        if fetched > SOURCES * workers + self.counts["kills"] * SOURCES:
            self.faults.append(f"{fetched} fetches of {SOURCES} sources")
        self.counts["fetches"] = fetched

    def count_ready(self) -> int:
        """Return how many workers are ready."""
        found = re.search(r"^retouch_ready (\d+)", self.scrape(), re.MULTILINE)
        return int(found[1]) if found else 0

    def scrape(self) -> str:
        response = self.patiently(lambda: self.service.client.get("/metrics"))
        return response.text if response else ""

    def _offer(self, number: int, colour: int) -> str:
        file = io.BytesIO()
        solid(colour).save(file, "PNG")
        script = answer(file.getvalue(), headers=["Content-Type: image/png"])
        return self.origin.offer(f"/{number}", script)

    def _expected(self, pair: tuple[int, int]) -> Image.Image:
        return Image.blend(solid(self.colours[pair[0]]), solid(pair[1] % (1 << 24)), 0.5)


def solid(colour: int) -> Image.Image:
    return Image.new("RGB", (SIDE_PX, SIDE_PX), f"#{colour:06x}")


def find_workers(service: Service) -> list[int]:
    """Return the processes below the supervisor that serve."""
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    found = []
    for child in children:
        with suppress(FileNotFoundError):  # it has ended
            if b"worker.service" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return sorted(found)


@contextmanager
def running(folder: Path, store: str) -> Iterator[dict[str, str]]:
    """Yield the settings of a store that runs."""
    if store == "local":
        yield {}
        return
    with Rgw(folder) as gateway:
        yield gateway.settings()


def measure(store: str, asked: argparse.Namespace) -> Run:
    """Send the requests to workers on a new store."""
    with TemporaryDirectory() as name, LiveOrigin() as origin:
        folder, hook = Path(name) / "service", Path(name) / "hook"
        folder.mkdir()
        hook.mkdir()
        with running(Path(name), store) as settings:
            settings |= {
                "GPUS": str(asked.workers),
                "PYTHONPATH": write_sitecustomize(hook),
                "ALLOWED_SOURCE_HOSTS": origin.address,
                "MAX_QUEUE": str(asked.callers),
            }
            with serving(folder, settings) as service:
                run = Run(service, origin, asked.seed)
                service.wait_for(lambda: run.count_ready() == asked.workers)
                began_s = time.monotonic()
                with ThreadPoolExecutor(asked.callers + 1) as callers:
                    killing = callers.submit(run.kill, asked.kills, asked.kill_every)
                    requests = run.requests(asked.edits, killing)
                    list(callers.map(run.ask_all, [requests] * asked.callers))
                    killing.result()
                run.counts["seconds"] = round(time.monotonic() - began_s)
                run.count_metrics(asked.workers)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=2000, help="default: 2000, on each store")
    parser.add_argument("--workers", type=int, default=4, help="default: 4")
    parser.add_argument("--callers", type=int, default=16, help="at a time; default: 16")
    parser.add_argument("--kills", type=int, default=0, help="of workers; default: none")
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds; default: 5")
    parser.add_argument("--stores", default="local,s3", help="default: local,s3")
    parser.add_argument("--seed", type=int, default=1, help="of the requests; default: 1")
    asked = parser.parse_args()
    faults = 0
    for store in asked.stores.split(","):
        run = measure(store, asked)
        counts = ", ".join(f"{what} {number}" for what, number in sorted(run.counts.items()))
        lines = [f"FAULT {fault}" for fault in run.faults[:20]]
        lines.append(f"{store}: {asked.workers} workers, {counts}; faults {len(run.faults)}")
        print("\n".join(lines), flush=True)  # noqa: T201
        faults += len(run.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
