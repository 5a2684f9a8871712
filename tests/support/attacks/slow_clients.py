"""Hundreds of callers: slow, silent, not reading, or all at once; and what they cost the service."""

import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from support.attacks.raw_http import Answer, Call, get, post, send

LARGE_TARGET = b"/demo.webp"
SLOW: Mapping[str, tuple[bytes, bytes]] = {
    "silent": (b"", b""),
    "half a head": (b"GET / HTTP/1.1\r\nHost: a\r\n", b""),
    "head dripped": (b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
    "header dripped": (b"GET / HTTP/1.1\r\nA: ", b"b"),
    "target dripped": (b"GET /", b"a"),
    "second head dripped": (get(b"/livez"), b"G"),
    "body dripped": (post(b"{", b"Content-Length: 9999"), b" "),
    "chunks dripped": (post(b"", b"Transfer-Encoding: chunked"), b"1\r\n \r\n"),
    "chunk size dripped": (post(b"", b"Transfer-Encoding: chunked"), b"0"),
    "body dripped after its answer": (
        get(b"/livez", b"Content-Length: 9999", method=b"POST"),
        b" ",
    ),
    "deaf": (get(LARGE_TARGET) * 8, b"\r\n"),
}
"""By name: what is sent first, and what is sent again every second."""


class Watch:
    """Memory and descriptors of the process that answers."""

    def __init__(self, parent: int) -> None:
        family = psutil.Process(parent).children(recursive=True)
        [self._process] = [
            one for one in family if "_bentoml_impl.worker.service" in " ".join(one.cmdline())
        ]

    @property
    def descriptors(self) -> int:
        return int(self._process.num_fds())

    @property
    def memory_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    @contextmanager
    def peak(self) -> Iterator[list[int]]:
        """Return the bytes by which the peak resident memory exceeded that at the start."""
        proc = Path(f"/proc/{self._process.pid}")
        (proc / "clear_refs").write_text("5")
        before, grown = self.memory_bytes, [0]
        yield grown
        [line] = [one for one in (proc / "status").read_text().splitlines() if "VmHWM" in one]
        grown[0] = int(line.split()[1]) * 1024 - before

    def wait_until_descriptors(self, at_most: int, timeout_s: float) -> int:
        give_up_at_s = time.monotonic() + timeout_s
        while self.descriptors > at_most and time.monotonic() < give_up_at_s:
            time.sleep(0.2)
        return self.descriptors


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def is_open(connection: socket.socket) -> bool:
    """Send without reading: such a caller only notices the end of the connection."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def hold_slow(port: int, name: str, timeout_s: float) -> float:
    """Run one slow caller; return the seconds until its connection was closed."""
    first, again = SLOW[name]
    began_s = time.monotonic()
    with connect(port) as connection:
        if name == "deaf":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(first)
        while time.monotonic() < began_s + timeout_s:
            time.sleep(1)
            connection.setblocking(True)
            try:
                connection.sendall(again)
                if name != "deaf":
                    connection.settimeout(0.01)
                    with suppress(TimeoutError):
                        while connection.recv(65536):
                            pass
                        return time.monotonic() - began_s
            except OSError:
                return time.monotonic() - began_s
            if not is_open(connection):
                return time.monotonic() - began_s
    return float("inf")


def time_calls(port: int, call: Call, times: int) -> float:
    """Return the median seconds of an answer; each request has its own connection."""
    took_s = []
    for _ in range(times):
        began_s = time.monotonic()
        answer = send(port, call)
        took_s.append(time.monotonic() - began_s)
        assert answer.status in call.allowed, answer
    return statistics.median(took_s)


def push(port: int, call: Call, number: int) -> list[Answer]:
    """Send from `number` callers at once; return their answers."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(lambda _: send(port, call, timeout_s=180), range(number)))


def count(answers: Iterable[Answer]) -> Counter[int]:
    return Counter(answer.status for answer in answers)
