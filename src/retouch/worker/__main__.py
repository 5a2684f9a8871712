"""Run the Runpod worker: `python -m retouch.worker`."""

import argparse
import asyncio
from collections.abc import Sequence
from functools import partial

from runpod import serverless
from runpod.http_client import get_auth_header
from runpod.serverless.modules.worker_state import IS_LOCAL_TEST

from retouch import logs
from retouch.worker.handler import Worker
from retouch.worker.progress import Reporter
from retouch.worker.sdk import redirect_sdk_log, send_progress
from retouch.worker.startup import StartupChecks, StartupError


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
    redirect_sdk_log()
    platform_secrets = [get_auth_header()["Authorization"]]  # type: ignore[no-untyped-call]
    logs.install("INFO", secrets=platform_secrets)  # after the SDK, which installs a handler too
    start = StartupChecks(platform_secrets=platform_secrets)
    is_local = bool(IS_LOCAL_TEST or options.test_input or options.rp_serve_api)
    worker = Worker(
        lambda: start.editor,
        build_reporter=None if is_local else lambda job: Reporter(partial(send_progress, job)),
    )
    worker.config["concurrency_modifier"] = lambda _: start.jobs_at_a_time
    try:
        for check in start.checks:
            if is_local:
                check()
            else:
                serverless.register_fitness_check(check)
        serverless.start(worker.config)
    except StartupError as error:
        raise SystemExit(f"the worker cannot start: {error}") from None
    finally:
        asyncio.run(start.exits.aclose())


if __name__ == "__main__":
    main()
