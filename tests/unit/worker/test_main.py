import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from runpod import RunPodLogger, serverless
from runpod.serverless.modules import rp_fitness, rp_scale

from retouch.settings import Settings
from retouch.worker import __main__, sdk
from retouch.worker.startup import StartupChecks, StartupError

S3 = {"s3_endpoint": "s3.example", "s3_access_key": "a", "s3_secret_key": "b", "s3_bucket": "c"}


class Sdk:
    """What the SDK was given: checks and a config. `run` is what its loop does."""

    def __init__(self) -> None:
        self.checks: list[Callable[[], Awaitable[None]]] = []
        self.config: dict[str, Any] = {}
        self.started = 0
        self.run: Callable[[], None] = lambda: None

    def start(self, config: dict[str, Any]) -> None:
        self.config = config
        self.started += 1
        self.run()

    async def check(self) -> None:
        """Run the checks in a loop, as the SDK does."""
        for check in self.checks:
            assert inspect.iscoroutinefunction(check)
            await check()

    @property
    def names(self) -> list[str]:
        return [check.__name__ for check in self.checks]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings that are fit, and checks that pass; the checks that ran."""
    ran: list[str] = []
    for name in ("bucket", "gpu", "weights"):

        def check(_: StartupChecks, name: str = name) -> None:
            ran.append(name)

        check.__name__ = name
        monkeypatch.setattr(StartupChecks, name, check)
    settings = Settings(_env_file=None, **S3)
    monkeypatch.setattr(__main__, "load_worker_settings", lambda: settings)
    return ran


@pytest.fixture(autouse=True)
def platform(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    platform = Sdk()
    monkeypatch.setattr(serverless, "start", platform.start)
    monkeypatch.setattr(rp_fitness, "_fitness_checks", platform.checks)
    monkeypatch.setattr(RunPodLogger, "log", RunPodLogger.log)
    monkeypatch.setattr(rp_scale, "JobScaler", rp_scale.JobScaler)
    monkeypatch.setattr(__main__.logs, "install", lambda *_, **__: None)
    monkeypatch.setattr(sdk, "IS_LOCAL_TEST", False)
    monkeypatch.setattr(__main__.signal, "signal", lambda *_: None)
    return platform


def refuse(line: str) -> Callable[[], Settings]:
    def load() -> Settings:
        raise StartupError(line)

    return load


def test_on_the_platform_the_sdk_runs_the_checks(platform: Sdk, ran: list[str]) -> None:
    __main__.main([])
    assert platform.names == ["bucket", "gpu", "weights"]
    assert ran == []
    assert platform.started == 1
    assert set(platform.config) == {"handler"}


def test_a_check_on_the_platform_may_run_an_event_loop(
    platform: Sdk, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As loading does for adapters at URLs and for a server's model."""

    def weights(_: StartupChecks) -> None:
        ran.append(asyncio.run(asyncio.sleep(0, "loop")))

    monkeypatch.setattr(StartupChecks, "weights", weights)
    __main__.main([])
    asyncio.run(platform.check())
    assert ran == ["bucket", "gpu", "loop"]


@pytest.mark.parametrize("options", [["--test_input", "{}"], ["--rp_serve_api"]])
def test_off_the_platform_they_run_before_the_sdk_starts(
    platform: Sdk, ran: list[str], options: list[str]
) -> None:
    __main__.main(options)
    assert ran == ["bucket", "gpu", "weights"]
    assert platform.checks == []
    assert platform.started == 1


def test_off_the_platform_wrong_settings_end_the_process_with_their_line(
    platform: Sdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "IS_LOCAL_TEST", True)
    monkeypatch.setattr(__main__, "load_worker_settings", refuse("set S3_BUCKET"))
    with pytest.raises(SystemExit) as ended:
        __main__.main([])
    assert ended.value.code == "the worker cannot start: set S3_BUCKET"
    assert platform.started == 0


def test_on_the_platform_wrong_settings_are_a_check_that_fails(
    platform: Sdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "load_worker_settings", refuse("set S3_BUCKET"))
    __main__.main([])
    assert platform.names == ["settings"]
    with pytest.raises(StartupError, match="set S3_BUCKET"):
        asyncio.run(platform.check())


def test_the_host_is_closed_at_the_end(
    platform: Sdk, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    async def close(_: object) -> None:
        closed.append(True)

    def end() -> None:
        raise SystemExit(0)  # as the SDK ends a local run

    monkeypatch.setattr(__main__.ModelHost, "close", close)
    platform.run = end
    with pytest.raises(SystemExit):
        __main__.main([])
    assert closed == [True]


def test_an_unknown_option_is_refused(platform: Sdk) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--unknown"])
    assert platform.started == 0


def test_a_refresh_is_requested_by_the_key_the_sdk_reads() -> None:
    config: dict[str, Any] = {}
    sdk.request_refresh(config)
    assert config == {"refresh_worker": True}


async def test_progress_goes_to_the_address_of_results(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    async def send_result(_: object, message: Any, job: Any) -> None:
        sent.append((message, job))

    monkeypatch.setattr(sdk, "send_result", send_result)
    await sdk.send_progress({"id": "job-1"}, {"stage": "queue"})
    assert sent == [({"status": "IN_PROGRESS", "output": {"stage": "queue"}}, {"id": "job-1"})]


def test_the_sdk_logs_through_this_process_after_the_start(
    ran: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    __main__.main([])
    RunPodLogger().info("Started.", "job-1")
    assert [record.name for record in caplog.records if record.message == "Started."] == ["runpod"]
    assert logging.getLogger("runpod").handlers == []
