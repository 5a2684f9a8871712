import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from support.fakes import PATIENCE_S, REQUEST, House, Pause, settle, until
from support.settings import build_settings

from retouch import lifecycle, wiring
from retouch.editing.editor import Editor
from retouch.editing.ports import Engine
from retouch.engine import compilation
from retouch.errors import ModelError, ModelLost, NotReady, StoreUnavailable
from retouch.lifecycle import ModelHost, State, model_host
from retouch.schema import EditResult
from retouch.settings import Settings
from retouch.storage.port import Store


@dataclass
class Wires:
    """What `wiring` builds, in memory."""

    house: House = field(default_factory=House)
    fault: BaseException | None = None
    built: list[str] = field(default_factory=list)
    pause: Pause = field(default_factory=Pause)
    lose_model: Callable[[], None] = lambda: None

    def build_store(self, _: Settings) -> Store:
        return self.house.store

    def build_engine(self, _: Settings) -> Engine:
        self.pause.hold()
        if self.fault is not None:
            raise self.fault
        return self.house.engine

    def build_editor(
        self,
        _: Settings,
        engine: Engine,
        store: Store,
        *,
        exits: AsyncExitStack,
        expected_edit_s: float,
        on_model_lost: Callable[[], None],
    ) -> Editor:
        assert (engine, store) == (self.house.engine, self.house.store)
        self.built.append("editor")
        exits.push_async_callback(self.house.editor.close)
        self.lose_model = on_model_lost
        return self.house.editor


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Wires:
    wires = Wires()
    for name in ("build_store", "build_engine", "build_editor"):
        monkeypatch.setattr(wiring, name, getattr(wires, name))
    return wires


def settings(**changes: Any) -> Settings:
    return build_settings(**({"api_keys": ("one-key-of-callers",)} | changes))


def wait_for_load() -> None:
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(PATIENCE_S)


def opened(wires: Wires, **changes: Any) -> ModelHost:
    """A host that was opened, and whose model has been loaded or has failed."""
    wires.pause.release()
    host = ModelHost(settings(**changes))
    host.open()
    wait_for_load()
    return host


# --- the start ---------------------------------------------------------------------------------


def test_before_it_is_opened_nothing_is_ready() -> None:
    host = ModelHost(settings())
    with pytest.raises(NotReady, match="starting"):
        _ = host.store
    with pytest.raises(NotReady, match="still loading"):
        _ = host.editor
    host.require_alive()
    assert host.state is State.STARTING


def test_opening_returns_at_once_and_the_model_is_ready_once_it_is_warm(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host = ModelHost(settings())
    host.open()
    assert host.store is wires.house.store
    assert host.state is State.STARTING
    wires.pause.release()
    wait_for_load()
    assert host.state is State.READY
    assert host.editor is wires.house.editor
    (ready,) = [record for record in caplog.records if record.message == "engine.ready"]
    fields = vars(ready)["fields"]
    assert fields["model"] == "fake"
    assert fields["load_s"] >= 0
    assert fields["warm_up_s"] >= 0


def test_one_line_has_the_phases_of_the_start(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = wires.house.engine
    engine.info = replace(engine.info, load_phases_s={"torch_s": 2.0, "weights_s": 3.0})
    opened(wires)
    (phases,) = [record for record in caplog.records if record.message == "start.phases"]
    fields = vars(phases)["fields"]
    assert list(fields) == ["process_s", "torch_s", "weights_s", "warm_up_s"]
    assert fields["torch_s"] == 2.0
    assert fields["process_s"] > 0


@pytest.mark.parametrize("compiled", [False, True])
def test_after_the_start_the_engines_code_is_kept(
    wires: Wires, monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    kept = list[tuple[Any, bool]]()
    monkeypatch.setattr(
        compilation, "keep_code", lambda code, *, compiled: kept.append((code, compiled))
    )
    engine = wires.house.engine
    engine.info = replace(engine.info, code="the code", compiled=compiled)
    opened(wires)
    assert kept == [("the code", compiled)]


@pytest.mark.parametrize(("compiled", "widths_px"), [(False, [64]), (True, [64, 96])])
def test_the_model_is_warmed_once_and_a_compiled_one_in_two_sizes(
    wires: Wires, *, compiled: bool, widths_px: list[int]
) -> None:
    engine = wires.house.engine
    engine.info = replace(engine.info, compiled=compiled)
    opened(wires)
    assert [edit.width_px for edit in wires.house.engine.edits] == widths_px


@pytest.mark.parametrize(
    ("keys", "said"),
    [((), ["store.local", "access.open"]), (("one-key-of-callers",), ["store.local"])],
)
def test_opening_logs_where_results_go_and_that_access_is_open(
    wires: Wires, caplog: pytest.LogCaptureFixture, keys: tuple[str, ...], said: list[str]
) -> None:
    caplog.set_level(logging.INFO)
    opened(wires, api_keys=keys)
    assert [record.message for record in caplog.records][: len(said)] == said
    assert ("access.open" in caplog.messages) is ("access.open" in said)


async def test_a_store_that_cannot_be_used_is_logged_at_the_start_and_may_work_later(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    wires.house.store.put_fault = StoreUnavailable("the bucket pictures does not exist")
    host = opened(wires)
    await until(lambda: "store.unusable" in caplog.messages)
    wires.house.store.put_fault = None
    assert (await edit(host)).result.object_key in wires.house.store.objects


def test_with_s3_the_local_store_is_not_logged(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    opened(wires, s3_endpoint="s3.example", s3_access_key="a", s3_secret_key="b", s3_bucket="c")  # noqa: S106
    assert "store.local" not in caplog.messages


def test_a_setting_without_effect_is_warned_about(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    opened(wires, prefetch_jobs=2)
    (record,) = [record for record in caplog.records if record.message == "setting.ignored"]
    assert vars(record)["fields"] == {"reason": "PREFETCH_JOBS is ignored: unset it"}


# --- a model that cannot be loaded -------------------------------------------------------------


def test_a_model_that_cannot_be_loaded_is_logged_and_stays_failed(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    wires.fault = ModelError("there is no checkpoint at /x")
    host = opened(wires)
    assert host.state is State.FAILED
    for ask in (lambda: host.editor, host.require_alive):
        with pytest.raises(ModelError, match="log says why") as caught:
            ask()
        assert "/x" not in caught.value.message
    (record,) = [record for record in caplog.records if record.message == "engine.failed"]
    assert record.levelno == logging.CRITICAL
    assert vars(record)["fields"] == {"reason": "there is no checkpoint at /x"}


def test_a_warm_up_that_fails_is_a_failed_load(wires: Wires) -> None:
    wires.house.engine.fault = ModelError("black image")
    assert opened(wires).state is State.FAILED


@pytest.mark.parametrize("fault", [ValueError("a bug"), MemoryError(), SystemExit(1)])
def test_a_crash_in_loading_is_logged_with_its_trace_and_is_a_failed_load(
    wires: Wires, caplog: pytest.LogCaptureFixture, fault: BaseException
) -> None:
    wires.fault = fault
    assert opened(wires).state is State.FAILED
    (record,) = [record for record in caplog.records if record.message == "engine.failed"]
    assert record.levelno == logging.CRITICAL
    assert record.exc_info


def test_loading_in_the_calling_thread_raises_what_went_wrong(wires: Wires) -> None:
    wires.fault = ModelError("there is no checkpoint at /x")
    wires.pause.release()
    host = ModelHost(settings())
    host.open_store()
    with pytest.raises(ModelError, match="/x"):
        host.load()


def test_what_is_there_once_the_model_is_loaded_is_never_searched_for_garbage(wires: Wires) -> None:
    wires.pause.release()
    host = ModelHost(settings())
    host.open_store()
    gc.unfreeze()
    host.load()
    assert gc.get_freeze_count() > 0


# --- edits -------------------------------------------------------------------------------------


async def test_the_model_is_busy_while_an_edit_is_in_progress(wires: Wires) -> None:
    host, pause = opened(wires), Pause()
    wires.house.engine.at_step = lambda _: pause.hold()
    editing = asyncio.create_task(edit(host))
    await pause.reached()
    assert host.state is State.BUSY
    pause.release()
    await editing
    assert host.state is State.READY


async def test_a_lost_model_is_defunct_and_ends_the_process_after_callers_had_their_answer(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []
    wires.pause.release()
    host = ModelHost(settings(), linger_s=0.05, end_process=ended.append)
    host.open_store()
    host.load()
    _ = host.editor
    wires.lose_model()
    assert host.state is State.DEFUNCT
    assert ended == []
    with pytest.raises(ModelLost):
        _ = host.editor
    with pytest.raises(ModelError, match="stopped responding"):
        host.require_alive()
    await until(lambda: ended)
    assert ended == [lifecycle.EXIT_STATUS]
    (record,) = [record for record in caplog.records if record.message == "engine.lost"]
    assert record.levelno == logging.CRITICAL


# --- the end -----------------------------------------------------------------------------------


async def edit(host: ModelHost, job_id: str = "job-1") -> EditResult:
    return await host.run(REQUEST, job_id=job_id, request_id=job_id)


async def start_stopping(host: ModelHost, wires: Wires, pause: Pause) -> tuple[Any, Any]:
    """Have an edit on the model, and then a host that stops."""
    wires.house.engine.at_step = lambda _: pause.hold()
    editing = asyncio.create_task(edit(host))
    await pause.reached()
    closing = asyncio.create_task(host.close())
    await settle()  # the event loop goes on meanwhile
    return editing, closing


async def test_stopping_lets_edits_in_progress_end_and_takes_no_more(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host, pause = opened(wires), Pause()
    editing, closing = await start_stopping(host, wires, pause)
    assert host.state is State.STOPPING
    host.require_alive()
    with pytest.raises(NotReady, match="stopping"):
        await edit(host, "late")
    pause.release()
    assert (await editing).result.object_key in wires.house.store.objects
    await closing
    fields = [vars(record)["fields"] for record in caplog.records if "stop." in record.message]
    assert fields == [{"edits": 1}, {"finished": 1, "cancelled": 0}]


async def test_edits_that_outlast_the_grace_are_cancelled_and_may_be_retried(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host, pause = opened(wires, stop_grace_seconds=0.05), Pause()
    wires.house.engine.stay_at = 0
    editing, closing = await start_stopping(host, wires, pause)
    pause.release()  # the model comes to its next step
    with pytest.raises(NotReady, match="stopping") as stopped:
        await editing
    assert stopped.value.retryable
    await closing
    assert wires.house.store.results == []
    fields = [vars(record)["fields"] for record in caplog.records if "stop." in record.message]
    assert fields == [{"edits": 1}, {"finished": 0, "cancelled": 1}]


async def test_an_edit_that_its_caller_cancels_while_the_host_stops_stays_cancelled(
    wires: Wires,
) -> None:
    host, pause = opened(wires), Pause()
    editing, closing = await start_stopping(host, wires, pause)
    editing.cancel()
    await settle()
    pause.release()
    with pytest.raises(asyncio.CancelledError):
        await editing
    await closing


async def test_closing_before_the_model_is_loaded_is_no_fault() -> None:
    await ModelHost(settings()).close()


async def test_a_part_that_never_ends_holds_up_neither_the_others_nor_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_host, "CANCEL_S", 0.01)
    host, closed = ModelHost(settings()), asyncio.Event()

    async def close() -> None:
        closed.set()

    async def never() -> None:
        await asyncio.Event().wait()

    for part in (close, never, never):  # the last one is closed first
        host.close_at_end(part)
    async with asyncio.timeout(PATIENCE_S):
        await host.close()
    assert closed.is_set()


async def test_a_model_that_is_loaded_after_closing_gets_no_editor(wires: Wires) -> None:
    host = ModelHost(settings())
    host.open()
    await host.close()
    wires.pause.release()
    wait_for_load()
    with pytest.raises(NotReady, match="stopping"):
        _ = host.editor
    assert wires.built == []


# --- the process -------------------------------------------------------------------------------


def test_the_process_is_prepared_unless_its_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(compilation, "find_code_cache", lambda: tmp_path)
    lifecycle.prepare_process()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    lifecycle.prepare_process()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
