"""Two workers on one port: both edit, one is killed in mid-edit, the metrics are those of both."""

import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.processes.hanging import write_sitecustomize
from support.servers.bentoml_service import Service, opened, require_error, serving

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers whose edits take as long as their prompts say."""
    folder = tmp_path_factory.mktemp("pair")
    hook = folder / "hook"
    hook.mkdir()
    settings = {"GPUS": "2", "PYTHONPATH": write_sitecustomize(hook)}
    with serving(folder, settings) as service:
        service.wait_for(lambda: read(service, "retouch_ready") == 2)
        yield service
    service.require_clean_log([])


def read(service: Service, metric: str) -> float:
    """Return the sum of the series that begin so."""
    text = service.client.get("/metrics").text
    return sum(map(float, re.findall(rf"^{metric}[ ,](?:.* )?(\S+)$", text, re.MULTILINE)))


def find_workers(service: Service) -> set[int]:
    """Return the processes below the supervisor that serve."""
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return {pid for pid, command in commands.items() if b"worker.service" in command}


def begin_two(service: Service, callers: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Have an edit run on each worker."""
    edits = []
    for count in (1, 2):
        edits.append(callers.submit(service.ask, prompt="take 5"))
        service.wait_for(lambda count=count: read(service, "retouch_edits_running") == count)  # type: ignore[misc]
    return edits


def test_edits_run_side_by_side_and_are_counted_together(pair: Service) -> None:
    before = read(pair, 'retouch_edits_total{code="success"')
    with ThreadPoolExecutor(2) as callers:
        edits = begin_two(pair, callers)
        links = [each.result().json()["result"]["presigned_url"] for each in edits]
    assert [opened(link).status_code for link in links] == [200, 200]
    assert read(pair, 'retouch_edits_total{code="success"') == before + 2
    text = pair.client.get("/metrics").text
    for worker in (0, 1):
        assert f'process_resident_memory_bytes{{worker="{worker}"}}' in text


def test_workers_inherit_the_memory_for_their_weights(pair: Service) -> None:
    workers = find_workers(pair)
    assert len(workers) == 2
    for pid in workers:
        environment = Path(f"/proc/{pid}/environ").read_text()
        named = re.search(r"RETOUCH_WEIGHTS=(\d+),2", environment)
        assert named
        assert "retouch-weights" in str(Path(f"/proc/{pid}/fd/{named[1]}").readlink())


def test_a_result_is_reused_whichever_worker_is_asked(pair: Service) -> None:
    keys = set()

    def is_reused() -> bool:
        result = pair.edit(seed=11, prompt="make it blue")
        keys.add(result["object_key"])
        return bool(result["meta"]["reused"])

    pair.wait_for(is_reused)  # by the other worker once the index of results is written
    assert all(is_reused() for _ in range(7))
    assert len(keys) == 1
    answered = read(pair, 'retouch_edits_total{code="success"')
    finished = [line for line in pair.events("edit.finished") if not line["reused"]]
    assert answered == len(pair.events("edit.finished"))
    assert len(finished) < answered


def follow(service: Service, begun: list[int]) -> tuple[str, dict[str, Any]]:
    """Return the last event of an edit; tell `begun` once its answer has begun."""
    with service.stream(prompt="take 1") as events:
        begun.append(1)
        return list(events)[-1]


def test_a_worker_killed_in_mid_edit_costs_its_callers_an_error_and_is_replaced(
    pair: Service,
) -> None:
    before = read(pair, 'retouch_edits_total{code="success"')
    workers = find_workers(pair)
    with ThreadPoolExecutor(4) as callers:
        edits = begin_two(pair, callers)
        streams, begun = [], list[int]()
        for count in (1, 2):  # one waits on each worker
            streams.append(callers.submit(follow, pair, begun))
            pair.wait_for(lambda count=count: len(begun) == count)  # type: ignore[misc]
            pair.wait_for(lambda count=count: read(pair, "retouch_edits_inside") == 2 + count)  # type: ignore[misc]
        os.kill(min(workers), signal.SIGKILL)
        (lost,) = [answer for edit in edits if (answer := edit.result()).status_code != 200]
        names = sorted(stream.result()[0] for stream in streams)
    assert require_error(lost, 503, "NotReady", "model_lost")["details"]["retryable"]
    assert (lost.headers["retry-after"], lost.headers["connection"]) == ("5", "close")
    assert names == ["error", "result"]
    assert len(pair.events("requests.lost", requests=2)) == 1
    for seed in (1, 2, 3):  # while the other worker starts
        assert pair.client.get("/readyz").status_code == 200
        assert pair.edit(prompt="make it red", seed=seed)["meta"]["reused"] is False
    pair.wait_for_event("process.died", exit_status=-signal.SIGKILL)
    pair.wait_for(lambda: read(pair, "retouch_ready") == 2)
    assert len(find_workers(pair) - workers) == 1
    assert read(pair, 'retouch_edits_total{code="success"') == before + 5
