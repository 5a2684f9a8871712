import logging
from collections.abc import Callable
from typing import Any

import pytest
from runpod import RunPodLogger, serverless
from runpod.serverless.modules import rp_fitness

from retouch.worker import __main__
from retouch.worker import sdk as runpod_sdk
from retouch.worker.startup import StartupChecks, StartupError


class Sdk:
    """What the SDK was given: checks and a config. Its start does what a test says."""

    def __init__(self) -> None:
        self.checks: list[Callable[[], None]] = []
        self.config: dict[str, Any] = {}
        self.started = 0

    def start(self, config: dict[str, Any]) -> None:
        self.config = config
        self.started += 1


class Checks:
    """Checks that note when they ran; `fault` is what the last one refuses with."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fault: StartupError | None = None

    def settings(self) -> None:
        self.ran.append("settings")

    def weights(self) -> None:
        self.ran.append("weights")
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    checks = Checks()
    monkeypatch.setattr(StartupChecks, "checks", [checks.settings, checks.weights])
    return checks


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    sdk = Sdk()
    monkeypatch.setattr(serverless, "start", sdk.start)
    monkeypatch.setattr(rp_fitness, "_fitness_checks", sdk.checks)
    monkeypatch.setattr(RunPodLogger, "log", RunPodLogger.log)
    monkeypatch.setattr(__main__.logs, "install", lambda *_, **__: None)
    monkeypatch.setattr(__main__, "IS_LOCAL_TEST", False)
    return sdk


def test_on_the_platform_the_sdk_runs_the_checks(sdk: Sdk, checks: Checks) -> None:
    __main__.main([])
    assert sdk.checks == [checks.settings, checks.weights]
    assert checks.ran == []
    assert sdk.started == 1


@pytest.mark.parametrize("options", [["--test_input", "{}"], ["--rp_serve_api"]])
def test_off_the_platform_they_run_before_the_sdk_starts(
    sdk: Sdk, checks: Checks, options: list[str]
) -> None:
    __main__.main(options)
    assert checks.ran == ["settings", "weights"]
    assert sdk.checks == []
    assert sdk.started == 1


def test_a_refusal_ends_the_process_with_its_line(
    sdk: Sdk, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "IS_LOCAL_TEST", True)
    checks.fault = StartupError("set S3_BUCKET")
    with pytest.raises(SystemExit) as ended:
        __main__.main([])
    assert ended.value.code == "the worker cannot start: set S3_BUCKET"
    assert sdk.started == 0


def test_what_was_opened_is_closed_at_the_end(
    sdk: Sdk, checks: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    def end(config: dict[str, Any]) -> None:
        start: StartupChecks = config["concurrency_modifier"].__closure__[0].cell_contents
        start.exits.callback(closed.append, "editor")
        raise SystemExit(0)  # as the SDK ends a local run

    monkeypatch.setattr(serverless, "start", end)
    with pytest.raises(SystemExit):
        __main__.main([])
    assert closed == ["editor"]


def test_an_option_nobody_knows_is_refused(sdk: Sdk, checks: Checks) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--unknown"])
    assert sdk.started == 0


async def test_progress_goes_to_the_address_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    async def send_result(_: object, message: Any, job: Any) -> None:
        sent.append((message, job))

    monkeypatch.setattr(runpod_sdk, "send_result", send_result)
    await runpod_sdk.send_progress({"id": "job-1"}, {"stage": "queue"})
    assert sent == [({"status": "IN_PROGRESS", "output": {"stage": "queue"}}, {"id": "job-1"})]


def test_the_sdk_logs_through_this_process_after_the_start(sdk: Sdk, checks: Checks) -> None:
    __main__.main([])
    assert RunPodLogger.log is runpod_sdk._log_for_sdk  # noqa: SLF001 - the one place it shows
    assert logging.getLogger("runpod").handlers == []
