import logging
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.fakes import PATIENCE_S, House, Pause

from retouch import wiring
from retouch.editing.editor import Editor
from retouch.editing.ports import Engine
from retouch.errors import ModelError, NotReady
from retouch.lifecycle import ModelHost
from retouch.settings import Settings
from retouch.storage.port import Store


@dataclass
class Wires:
    """What `wiring` builds, in memory."""

    house: House = field(default_factory=House)
    fault: BaseException | None = None
    warm: list[Engine] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    pause: Pause = field(default_factory=Pause)

    def build_store(self, _: Settings) -> Store:
        return self.house.store

    def build_engine(self, _: Settings) -> Engine:
        self.pause.hold()
        if self.fault is not None:
            raise self.fault
        return self.house.engine

    def build_editor(
        self, _: Settings, engine: Engine, store: Store, *, exits: AsyncExitStack
    ) -> Editor:
        assert self.warm == [engine]
        assert store is self.house.store
        exits.callback(self.closed.append, "editor")
        return self.house.editor


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> Wires:
    wires = Wires()
    for name in ("build_store", "build_engine", "build_editor"):
        monkeypatch.setattr(wiring, name, getattr(wires, name))
    monkeypatch.setattr(wiring, "warm_up", wires.warm.append)
    return wires


SETTINGS = Settings(_env_file=None, api_keys=("one",), local_store_dir=Path("folder"))


def wait_for_load() -> None:
    for thread in threading.enumerate():
        if thread.name == "load":
            thread.join(PATIENCE_S)


def test_before_it_is_opened_nothing_is_ready() -> None:
    studio = ModelHost(SETTINGS)
    with pytest.raises(NotReady, match="starting"):
        _ = studio.store
    with pytest.raises(NotReady, match="still loading"):
        _ = studio.editor
    assert not studio.failed


async def test_opening_returns_at_once_and_the_editor_follows_when_it_is_warm(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    studio = ModelHost(SETTINGS)
    studio.open()
    assert studio.store is wires.house.store
    with pytest.raises(NotReady):
        _ = studio.editor
    wires.pause.release()
    wait_for_load()
    assert studio.editor is wires.house.editor
    assert wires.warm == [wires.house.engine]
    (ready,) = [record for record in caplog.records if record.message == "engine.ready"]
    fields = vars(ready)["fields"]
    assert fields["model"] == "fake"
    assert fields["load_s"] >= 0
    assert fields["warm_up_s"] >= 0
    await studio.close()
    assert wires.closed == ["editor"]


@pytest.mark.parametrize(
    ("keys", "said"), [((), ["store.local", "access.open"]), (("one",), ["store.local"])]
)
def test_opening_says_where_results_go_and_who_may_come(
    wires: Wires, caplog: pytest.LogCaptureFixture, keys: tuple[str, ...], said: list[str]
) -> None:
    caplog.set_level(logging.INFO)
    wires.pause.release()
    ModelHost(Settings(_env_file=None, api_keys=keys)).open()
    wait_for_load()
    assert [record.message for record in caplog.records][: len(said)] == said
    assert ("access.open" in caplog.messages) is ("access.open" in said)


def test_with_s3_there_is_no_word_of_the_local_store(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wires.pause.release()
    settings = Settings(
        _env_file=None,
        s3_endpoint="s3.example",
        s3_access_key="a",
        s3_secret_key="b",  # noqa: S106
        s3_bucket="c",
    )
    ModelHost(settings).open()
    wait_for_load()
    assert "store.local" not in caplog.messages


def test_a_model_that_cannot_be_loaded_is_told_and_stays_so(
    wires: Wires, caplog: pytest.LogCaptureFixture
) -> None:
    wires.fault = ModelError("there is no checkpoint at /x")
    wires.pause.release()
    studio = ModelHost(SETTINGS)
    studio.open()
    wait_for_load()
    assert studio.failed
    with pytest.raises(ModelError, match="log says why") as caught:
        _ = studio.editor
    assert "/x" not in caught.value.message
    (record,) = [record for record in caplog.records if record.message == "engine.failed"]
    assert record.levelno == logging.CRITICAL
    assert vars(record)["fields"] == {"reason": "there is no checkpoint at /x"}


def test_a_warm_up_that_fails_is_a_failed_load(
    wires: Wires, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Engine) -> None:
        raise ModelError("black image")

    monkeypatch.setattr(wiring, "warm_up", fail)
    wires.pause.release()
    studio = ModelHost(SETTINGS)
    studio.open()
    wait_for_load()
    assert studio.failed


@pytest.mark.parametrize("fault", [ValueError("a bug"), MemoryError(), SystemExit(1)])
def test_a_crash_in_loading_is_logged_with_its_trace_and_is_a_failed_load(
    wires: Wires, caplog: pytest.LogCaptureFixture, fault: BaseException
) -> None:
    wires.fault = fault
    wires.pause.release()
    studio = ModelHost(SETTINGS)
    studio.open()
    wait_for_load()
    assert studio.failed
    (record,) = [record for record in caplog.records if record.message == "engine.failed"]
    assert record.levelno == logging.CRITICAL
    assert record.exc_info
    with pytest.raises(ModelError):
        _ = studio.editor


async def test_closing_before_the_model_is_loaded_is_no_fault() -> None:
    await ModelHost(SETTINGS).close()
