"""Send requests of 33 MiB to a real service and watch its memory and its health route; stop it amid edits.

PYTHONPATH=src:tests python tests/bench/large_requests.py --help

The exit status is 1 if a bar is missed. Memory is that of the service and everything it started; with
eight requests at once it is held to 4 GiB by a control group, where one can be made.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import httpx
from support.attacks.report import Row, run_attacks
from support.servers.bentoml_service import ALL_DAY, JSON, SAMPLE_URL, Service, request, serving

MIB = 1 << 20
MEMORY_BAR = 200 * MIB
HEALTH_BAR_S = 0.5
GROUP_LIMIT = 4 << 30
STOP_GRACE_S = 5
STOP_BAR_S = 7.0
SPELLINGS = {
    "plain base64": "data:;base64," + "A" * (33 * MIB),
    "base64 in lines": "data:;base64," + "AAAA\n" * (11 * MIB // 2),
    "percent-encoded": "data:," + "%41" * (11 * MIB),
    "percent-encoded base64": "data:;base64," + "%41" * (11 * MIB),
    "UTF-8": "data:," + "%41é" * (6 * MIB),
}


def tree(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for one in found:  # grows on the way
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def resident(pid: int) -> int:
    """Return the resident bytes of a process and all below it."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096
    return total


class Watch:
    """The slowest answer of `/livez` and the most memory since it began."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._stop = threading.Event()
        self.slowest_s = 0.0
        self.before = self.peak = resident(service.pid)
        self._threads = [threading.Thread(target=self._ask), threading.Thread(target=self._weigh)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._service.url, timeout=30, trust_env=False) as client:
            while not self._stop.wait(0.02):
                began_s = time.monotonic()
                client.get("/livez").raise_for_status()
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    def _weigh(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, resident(self._service.pid))


@contextlib.contextmanager
def running() -> Iterator[Service]:
    """Start a service of the tiny model, and end it."""
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), {"STOP_GRACE_SECONDS": str(STOP_GRACE_S)}) as service,
    ):
        yield service


async def attack_one(_: argparse.Namespace) -> list[Row]:
    """Send one request of 33 MiB in each spelling."""
    rows: list[Row] = []
    with running() as service:
        service.edit()
        for name, url in SPELLINGS.items():
            body = httpx.Request("POST", service.url, json=request(image_url=url)).read()
            with Watch(service) as watch:
                status = service.client.post("/edit", content=body, headers=JSON).status_code
            more = watch.peak - watch.before
            held = more < MEMORY_BAR and watch.slowest_s < HEALTH_BAR_S
            told = f"{status}, {more / MIB:+.0f} MiB, /livez {watch.slowest_s:.2f} s"
            rows.append((name, f"{len(body) / MIB:.0f} MiB", told, held))
    return rows


def limit_memory(pid: int) -> str:
    """Move a process and all below it into a control group of `GROUP_LIMIT`; say how."""
    for folder, limit in (
        (Path("/sys/fs/cgroup/memory/large"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup/large"), "memory.max"),
    ):
        try:
            folder.mkdir(exist_ok=True)
            (folder / limit).write_text(str(GROUP_LIMIT))
            for one in tree(pid):
                (folder / "cgroup.procs").write_text(str(one))
        except OSError:
            continue
        return "4 GiB control group"
    return "no control group"


async def attack_eight(_: argparse.Namespace) -> list[Row]:
    """Send eight requests of 33 MiB at once to a service held to 4 GiB."""
    url = SPELLINGS["plain base64"]
    with running() as service:
        service.edit()
        held_by = limit_memory(service.pid)
        body = httpx.Request("POST", service.url, json=request(image_url=url)).read()

        def post(_: int) -> int:
            with httpx.Client(timeout=180, trust_env=False) as client:
                answer = client.post(service.url + "/edit", content=body, headers=JSON)
                return answer.status_code

        with Watch(service) as watch, ThreadPoolExecutor(8) as threads:
            statuses = sorted(threads.map(post, range(8)))
        service.edit()
    told = (
        f"{statuses}, {(watch.peak - watch.before) / MIB:+.0f} MiB, /livez {watch.slowest_s:.2f} s"
    )
    return [("eight at once", held_by, told, len(statuses) == 8)]


async def attack_stop(_: argparse.Namespace) -> list[Row]:
    """Stop a service with one edit running and three waiting."""
    with running() as service:
        url = service.url + "/edit"
        body = {"image_url": SAMPLE_URL, "prompt": "x", **ALL_DAY}

        def post(_: int) -> str:
            with httpx.Client(timeout=60, trust_env=False) as client:
                try:
                    answer = client.post(url, json=body)
                except httpx.TransportError as error:
                    return type(error).__name__
                return f"{answer.status_code} {answer.json().get('error', {}).get('details', {}).get('retryable')}"

        with ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(post, n) for n in range(4)]
            await asyncio.sleep(2)
            began_s = time.monotonic()
            os.kill(service.pid, signal.SIGTERM)
            service.wait()
            took_s = time.monotonic() - began_s
            told = [answer.result() for answer in answers]
    good = took_s <= STOP_BAR_S and all(one in ("503 True", "200 None") for one in told)
    return [("SIGTERM", "1 runs, 3 wait", f"{took_s:.1f} s, {told}", good)]


ATTACKS: dict[str, Callable[[argparse.Namespace], Awaitable[list[Row]]]] = {
    "one": attack_one,
    "eight": attack_eight,
    "stop": attack_stop,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = f"of {', '.join(ATTACKS)}; all if none is named"
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS], metavar="ATTACK", help=told)
    return run_attacks(ATTACKS, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
