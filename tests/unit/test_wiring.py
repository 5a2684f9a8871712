import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from retouch import demo, wiring
from retouch.engine.checkpoint.find import FULL_MODEL
from retouch.engine.memory import probe
from retouch.engine.memory.probe import GIB, FreeMemory
from retouch.errors import ModelError
from retouch.remote.engine import RemoteSettings
from retouch.settings import Settings


@pytest.mark.parametrize(
    ("gpu_gib", "host_gib", "model"),
    [
        (16, 48, FULL_MODEL),
        (2, 96, str(demo.CHECKPOINT_DIR)),
        (48, 8, FULL_MODEL),
        (16, 24, FULL_MODEL),
        (48, 2, str(demo.CHECKPOINT_DIR)),
        (6, 96, str(demo.CHECKPOINT_DIR)),
    ],
)
def test_the_full_model_is_chosen_only_where_it_fits(
    gpu_gib: int, host_gib: int, model: str
) -> None:
    assert wiring.choose_model(FreeMemory(gpu_gib * GIB, host_gib * GIB)) == model


def test_what_quantization_allows_decides_whether_the_full_model_fits() -> None:
    memory = FreeMemory(16 * GIB, 24 * GIB)
    assert wiring.choose_model(memory, "none") == str(demo.CHECKPOINT_DIR)
    assert wiring.choose_model(memory, "nf4") == FULL_MODEL


def test_a_local_disk_spares_the_host_the_modulation() -> None:
    memory = FreeMemory(8 * GIB, 16 * GIB)
    assert wiring.choose_model(memory) == str(demo.CHECKPOINT_DIR)
    assert wiring.choose_model(memory, modulation_mapped=True) == FULL_MODEL


def test_the_log_says_why_the_demo_was_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    wiring.choose_model(FreeMemory(6 * GIB, 96 * GIB))
    (record,) = caplog.records
    assert "needs 7 GiB of free GPU memory" in vars(record)["fields"]["progress"]


def test_with_engine_url_the_engine_is_the_server_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[RemoteSettings] = []

    def connect(settings: RemoteSettings, *, progress: object) -> None:
        asked.append(settings)

    monkeypatch.setattr(wiring, "connect", connect)
    wiring.build_engine(
        Settings(_env_file=None, engine_url="http://vllm:8091/v1", engine_key="k", engine_model="m")
    )
    (settings,) = asked
    assert (settings.url, settings.key, settings.model) == ("http://vllm:8091/v1", "k", "m")


def test_a_model_of_the_hub_is_not_run_on_a_cpu_because_the_driver_is_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: False),
        version=SimpleNamespace(cuda="13.0"),
        __version__="2.13.0",
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(probe, "DRIVER", Path("/"))
    with pytest.raises(ModelError, match=r"torch 2\.13\.0 needs a driver for CUDA 13\.0"):
        wiring.build_engine(Settings(_env_file=None, model_id="a/b"))
