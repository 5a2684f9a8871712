import logging
import re
from pathlib import Path

import pytest
import torch
from support.models.checkpoints import make_folder
from support.models.streamed import CPU
from support.models.tiny_folder import tiny_folder

from retouch.engine import attention
from retouch.engine.attention import NATIVE, Attention, attend_native
from retouch.engine.checkpoint import build, load
from retouch.engine.checkpoint.files import compute_revision, fingerprint
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.memory.plan import GIB, EditShape, FreeMemory
from retouch.engine.memory.probe import measure_free
from retouch.engine.memory.weights import Weights
from retouch.errors import ModelError


def load_on_cpu(memory: FreeMemory, reported: list[str]) -> Weights:
    return build.load_weights(
        tiny_folder(),
        build.read_configs(tiny_folder()),
        dtype=torch.float32,
        device=CPU,
        shape=EditShape(),
        memory=memory,
        progress=reported.append,
    )


def test_without_a_gpu_weights_that_do_not_fit_the_host_are_refused_before_they_are_read() -> None:
    weights = load_on_cpu(measure_free(), [])
    size_bytes = weights.params.sizes.total
    weights.close()
    reported: list[str] = []

    with pytest.raises(ModelError, match=re.escape("short of host memory by")):
        load_on_cpu(FreeMemory(0, size_bytes - 1), reported)
    with pytest.raises(ModelError, match=r"without a GPU: .* \(\d+\.\d needed, \d+\.\d free\)$"):
        load_on_cpu(measure_free(host_memory_gib=(size_bytes - 1) / GIB), reported)  # the setting

    assert reported == []


def test_the_revision_names_each_file_and_how_it_is_read(tmp_path: Path) -> None:
    folder, file = make_folder(tmp_path / "model"), tmp_path / "w.gguf"
    file.write_bytes(b"weights")
    plain, mark = compute_revision(folder), fingerprint(file)

    assert load.describe_revision(folder, {}, "") == plain
    assert load.describe_revision(folder, {"transformer": file}, "") == f"{plain}+{mark}"
    assert load.describe_revision(folder, {"transformer": file}, "2511") == f"{plain}+{mark}+2511"


def test_the_log_has_the_time_of_each_attention_kernel_in_a_field_of_its_own(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = Attention(NATIVE, attend_native), {"fa3": 1.23456, "_native_cudnn": 2.0}
    monkeypatch.setattr(attention, "choose_attention", lambda *_, **__: chosen)
    with caplog.at_level(logging.INFO):
        load.load(CheckpointSettings(model_id=str(tiny_folder())))
    [record] = [record for record in caplog.records if record.message == "attention.chosen"]
    fields = {"name": NATIVE, "fa3_ms": 1.235, "_native_cudnn_ms": 2.0}
    assert vars(record)["fields"] == fields
