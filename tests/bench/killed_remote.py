"""Kill what makes the edits of a service in mid-edit, again and again, and count what callers get.

PYTHONPATH=src:tests python tests/bench/killed_remote.py --rounds 20 --what remote,rank

`remote` is the server that ENGINE_URL names, `rank` the second process of PARALLEL=guidance and
`ulysses` that of PARALLEL=ulysses, with the tiny model on the CPU. The exit status is 1 if an answer is not the typed error, is late, or leaves a
result in the store, or if the next edit fails.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from support.servers import image_engines
from support.servers.bentoml_service import ALL_DAY, Service, started
from support.servers.image_engines import ImageEngine, serving

_SLOWEST_S = 10.0
Kill = Callable[[], None]
"""Waits until the edit is under way, and kills."""


def start_stuck(port: int) -> subprocess.Popen[str]:
    """Start a server in a process of its own that begins edits and ends none."""
    command = [sys.executable, str(Path(image_engines.__file__)), str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours


def is_bound(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def remote(service: Service, port: int) -> Iterator[Kill]:
    """Have a server for one edit."""
    with start_stuck(port) as server:
        service.wait_for(lambda: is_bound(port))
        service.wait_until_ready()

        def kill() -> None:
            assert server.stdout
            server.stdout.readline()
            server.kill()

        yield kill


@contextmanager
def rank(service: Service, _: int) -> Iterator[Kill]:
    """Have both processes ready."""
    service.wait_until_ready()

    def kill() -> None:
        service.wait_for(lambda: "retouch_edits_running 1" in service.client.get("/metrics").text)
        os.kill(find_second(service.pid), signal.SIGKILL)

    yield kill


def find_second(pid: int) -> int:
    """Return the process of the second GPU below `pid`."""
    found = [pid]
    for parent in found:  # grows on the way
        for thread in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in thread.read_text().split()]
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    (second,) = [pid for pid, command in commands.items() if b"retouch.engine." in command]
    return second


def kill_in_edit(service: Service, kill: Kill) -> tuple[str, float]:
    """Return the code of an edit whose maker was killed, and the seconds until the answer."""
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(service.ask, **ALL_DAY)
        kill()
        killed_s = time.monotonic()
        error = asked.result().json()["error"]["details"]
    assert error["retryable"]
    return error["code"], time.monotonic() - killed_s


KINDS = {
    "remote": (remote, "engine_unavailable"),
    "rank": (rank, "model_lost"),
    "ulysses": (rank, "model_lost"),
}
SETTINGS = {"rank": {"PARALLEL": "guidance"}, "ulysses": {"PARALLEL": "ulysses"}}


def measure(what: str, rounds: int) -> bool:
    """Print what came of so many kills, and return whether it is right."""
    with serving(ImageEngine()) as free:
        port = free.port
    prepare, code = KINDS[what]
    url = f"http://127.0.0.1:{port}"
    settings = SETTINGS.get(what, {"ENGINE_URL": url})
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), settings) as service:
        ends = []
        for _ in range(rounds):
            with prepare(service, port) as kill:
                ends.append(kill_in_edit(service, kill))
            print(what, len(ends), ends[-1], file=sys.stderr, flush=True)  # noqa: T201
            if what != "remote":  # which ends after the answer
                service.wait_for(lambda: len(service.events("process.died")) == len(ends))
        kept = [path for path in service.store.rglob("*") if "results" in str(path)]
        with serving(ImageEngine(port=port)):
            service.wait_until_ready()
            service.edit()
    codes, slowest_s = Counter(code for code, _ in ends), max(took_s for _, took_s in ends)
    files = [path for path in kept if path.is_file()]
    counts = f"{dict(codes)}, answered within {slowest_s:.2f} s, results kept {len(files)}"
    print(f"{what}: {counts}", flush=True)  # noqa: T201
    return set(codes) == {code} and slowest_s < _SLOWEST_S and not files


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="kills of each; default: 20")
    parser.add_argument(
        "--what", default="remote,rank", help="of remote, rank, ulysses; default: remote,rank"
    )
    asked = parser.parse_args()
    are_right = [measure(what, asked.rounds) for what in asked.what.split(",")]
    return 0 if all(are_right) else 1


if __name__ == "__main__":
    sys.exit(main())
