import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fakes import FakeEngine, FakeStore, House
from support.models.checkpoints import make_cache

from retouch import wiring
from retouch.engine.checkpoint import find
from retouch.engine.memory import probe
from retouch.errors import ModelError, StoreDenied
from retouch.lifecycle import ModelHost
from retouch.settings import Settings
from retouch.worker.startup import StartupChecks, StartupError, is_gpu_lost, load_worker_settings

S3 = {
    "S3_ENDPOINT": "s3.eu-central-003.backblazeb2.com",
    "S3_ACCESS_KEY": "key-id",
    "S3_SECRET_KEY": "application-key-40d1",
    "S3_BUCKET": "bucket",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that holds the S3 settings and no other of ours."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in S3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(find, "RUNPOD_MODELS", tmp_path / "models")
    return monkeypatch


def refusal(check: Callable[[], object]) -> str:
    """Return the one line that a check refuses with."""
    with pytest.raises(StartupError) as refused:
        check()
    line = str(refused.value)
    assert "\n" not in line
    return line


def start(**settings: Any) -> StartupChecks:
    """The checks of a worker with these settings."""
    return StartupChecks(ModelHost(load_worker_settings().model_copy(update=settings)))


# --- settings ----------------------------------------------------------------------------------


def test_a_worker_without_s3_is_refused(environment: pytest.MonkeyPatch) -> None:
    for name in S3:
        environment.delenv(name)
    line = refusal(load_worker_settings)
    assert all(name in line for name in S3)


def test_a_missing_setting_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("S3_BUCKET")
    assert "S3_BUCKET missing" in refusal(load_worker_settings)


def test_a_job_ends_before_the_platform_ends_it() -> None:
    assert load_worker_settings().job_timeout_seconds == 570


def test_a_job_ends_when_the_user_says(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("JOB_TIMEOUT_SECONDS", "600")
    assert load_worker_settings().job_timeout_seconds == 600


# --- the bucket --------------------------------------------------------------------------------


def test_the_bucket_is_probed(environment: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    environment.setattr(wiring, "build_store", lambda _: store)
    start().bucket()
    assert (store.puts, store.gets, store.objects) == (["probe"], ["probe"], {})


def test_a_bucket_that_refuses_is_reported_with_advice(environment: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    store.put_fault = StoreDenied("check S3_SECRET_KEY")
    environment.setattr(wiring, "build_store", lambda _: store)
    assert "check S3_SECRET_KEY" in refusal(start().bucket)


# --- the GPU -----------------------------------------------------------------------------------


class FakeCuda:
    """`torch.cuda` of a machine; `fault` is what its kernels fail with."""

    def __init__(self, *, available: bool = True, fault: Exception | None = None) -> None:
        self.is_available = self.is_initialized = lambda: available
        self._fault = fault

    def synchronize(self) -> None:
        if self._fault is not None:
            raise self._fault

    def ones(self, *_: object, **__: object) -> "FakeCuda":
        return self

    def sum(self) -> "FakeCuda":
        return self

    def item(self) -> float:
        self.synchronize()
        return 8.0


@pytest.fixture
def machine(environment: pytest.MonkeyPatch) -> Callable[..., None]:
    def build(*, driver: bool = True, **cuda: Any) -> None:
        faked = FakeCuda(**cuda)
        version = SimpleNamespace(cuda="13.0")
        torch = SimpleNamespace(cuda=faked, ones=faked.ones, version=version, __version__="2.12.0")
        environment.setitem(sys.modules, "torch", torch)
        environment.setattr(probe, "DRIVER", Path("/" if driver else "/nowhere"))

    return build


def test_a_gpu_that_computes_is_fit(machine: Callable[..., None]) -> None:
    machine()
    start().gpu()


def test_a_gpu_that_does_not_compute_is_reported(machine: Callable[..., None]) -> None:
    machine(fault=RuntimeError("no kernel image is available\nand more"))
    assert "no kernel image is available; replace" in refusal(start().gpu)


def test_a_driver_that_is_too_old_is_reported(machine: Callable[..., None]) -> None:
    machine(available=False)
    line = refusal(start().gpu)
    assert "torch 2.12.0 needs a driver for CUDA 13.0; choose that CUDA version" in line


def test_a_model_without_a_gpu_is_refused(machine: Callable[..., None]) -> None:
    machine(available=False, driver=False)
    assert "MODEL_ID" in refusal(start(model_id="a/b").gpu)


@pytest.mark.parametrize("model_id", ["", "{home}", "~"])
def test_the_demo_and_a_folder_need_no_gpu(
    machine: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    model_id: str,
) -> None:
    environment.setenv("HOME", str(tmp_path))
    machine(available=False, driver=False)
    start(model_id=model_id.format(home=tmp_path)).gpu()
    assert [record.message for record in caplog.records] == ["gpu.missing"]


def test_a_gpu_is_lost_when_every_call_fails(machine: Callable[..., None]) -> None:
    machine(fault=RuntimeError("CUDA error: device-side assert triggered"))
    assert is_gpu_lost()


def test_a_gpu_that_answers_is_not_lost(machine: Callable[..., None]) -> None:
    machine()
    assert not is_gpu_lost()


def test_a_gpu_that_was_never_used_is_not_lost(machine: Callable[..., None]) -> None:
    machine(available=False, fault=RuntimeError())
    assert not is_gpu_lost()


def test_no_gpu_is_lost_where_torch_was_never_loaded(environment: pytest.MonkeyPatch) -> None:
    environment.delitem(sys.modules, "torch", raising=False)
    assert not is_gpu_lost()


# --- the weights -------------------------------------------------------------------------------


def test_the_engine_is_loaded_from_the_cached_models(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_cache(tmp_path / "models")
    asked: list[str] = []

    def load(settings: Any, *, progress: object) -> FakeEngine:
        asked.append(settings.cache_dir)
        return FakeEngine()

    environment.setattr(wiring, "load", load)
    wiring.build_engine(Settings(_env_file=None, model_id="org/name"))
    wiring.build_engine(Settings(_env_file=None, model_id="org/other"))
    assert asked == [str(tmp_path / "models"), ""]


def test_weights_are_loaded_and_warm_before_the_first_job(
    environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    house = House()
    environment.setattr(wiring, "build_engine", lambda _: house.engine)
    start().weights()
    assert len(house.engine.edits) == 1
    assert [record.message for record in caplog.records] == ["engine.ready", "start.phases"]


def test_weights_that_cannot_be_used_are_named(environment: pytest.MonkeyPatch) -> None:
    def fail(_: Settings) -> None:
        raise ModelError("cannot load org/name: vae is missing")

    environment.setattr(wiring, "build_engine", fail)
    assert "vae is missing" in refusal(start().weights)


def test_the_cheap_checks_come_before_the_one_that_loads_the_model() -> None:
    names = [check.__name__ for check in start().checks]
    assert names == ["bucket", "gpu", "weights"]


def test_a_worker_with_a_remote_engine_needs_no_gpu() -> None:
    names = [check.__name__ for check in start(engine_url="http://vllm:8091").checks]
    assert names == ["bucket", "weights"]
