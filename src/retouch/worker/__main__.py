"""Run the Runpod worker: `python -m retouch.worker`."""

import argparse
import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from typing import Any

from runpod import serverless

from retouch import logs
from retouch.lifecycle import ModelHost, prepare_process
from retouch.worker import sdk
from retouch.worker.handler import Worker
from retouch.worker.progress import Reporter
from retouch.worker.startup import StartupChecks, StartupError, load_worker_settings

_LINGER_S = 10.0
"""Time to deliver the last job's result before a process whose model hangs ends."""


def _build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m retouch.worker",
        description="Edit images by instruction, as a Runpod serverless worker. Off the platform it "
        "runs one job, from --test_input or ./test_input.json, or the SDK's local server.",
        parents=[serverless.parser],
        add_help=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Check what the worker needs, then take jobs until the platform ends it."""
    options = _build_parser().parse_args(arguments)
    prepare_process()
    # Until the SDK handles it: the first process of a container ignores it where nobody does.
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    sdk.redirect_log()
    credential = sdk.get_credential()
    logs.install("INFO", secrets=[credential])  # after the SDK, which installs a handler too
    is_local = bool(sdk.IS_LOCAL_TEST or options.test_input or options.rp_serve_api)
    try:
        settings = load_worker_settings()
    except StartupError as error:
        _serve([_refuse(error)], {}, is_local=is_local)
        return
    logs.install(settings.log_level, secrets=[*settings.secrets, credential])
    host = ModelHost(settings, linger_s=_LINGER_S)
    config: dict[str, Any] = {}
    send = sdk.discard_progress if is_local else sdk.send_progress
    worker = Worker(
        host,
        refresh=partial(sdk.request_refresh, config),
        build_reporter=lambda job: Reporter(partial(send, job)),
    )
    config["handler"] = worker.handle
    sdk.close_on_stop(host.close)
    try:
        _serve(StartupChecks(host).checks, config, is_local=is_local)
    finally:
        asyncio.run(host.close())


def _serve(checks: Sequence[Callable[[], None]], config: dict[str, Any], *, is_local: bool) -> None:
    """Run the checks, here or by the SDK, which reports a failure to the platform; then take jobs.

    The SDK runs them in its event loop. Loading runs loops of its own, so each check has a thread.
    """
    try:
        for check in checks:
            if is_local:
                check()
            else:
                apart = partial(asyncio.to_thread, check)
                serverless.register_fitness_check(update_wrapper(apart, check))
        serverless.start(config)
    except StartupError as error:
        raise SystemExit(f"the worker cannot start: {error}") from None


def _refuse(error: StartupError) -> Callable[[], None]:
    """Return a check that fails, so that the platform is told why the settings are wrong."""

    def settings() -> None:
        raise error

    return settings


if __name__ == "__main__":
    main()
