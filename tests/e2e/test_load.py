"""The load and soak tests of tests/bench, for seconds in place of minutes."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from support.load.audit import Stored, audit, read_log, read_store
from support.load.phases import EDITING, Load, plan
from support.load.requests import KEYS, Hosts, Requests, serve_picture
from support.load.soaking import Checkpoint, Soak, deliver, judge, requests, settle
from support.processes.process_stats import measure, watching
from support.servers.bentoml_service import LiveOrigin, Service, request, serving
from support.servers.origin import until

pytestmark = pytest.mark.e2e

FIRST_SOAKED = 100_000
"""The soak's requests are numbered apart: they share their service with the load."""
ONE_AT_A_TIME = httpx.Limits(max_keepalive_connections=0)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with LiveOrigin(serve_picture) as origin:
        yield Hosts(origin.port)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, hosts: Hosts) -> Iterator[Service]:
    settings = {
        "MODEL_ID": "",
        "ALLOWED_SOURCE_HOSTS": hosts.allowed,
        "API_KEYS": ",".join(KEYS.values()),
        "SOURCE_TIMEOUT_SECONDS": "1",
        "MAX_QUEUE": "3",
    }
    with serving(tmp_path_factory.mktemp("load"), settings) as running:
        yield running


async def test_under_load_every_request_gets_exactly_its_own_answer(
    service: Service, hosts: Hosts
) -> None:
    def stored() -> list[Stored]:
        return [each for each in read_store(service.store) if each.seed < FIRST_SOAKED]

    def faults() -> list[str]:
        return audit(load.attempts, stored(), read_log(service.folder / "stdout"))

    async with httpx.AsyncClient(
        base_url=service.url, limits=ONE_AT_A_TIME, trust_env=False
    ) as client:
        load = Load(client, Requests(hosts, side_px=64, steps=1), seed=1)
        capacity_per_s = await load.calibrate(2)
        for phase in plan(capacity_per_s, total_s=6, names=("above", "flood")):
            await load.run(phase)
        await load.drain()
    await until(lambda: not faults(), within_s=5)  # a line of the log may come after its answer
    found = {(each.kind, each.code) for each in load.attempts}
    assert found >= {(kind, "success") for kind in EDITING}
    assert ("cached", "queue_full") in found


async def test_a_hundred_equal_requests_at_once_make_one_edit_and_share_its_object(
    local: Service, origin: LiveOrigin
) -> None:
    asked = request(image_url=origin.offer("/equal.jpg"), prompt="as a hundred ask", seed=7)
    at_once = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(
        base_url=local.url, limits=at_once, timeout=60, trust_env=False
    ) as client:
        answers = await asyncio.gather(*(client.post("/edit", json=asked) for _ in range(100)))

    results = [answer.raise_for_status().json()["result"] for answer in answers]
    assert len({result["object_key"] for result in results}) == 1
    assert [result["meta"]["reused"] for result in results].count(False) == 1
    assert len({result["meta"]["job_id"] for result in results}) == 100


async def test_edits_leave_no_descriptor_and_no_process(service: Service, hosts: Hosts) -> None:
    soak = Soak()
    asks = requests(Requests(hosts, side_px=64, steps=1), first=FIRST_SOAKED)
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
        with watching(service.pid, every_s=0.1) as watch:
            for edits in (20, 40):
                await deliver(client, asks, soak, edits=edits, connections=2)
                soak.checkpoints.append(Checkpoint(edits, 0, await settle(service.pid)))
    assert soak.faults == []
    assert judge(soak, 20) == []
    assert watch.samples


def test_an_answered_request_leaves_nothing_in_memory(local: Service) -> None:
    def ask(times: int) -> int:
        for _ in range(times):
            assert local.client.get("/livez").status_code == 200
        return measure(local.pid)["worker"].rss_bytes

    settled_bytes = ask(500)
    assert ask(2000) - settled_bytes < 2 << 20  # 7 MiB while BentoML kept a timer for each
