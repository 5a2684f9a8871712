import errno
import socket
from typing import Any

import httpcore
import pytest

from retouch.errors import SourceUnreachable
from retouch.net.address import is_public
from retouch.net.connect import CheckedBackend


class Network(httpcore.AsyncNetworkBackend):
    """Connects to `up` only; keeps what was dialled and the time each dial was given."""

    def __init__(self, *up: str) -> None:
        self._up = up
        self.dialled: list[str] = []
        self.timeouts: list[float] = []

    async def connect_tcp(
        self, host: str, port: int, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append(host)
        self.timeouts.append(options["timeout"])
        if host not in self._up:
            raise httpcore.ConnectError
        return httpcore.AsyncMockStream([])


def build_guard(network: Network, *answers: str, error: Exception | None = None) -> CheckedBackend:
    async def look_up(host: str, port: int) -> list[str]:
        if error:
            raise error
        return list(answers)

    return CheckedBackend(network, look_up, is_public, max_dials=4, timeout_s=8)


async def test_the_first_answer_that_connects_is_used_and_no_more_are_dialled() -> None:
    network = Network("1.1.1.2", "1.1.1.3")
    await build_guard(network, "1.1.1.1", "1.1.1.1", "1.1.1.2", "1.1.1.3").connect_tcp("a", 80)
    assert network.dialled == ["1.1.1.1", "1.1.1.2"]


async def test_each_dial_gets_its_share_of_the_time() -> None:
    network = Network("1.1.1.4")
    await build_guard(network, *(f"1.1.1.{n}" for n in range(1, 5))).connect_tcp("a", 80)
    assert network.timeouts == pytest.approx([2, 8 / 3, 4, 8], rel=0.01)


async def test_dials_are_bounded_and_alternate_between_address_families() -> None:
    network = Network()
    six = [f"2606:4700::{n}" for n in range(1, 6)]
    with pytest.raises(httpcore.ConnectError):
        await build_guard(network, *six, "1.1.1.1").connect_tcp("a", 80)
    assert network.dialled == [six[0], "1.1.1.1", six[1], six[2]]
    network = Network()
    with pytest.raises(httpcore.ConnectError):
        await build_guard(network, "1.1.1.1", "1.1.1.2", *six[:2]).connect_tcp("a", 80)
    assert network.dialled == ["1.1.1.1", six[0], "1.1.1.2", six[1]]


@pytest.mark.parametrize(
    "answers",
    [(), ("10.0.0.1",), ("1.1.1.1", "10.0.0.1"), ("::1", "1.1.1.1"), ("1.1.1.1", "fe80::1%lo")],
)
async def test_one_refused_answer_refuses_the_name(answers: tuple[str, ...]) -> None:
    network = Network(*answers)
    with pytest.raises(SourceUnreachable) as refused:
        await build_guard(network, *answers).connect_tcp("a", 80)
    assert network.dialled == []
    with pytest.raises(SourceUnreachable) as unknown:
        await build_guard(network, error=OSError("no such name")).connect_tcp("a", 80)
    assert refused.value.message == unknown.value.message
    assert refused.value.details == unknown.value.details


@pytest.mark.parametrize(
    ("error", "is_transient"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), False),
        (socket.gaierror(socket.EAI_AGAIN, "the resolver is down"), True),
        (OSError(errno.EMFILE, "too many open files"), True),
        (RuntimeError("can't start new thread"), True),
        (UnicodeError("no name"), False),
    ],
)
async def test_a_failed_lookup_reads_the_same_whether_or_not_it_is_transient(
    error: Exception, is_transient: bool
) -> None:
    with pytest.raises(SourceUnreachable) as caught:
        await build_guard(Network(), error=error).connect_tcp("a", 80)
    assert caught.value.is_transient is is_transient
    assert caught.value.details == SourceUnreachable().details


async def test_no_url_leads_to_a_local_socket() -> None:
    with pytest.raises(SourceUnreachable):
        await build_guard(Network()).connect_unix_socket("/run/docker.sock")


async def test_a_guard_that_never_connected_closes_quietly() -> None:
    await build_guard(Network()).aclose()
