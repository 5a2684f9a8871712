"""How the service's processes end: by SIGTERM, killed, and without their supervisor."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.processes.hanging import write_sitecustomize
from support.servers.bentoml_service import Service, require_error, serving

pytestmark = pytest.mark.e2e

GRACE_S = 5.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service whose edits take as long as their prompts say."""
    hook = tmp_path / "hook"
    hook.mkdir()
    settings = {
        "PYTHONPATH": write_sitecustomize(hook),
        "STOP_GRACE_SECONDS": str(GRACE_S),
    }
    with serving(tmp_path, settings) as service:
        yield service


def find_worker(service: Service) -> int:
    """Return the process below the supervisor that serves."""
    children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
    (worker,) = [
        int(child)
        for child in children
        if b"_bentoml_impl.worker.service" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return worker


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_sigterm_lets_edits_end_within_the_grace_and_answers_the_rest(service: Service) -> None:
    worker = find_worker(service)
    with ThreadPoolExecutor(4) as callers:
        edits = [callers.submit(service.ask, prompt="take 3") for _ in range(4)]
        service.wait_for(lambda: service.client.get("/metrics").text.count("edits_inside 4.0"))
        began_s = time.monotonic()
        os.kill(service.pid, signal.SIGTERM)
        service.wait_for(lambda: service.events("stop.began", edits=4))
        require_error(service.client.get("/readyz"), 503, "NotReady", "not_ready")
        assert service.client.get("/livez").status_code == 200
        require_error(service.ask(), 503, "NotReady", "not_ready")
        answers = [edit.result() for edit in edits]
        service.wait_for(lambda: not is_alive(worker))
        took_s = time.monotonic() - began_s
    assert service.wait() == 0
    whole_s = time.monotonic() - began_s
    print(f"SIGTERM to end: worker {took_s:.1f} s, supervisor {whole_s:.1f} s")  # noqa: T201
    assert took_s < GRACE_S + 10  # the bench holds the bar; a busy machine is slower
    cancelled = [answer for answer in answers if answer.status_code != httpx.codes.OK]
    assert 2 <= len(cancelled) <= 3
    for answer in cancelled:
        assert require_error(answer, 503, "NotReady", "not_ready")["details"]["retryable"]
    finished = len(answers) - len(cancelled)
    assert service.events("stop.finished", finished=finished, cancelled=len(cancelled))


def test_a_killed_process_is_logged_and_the_next_one_edits(service: Service) -> None:
    killed = find_worker(service)
    os.kill(killed, signal.SIGKILL)
    line = service.wait_for_event("process.died", pid=killed)
    assert (line["level"], line["exit_status"]) == ("ERROR", -signal.SIGKILL)
    service.wait_for(lambda: len(service.events("engine.ready")) == 2)
    service.wait_until_ready()
    assert service.ask().status_code == httpx.codes.OK


def test_a_process_without_its_supervisor_ends_and_frees_the_port(service: Service) -> None:
    worker = find_worker(service)
    os.kill(service.pid, signal.SIGKILL)
    service.wait()
    give_up_at_s = time.monotonic() + 20
    while is_alive(worker):
        assert time.monotonic() < give_up_at_s
        time.sleep(0.05)
    assert service.events("supervisor.died", pid=service.pid)
    with pytest.raises(httpx.ConnectError):
        service.client.get("/livez")
