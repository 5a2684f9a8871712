import os
from collections.abc import Iterator
from pathlib import Path

import pynvml
import pytest
from bentoml._internal.context import server_context
from support.fakes import Clock
from support.web import build_board

from retouch.engine.memory.shared_memory import HostShare
from retouch.settings import InvalidSettings, Settings
from retouch.web import workers
from retouch.web.workers import NOT_READY, Workers, join_workers, list_gpus


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment of its own, and no NVIDIA driver."""
    for name in (
        "CUDA_VISIBLE_DEVICES",
        "RETOUCH_BOARD",
        "RETOUCH_WEIGHTS",
        "HOST_MEMORY_GIB",
        "OMP_NUM_THREADS",
    ):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever is set meanwhile
        monkeypatch.delenv(name)

    def fail() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    yield
    monkeypatch.undo()


def become(monkeypatch: pytest.MonkeyPatch, number: int) -> Workers:
    """Join as BentoML's worker of this number."""
    monkeypatch.setattr(server_context, "worker_index", number)
    return join_workers(1)


def test_one_gpu_is_one_worker_and_changes_nothing() -> None:
    before = dict(os.environ)
    assert not join_workers(1).several
    assert os.environ == before


def test_the_gpus_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_gpus() == []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 3)
    assert list_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-5e")
    assert list_gpus() == ["2", "GPU-5e"]
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert list_gpus() == []


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InvalidSettings, match="GPUS: is 3, but there are 2 GPUs"):
        join_workers(3)


@pytest.mark.parametrize(
    ("visible", "pinned"),
    [(None, ["0", "1"]), ("4,GPU-7", ["4", "GPU-7"]), ("", ["", ""])],
)
def test_each_worker_sees_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, pinned: list[str]
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert join_workers(2).count == 2
    for number, expected in enumerate(pinned):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        worker = become(monkeypatch, number + 1)
        assert (worker.index, worker.count) == (number, 2)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_workers_with_two_gpus_each_take_them_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert join_workers(4, each=2).count == 2
    monkeypatch.setattr(server_context, "worker_index", 2)
    assert join_workers(4, each=2).gpus == 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_a_gpu_that_would_be_left_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    with pytest.raises(InvalidSettings, match="GPUS: is 3, but PARALLEL takes 2 for each edit"):
        join_workers(3, each=2)


def test_a_worker_started_beside_the_one_it_replaces_has_the_same_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join_workers(2)
    assert become(monkeypatch, 4).index == 1


def test_workers_share_the_memory_and_the_cpus_of_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "measure_host", lambda: 96 << 30)
    monkeypatch.setattr(workers, "measure_cpus", lambda: 16)
    join_workers(4)
    assert Settings(_env_file=None).host_memory_gib == 24
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_all_processes_of_all_workers_inherit_one_file_for_weights() -> None:
    join_workers(4, each=2)
    share = HostShare.find()
    assert share
    assert share.processes == 4
    assert os.get_inheritable(share.descriptor)


@pytest.mark.parametrize(("said", "share"), [("30", 30), ("0", 24), ("", 24)])
@pytest.mark.parametrize("in_file", [True, False])
def test_a_share_that_the_operator_sets_is_kept_wherever_it_is_set(
    said: str, share: int, in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "measure_host", lambda: 96 << 30)
    file = tmp_path / ".env"
    file.write_text(f"HOST_MEMORY_GIB={said}" if in_file else "")
    if not in_file:
        monkeypatch.setenv("HOST_MEMORY_GIB", said)
    join_workers(4, host_gib=Settings(_env_file=file).host_memory_gib)
    assert Settings(_env_file=file).host_memory_gib == share


def test_only_the_least_busy_workers_may_listen() -> None:
    board, other_pid = build_board(), 1
    board.report(0, 1)
    assert board.may_listen(0)  # alone
    board.report(1, 1)
    assert board.may_listen(0)
    assert board.may_listen(1)
    board.report(0, 2)
    assert not board.may_listen(0)
    board.report(1, NOT_READY)
    assert board.may_listen(0)
    assert not board.may_listen(1)
    board.forget(other_pid)
    assert set(board.pids) == {0, 1}


def test_a_worker_that_hangs_keeps_no_connection_from_the_others() -> None:
    clock = Clock()
    board = build_board(clock=clock)
    board.report(0, 0)
    board.report(1, 1)
    assert not board.may_listen(1)
    clock.now_s += 3
    board.report(1, 1)
    assert board.may_listen(1)
    board.report(0, 0)
    assert not board.may_listen(1)


def test_a_worker_that_has_ended_counts_no_more(tmp_path: Path) -> None:
    board = build_board()
    board.report(0, NOT_READY)
    gauges = tmp_path / f"gauge_livesum_{os.getpid()}.db"
    counts = tmp_path / f"counter_{os.getpid()}.db"
    for file in (gauges, counts):
        file.touch()
    Workers(2, board=board).forget(os.getpid(), {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)})
    assert board.pids == {}
    assert not gauges.exists()
    assert counts.exists()


@pytest.mark.parametrize("value", ["0", "65", "two", "1.5", "-1"])
def test_gpus_is_a_number_or_all(value: str) -> None:
    with pytest.raises(ValueError, match="must be all, or a number from 1 to 64"):
        Settings(_env_file=None, gpus=value)  # type: ignore[arg-type]
    assert Settings(_env_file=None, gpus="all").gpus == "all"
    assert Settings(_env_file=None, gpus="8").gpus == 8  # type: ignore[arg-type]
