"""Runpod workers and model hosts over fakes: no platform, no loading."""

from functools import partial
from typing import Any

from retouch.lifecycle import ModelHost
from retouch.worker import sdk
from retouch.worker.handler import Worker
from retouch.worker.progress import Reporter
from support.fakes import House
from support.settings import build_settings


def build_host(house: House, **settings: Any) -> ModelHost:
    """A host whose model is loaded: the house's editor and store."""
    return ModelHost(build_settings(**settings), store=house.store, editor=house.editor)


def build_worker(house: House) -> Worker:
    """A worker off the platform: it sends no progress."""
    return Worker(
        build_host(house),
        refresh=lambda: None,
        build_reporter=lambda job: Reporter(partial(sdk.discard_progress, job)),
    )
