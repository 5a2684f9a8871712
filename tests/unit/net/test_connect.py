import errno
import socket
import ssl
from collections.abc import Sequence
from typing import Any

import httpcore
import pytest

from retouch.errors import SourceUnreachable
from retouch.net.connect import Connector
from retouch.net.limits import FetchLimits
from retouch.net.url import parse_url

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # the default one takes 30 ms to load


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


async def connect(network: Network, *answers: str, error: Exception | None = None) -> None:
    """Connect to a host whose look-up gives `answers`, or fails with `error`."""

    def resolve(host: str, port: int) -> Sequence[str]:
        if error:
            raise error
        return answers

    connector = Connector(
        FetchLimits(max_dials=4, connect_timeout_s=8),
        resolve=resolve,
        network=network,
        ssl_context=NO_TLS,
    )
    async with connector.connect(parse_url("http://a.example/")):
        pass


async def test_the_first_answer_that_connects_is_used_and_no_more_are_dialled() -> None:
    network = Network("1.1.1.2", "1.1.1.3")
    await connect(network, "1.1.1.1", "1.1.1.1", "1.1.1.2", "1.1.1.3")
    assert network.dialled == ["1.1.1.1", "1.1.1.2"]


async def test_each_dial_gets_its_share_of_the_time() -> None:
    network = Network("1.1.1.4")
    await connect(network, *(f"1.1.1.{n}" for n in range(1, 5)))
    assert network.timeouts == pytest.approx([2, 8 / 3, 4, 8], rel=0.01)


async def test_dials_are_bounded_and_alternate_between_address_families() -> None:
    network = Network()
    six = [f"2606:4700::{n}" for n in range(1, 6)]
    with pytest.raises(httpcore.ConnectError):
        await connect(network, *six, "1.1.1.1")
    assert network.dialled == [six[0], "1.1.1.1", six[1], six[2]]
    network = Network()
    with pytest.raises(httpcore.ConnectError):
        await connect(network, "1.1.1.1", "1.1.1.2", *six[:2])
    assert network.dialled == ["1.1.1.1", six[0], "1.1.1.2", six[1]]


@pytest.mark.parametrize(
    "answers",
    [(), ("10.0.0.1",), ("1.1.1.1", "10.0.0.1"), ("::1", "1.1.1.1"), ("1.1.1.1", "fe80::1%lo")],
)
async def test_one_refused_answer_refuses_the_name(answers: tuple[str, ...]) -> None:
    network = Network(*answers)
    with pytest.raises(SourceUnreachable) as refused:
        await connect(network, *answers)
    assert network.dialled == []
    with pytest.raises(SourceUnreachable) as unknown:
        await connect(network, error=OSError("no such name"))
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
        await connect(Network(), error=error)
    assert caught.value.is_transient is is_transient
    assert caught.value.details == SourceUnreachable().details
