import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from retouch.engine.checkpoint import entries, safetensors_reader
from retouch.engine.memory.flat_params import PackedWeight
from retouch.engine.packing.encoding import Packer
from retouch.engine.packing.rows import FP8, INT8
from retouch.errors import ModelError

WEIGHTS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.tensor([-1.5, 2.25, 3e4]),
    "b.weight": torch.linspace(-3, 3, 50).bfloat16(),
}
PARTS = {"transformer": 1, "vae": 2, "text_encoder": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part, factor in PARTS.items():
        (tmp_path / part).mkdir()
        save_file({name: old * factor for name, old in WEIGHTS.items()}, file_of(tmp_path, part))
    return tmp_path


def file_of(folder: Path, part: str = "transformer") -> Path:
    return folder / part / "model.safetensors"


def empty(dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    return {path: torch.zeros_like(old, dtype=dtype) for path, old in written().items()}


def written() -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": old * PARTS[part] for part in PARTS for name, old in WEIGHTS.items()}


@pytest.mark.parametrize("chunk_bytes", [8, 64, 1 << 24])
def test_weights_are_read_bit_for_bit(
    folder: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_reader, "CHUNK_BYTES", chunk_bytes)
    wanted = empty()
    safetensors_reader.read_weights(entries.read_headers(folder), wanted)
    assert all(torch.equal(wanted[path], old) for path, old in written().items())


@pytest.mark.parametrize("chunk_bytes", [8, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_are_scaled_and_converted_on_the_way(
    folder: Path, dtype: torch.dtype, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_reader, "CHUNK_BYTES", chunk_bytes)
    wanted = empty(dtype)
    safetensors_reader.read_weights(
        entries.read_headers(folder),
        wanted,
        scale=lambda path: 0.25 if path == "vae.a.bias" else 1.0,
    )
    for path, old in written().items():
        factor = 0.25 if path == "vae.a.bias" else 1.0
        assert torch.equal(wanted[path], (old.float() * factor).to(dtype))


@pytest.mark.parametrize("chunk_bytes", [8, 1 << 24])
@pytest.mark.parametrize("packer", [INT8, FP8], ids=["int8", "fp8"])
def test_weights_are_packed_on_the_way(
    folder: Path, packer: Packer, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_reader, "CHUNK_BYTES", chunk_bytes)
    storage = torch.zeros(packer.size_bytes((3, 4)), dtype=torch.uint8)
    path = "vae.a.weight"
    safetensors_reader.read_weights(
        entries.read_headers(folder),
        {**empty(), path: PackedWeight(packer, storage, (3, 4))},
        scale=lambda _: 0.25,
    )
    assert torch.equal(storage, packer.pack(written()[path] * 0.25))


def test_weights_that_are_not_wanted_are_skipped(folder: Path) -> None:
    wanted = {"transformer.a.bias": torch.zeros(3)}
    safetensors_reader.read_weights(entries.read_headers(folder), wanted)
    assert torch.equal(wanted["transformer.a.bias"], WEIGHTS["a.bias"])


def test_reading_leaves_the_process_its_threads(folder: Path) -> None:
    before, later = torch.get_num_threads(), list[int]()
    torch.set_num_threads(3)
    try:
        safetensors_reader.read_weights(entries.read_headers(folder), empty())
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert [torch.get_num_threads(), *later] == [3, 3]
    finally:
        torch.set_num_threads(before)


def lengthen(wanted: dict[str, torch.Tensor]) -> None:
    wanted["vae.c.weight"] = torch.zeros(2)


def reshape(wanted: dict[str, torch.Tensor]) -> None:
    wanted["vae.a.weight"] = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("damage", "name"), [(lengthen, "vae.c.weight"), (reshape, "vae.a.weight")]
)
def test_a_weight_that_is_not_there_is_named(
    folder: Path, damage: Callable[[dict[str, torch.Tensor]], None], name: str
) -> None:
    damage(wanted := empty())
    with pytest.raises(
        ModelError, match=f"^vae/model.safetensors: 1 weights are missing .*, such as {name}"
    ):
        safetensors_reader.read_weights(entries.read_headers(folder), wanted)


def test_a_file_that_ends_too_early_is_named(folder: Path) -> None:
    path = file_of(folder)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"transformer/model\.safetensors is damaged or truncated"):
        safetensors_reader.read_weights(entries.read_headers(folder), empty())


def test_a_disk_that_fails_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def preadv(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.preadv", preadv)
    wanted = {"transformer.a.bias": torch.zeros(3)}
    with pytest.raises(ModelError, match=r"transformer/model\.safetensors cannot be read"):
        safetensors_reader.read_weights(entries.read_headers(folder), wanted)


def test_weights_of_an_unknown_dtype_are_refused(folder: Path) -> None:
    strange = torch.zeros(3, 4, dtype=torch.int8)
    save_file({**WEIGHTS, "a.weight": strange}, file_of(folder))
    with pytest.raises(
        ModelError, match=r"transformer/model\.safetensors: a\.weight is I8, not in"
    ):
        safetensors_reader.read_weights(entries.read_headers(folder), empty())


def test_weights_that_are_not_wanted_may_have_any_dtype(folder: Path) -> None:
    save_file({**WEIGHTS, "position_ids": torch.arange(9)}, file_of(folder))
    safetensors_reader.read_weights(entries.read_headers(folder), wanted := empty())
    assert torch.equal(wanted["transformer.a.bias"], WEIGHTS["a.bias"])


class SlowDisk:
    """Stands before `os.preadv`, for one reader: the second read waits for `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: BaseException | None = None) -> None:
        self.go, self.reads = threading.Event(), 0
        self._fails = fails
        self._preadv = os.preadv
        monkeypatch.setattr("os.preadv", self)
        monkeypatch.setattr(safetensors_reader, "MAX_THREADS", 1)

    def __call__(self, *call: Any) -> int:
        self.reads += 1
        if self.reads == 2:
            self.go.wait(10)
            if self._fails:
                raise self._fails
        return self._preadv(*call)


def many(folder: Path) -> dict[str, torch.Tensor]:
    save_file({f"{n:03}": torch.ones(8) for n in range(500)}, file_of(folder))
    return {f"transformer.{n:03}": torch.zeros(8) for n in range(500)}


def test_a_fault_stops_the_other_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = many(folder)
    disk = SlowDisk(monkeypatch, OSError(5, "Input/output error"))
    disk.go.set()
    with pytest.raises(ModelError, match="cannot be read"):
        safetensors_reader.read_weights(entries.read_headers(folder), wanted)
    assert disk.reads == 2


def test_an_interrupt_stops_the_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, wanted = SlowDisk(monkeypatch), many(folder)
    join = threading.Thread.join

    def interrupt(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.daemon and not disk.go.is_set():
            raise KeyboardInterrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        safetensors_reader.read_weights(entries.read_headers(folder), wanted)
    (reader,) = [thread for thread in threading.enumerate() if thread.name == "reader"]
    disk.go.set()
    reader.join(10)
    assert disk.reads <= 2


def test_progress_is_told_now_and_then(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    safetensors_reader.read_weights(entries.read_headers(folder), empty(), progress=reported.append)
    assert reported == []
    monkeypatch.setattr(safetensors_reader, "REPORT_EVERY_S", 0.0)
    safetensors_reader.read_weights(entries.read_headers(folder), empty(), progress=reported.append)
    assert reported[-1].startswith("weights: 0 of 0 MiB")


def test_old_names_of_the_text_encoder_are_read(folder: Path) -> None:
    old = {
        "visual.merger.weight": torch.ones(1),
        "model.norm.weight": torch.ones(2),
        "model.language_model.x.weight": torch.ones(3),
        "lm_head.weight": torch.ones(4),
    }
    save_file(old, file_of(folder))
    headers = entries.read_part(folder / "transformer")
    assert {name: stored.shape[0] for name, stored in headers.items()} == {
        "model.visual.merger.weight": 1,
        "model.language_model.norm.weight": 2,
        "model.language_model.x.weight": 3,
        "lm_head.weight": 4,
    }
