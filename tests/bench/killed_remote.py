"""Kill the server that ENGINE_URL names in mid-edit, again and again, and count what callers get.

PYTHONPATH=src:tests python tests/bench/killed_remote.py --rounds 20
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.servers import image_engines
from support.servers.bentoml_service import Service, started
from support.servers.image_engines import ImageEngine, serving

_SLOWEST_S = 10.0


def start_stuck(port: int) -> subprocess.Popen[str]:
    """Start a server in a process of its own that begins edits and ends none."""
    command = [sys.executable, str(Path(image_engines.__file__)), str(port)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ours


def is_bound(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kill_in_edit(service: Service, port: int) -> tuple[str, float]:
    """Return the code of an edit whose server was killed, and the seconds until the answer."""
    with start_stuck(port) as server, ThreadPoolExecutor(1) as threads:
        service.wait_for(lambda: is_bound(port))
        service.wait_until_ready()
        asked = threads.submit(service.ask)
        assert server.stdout
        server.stdout.readline()
        server.kill()
        killed_s = time.monotonic()
        error = asked.result().json()["error"]["details"]
    assert error["retryable"]
    return error["code"], time.monotonic() - killed_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    with serving(ImageEngine()) as free:
        port = free.port
    with tempfile.TemporaryDirectory() as folder:
        settings = {"ENGINE_URL": f"http://127.0.0.1:{port}"}
        with started(Path(folder), settings) as service:
            ends = [kill_in_edit(service, port) for _ in range(rounds)]
            kept = [path for path in service.store.rglob("*") if "results" in str(path)]
            with serving(ImageEngine(port=port)):
                service.edit()
    codes, slowest_s = Counter(code for code, _ in ends), max(took_s for _, took_s in ends)
    files = [path for path in kept if path.is_file()]
    print(f"{dict(codes)}, answered within {slowest_s:.2f} s, results kept {len(files)}")  # noqa: T201
    assert set(codes) == {"engine_unavailable"}
    assert slowest_s < _SLOWEST_S
    assert not files


if __name__ == "__main__":
    main()
