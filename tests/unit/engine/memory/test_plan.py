import functools
from bisect import bisect_left
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from retouch.engine.memory import probe
from retouch.engine.memory.plan import (
    FULL,
    GIB,
    HOST_RESERVE_BYTES,
    EditShape,
    FreeMemory,
    Plan,
    Sizes,
    evenly_spaced,
    make_plan,
    require_host,
)
from retouch.engine.memory.probe import measure_cpus, measure_free, measure_host
from retouch.engine.memory.report import explain, explain_images
from retouch.engine.memory.shared_memory import HostShare, sharing
from retouch.errors import ModelError

SHAPE = EditShape()


def plan_for(gpu_gib: float, host_gib: float = 64) -> Plan:
    return make_plan(FULL, SHAPE, FreeMemory(int(gpu_gib * GIB), int(host_gib * GIB)))


@pytest.mark.parametrize("gpu_gib", [56, 48, 40, 32])
def test_a_large_card_streams_no_block(gpu_gib: float) -> None:
    assert not plan_for(gpu_gib).streamed_blocks


def test_where_everything_fits_nothing_streams_not_even_the_modulation() -> None:
    plan = plan_for(80)
    assert (plan.name, plan.slots, plan.host_bytes) == ("resident", 0, 0)
    assert plan.resident_bytes == FULL.total


@pytest.mark.parametrize("gpu_gib", [40, 36, 32])
def test_the_text_encoder_keeps_what_fits(gpu_gib: float) -> None:
    plan = plan_for(gpu_gib)
    count = len(plan.streamed_layers)
    assert plan.name == f"{count} of 60 layers of the text encoder streamed"
    assert plan.peak_bytes > (gpu_gib - 0.5) * GIB, "memory is left unused"
    assert sum(FULL.layers[i] for i in plan.streamed_layers) == plan.pinned_bytes


def test_a_smaller_card_streams_more_of_the_text_encoder() -> None:
    counts = [len(plan_for(gpu_gib).streamed_layers) for gpu_gib in (48, 40, 36, 32)]
    assert counts == sorted(set(counts))
    assert counts[0] == 0


def test_a_smaller_card_streams_more_blocks_and_never_takes_more_than_it_has() -> None:
    counts = []
    for gpu_gib in (24, 16, 12, 8, 6):
        plan = plan_for(gpu_gib)
        assert plan.peak_bytes <= gpu_gib * GIB
        assert plan.peak_bytes > (gpu_gib - 0.9) * GIB, "memory is left unused"
        assert plan.name == f"{len(plan.streamed_blocks)} of 60 blocks streamed"
        counts.append(len(plan.streamed_blocks))
    assert counts == sorted(set(counts))


def test_every_weight_is_somewhere() -> None:
    for gpu_gib in (80, 32, 16):
        plan = plan_for(gpu_gib)
        assert plan.resident_bytes + plan.host_bytes == FULL.total


def test_the_modulation_is_first_to_go_to_the_host_and_not_pinned() -> None:
    plan = plan_for(48)
    assert plan.host_bytes == sum(FULL.modulation) + FULL.host
    assert plan.pinned_bytes == 0


def test_a_slot_holds_the_largest_part_that_streams() -> None:
    assert plan_for(48).slot_bytes == max(FULL.modulation)
    assert plan_for(16).slot_bytes == max(*FULL.blocks, *FULL.layers)


def test_too_little_gpu_memory_is_refused_with_the_shortfall() -> None:
    with pytest.raises(ModelError, match=r"short of GPU memory by 0\.\d GiB \(\d\.\d needed, 3\.0"):
        plan_for(3)


def test_too_little_host_memory_is_refused_with_the_shortfall() -> None:
    need = plan_for(16).host_bytes + HOST_RESERVE_BYTES
    plan_for(16, host_gib=need / GIB)
    with pytest.raises(ModelError, match=r"short of host memory by 1\.0 GiB"):
        plan_for(16, host_gib=need / GIB - 1)


def test_weights_that_processes_share_count_in_equal_parts() -> None:
    plan = plan_for(16)
    each_bytes = plan.host_bytes // 2 + HOST_RESERVE_BYTES
    memory = FreeMemory(16 * GIB, each_bytes, HostShare(-1, processes=2))
    assert make_plan(FULL, SHAPE, memory) == plan
    with pytest.raises(ModelError, match=r"short of host memory"):
        make_plan(FULL, SHAPE, replace(memory, share=None))


def test_both_memories_may_be_short() -> None:
    with pytest.raises(ModelError, match=r"short of GPU memory .*, and short of host memory"):
        plan_for(1, host_gib=1)


def test_a_larger_edit_leaves_room_for_fewer_blocks() -> None:
    large = make_plan(FULL, EditShape(area_px=4 << 20), FreeMemory(16 * GIB, 64 * GIB))
    assert len(large.streamed_blocks) > len(plan_for(16).streamed_blocks)


def test_a_tight_card_gives_up_the_third_slot_before_it_is_refused() -> None:
    assert plan_for(find_least_gib()).slots == 2


@functools.cache
def find_least_gib() -> float:
    """Return the least GPU memory that a plan fits into."""
    return bisect_left(range(200), True, key=lambda twentieth: fits(twentieth / 20)) / 20


def fits(gpu_gib: float) -> bool:
    try:
        plan_for(gpu_gib)
    except ModelError:
        return False
    return True


@pytest.mark.parametrize("of", [1, 2, 7, 60])
def test_streamed_blocks_are_spread_evenly(of: int) -> None:
    for count in range(of + 1):
        places = sorted(evenly_spaced(count, of=of))
        assert len(places) == count
        assert all(0 <= place < of for place in places)
        gaps = {b - a for a, b in pairwise(places)}
        assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_explanation_names_the_plan_and_what_moves() -> None:
    lines = "\n".join(explain(plan_for(16), FULL, SHAPE))
    assert "of 60 blocks streamed" in lines
    assert "in every step" in lines
    need = plan_for(16).host_bytes + HOST_RESERVE_BYTES
    assert f"host: {need / GIB:.1f} GiB at most" in lines  # what is refused below
    assert "in every step" not in "\n".join(explain(plan_for(40), FULL, SHAPE))
    assert "in every edit" not in "\n".join(explain(plan_for(48), FULL, SHAPE))
    assert "before an edit" in "\n".join(explain(plan_for(48), FULL, SHAPE))
    assert "before an edit" not in "\n".join(explain(plan_for(80), FULL, SHAPE))


def test_the_largest_edit_that_fits_is_stated() -> None:
    small, large = plan_for(16), plan_for(80)
    assert large.max_areas_px == (2048 * 2048,) * 3
    assert 1024 * 1024 <= small.max_areas_px[0] < 2048 * 2048
    least = replace(SHAPE, area_px=small.max_areas_px[0]).activation_bytes()
    assert small.peak_bytes - SHAPE.activation_bytes() + least <= 16 * GIB


def test_room_is_made_for_a_larger_edit_that_is_planned() -> None:
    shape = EditShape(area_px=2048 * 2048)
    plan = make_plan(FULL, shape, FreeMemory(16 * GIB, 64 * GIB))
    assert plan.max_areas_px[0] == 2048 * 2048
    assert plan.peak_bytes <= 16 * GIB


def test_sizes_add_up() -> None:
    assert Sizes((1, 2), (3,), (4, 5), 6, 7).total == 28


def lay_out_host(root: Path, **files: str) -> Path:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    8388608 kB\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("-", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("fraction", "limit_gib", "free_gib"),
    [(1.0, 0.0, 70), (1.0, 16.0, 16), (0.25, 0.0, 18), (0.25, 16.0, 16), (0.01, 0.0, -1.2)],
)
def test_free_gpu_memory_is_what_the_process_may_take(
    monkeypatch: pytest.MonkeyPatch, fraction: float, limit_gib: float, free_gib: float
) -> None:
    """An 80 GiB card of which others have 8 and this process 2."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * GIB)
    shares = {None: fraction}  # asked by index, as the real one wants it
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", shares.get)
    measured = measure_free(limit_gib)
    assert measured.gpu_bytes == pytest.approx(free_gib * GIB, abs=1)
    assert measured.host_bytes > 0


def test_what_other_processes_share_with_this_one_counts_as_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probe, "measure_host", lambda: 8 * GIB)
    with sharing(4):
        share = HostShare.find()
        assert share
        memory = share.open("model", [4 << 20])
        assert memory
        memory.unit(0)[:] = bytes(4 << 20)
        measured = measure_free()
    assert measured.host_bytes >= 8 * GIB + (4 << 20)
    assert measured.share == share


def test_free_host_memory_is_what_the_system_has(tmp_path: Path) -> None:
    assert measure_host(lay_out_host(tmp_path)) == 8 * GIB


def test_a_containers_limit_counts_and_its_cached_files_do_not(tmp_path: Path) -> None:
    files = {"memory-max": f"{6 * GIB}", "memory-current": f"{3 * GIB}"}
    stat = {"memory-stat": f"anon 5\ninactive_file {GIB}\n"}
    assert measure_host(lay_out_host(tmp_path, **files, **stat)) == 4 * GIB


def test_a_container_without_a_limit_has_what_the_system_has(tmp_path: Path) -> None:
    files = {"memory-max": "max", "memory-current": "5", "memory-stat": ""}
    assert measure_host(lay_out_host(tmp_path, **files)) == 8 * GIB


def test_the_older_control_groups_count_too(tmp_path: Path) -> None:
    files = {
        "memory__memory-limit_in_bytes": f"{2 * GIB}",
        "memory__memory-usage_in_bytes": f"{GIB}",
        "memory__memory-stat": f"total_inactive_file {GIB // 2}\n",
    }
    assert measure_host(lay_out_host(tmp_path, **files)) == GIB * 3 // 2


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_containers_quota_of_cpus_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], count: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert measure_cpus(tmp_path) == count


def test_a_model_of_one_block_that_fits_has_a_plan() -> None:
    sizes = Sizes(blocks=(9,), layers=(9,), modulation=(7,), fixed=1, host=1)
    assert make_plan(sizes, SHAPE, FreeMemory(80 * GIB, 64 * GIB)).name == "resident"


@pytest.mark.parametrize("gpu_gib", [16, 24, 80])
def test_room_is_made_for_three_images(gpu_gib: int) -> None:
    memory = FreeMemory(gpu_gib * GIB, 64 * GIB)
    plan = make_plan(FULL, EditShape(images=3), memory)
    assert len(plan.max_areas_px) == 3
    assert min(plan.max_areas_px) >= 1024 * 1024
    assert plan.peak_bytes <= gpu_gib * GIB
    assert explain_images(FULL, SHAPE, memory).startswith("2509 and 2511, for up to 3 images: ")


def test_a_tight_card_takes_fewer_images_before_it_is_refused() -> None:
    gpu_bytes = int(find_least_gib() * GIB)
    plan = make_plan(FULL, EditShape(images=3), FreeMemory(gpu_bytes, 64 * GIB))
    assert sum(area_px >= 1024 * 1024 for area_px in plan.max_areas_px) < 3


def test_more_images_leave_less_room_for_the_result() -> None:
    areas_px = plan_for(16).max_areas_px
    assert list(areas_px) == sorted(areas_px, reverse=True)


def test_mapped_modulation_takes_no_host_memory() -> None:
    mapped = replace(FULL, modulation_mapped=True)
    for gpu_gib in (16, 48):
        plan = make_plan(mapped, SHAPE, FreeMemory(gpu_gib * GIB, 64 * GIB))
        assert plan.host_bytes == plan_for(gpu_gib).host_bytes - sum(FULL.modulation)
        assert plan.peak_bytes == plan_for(gpu_gib).peak_bytes


def test_without_a_gpu_the_host_has_all_weights_and_the_buffer_that_expands_them() -> None:
    packed = replace(FULL, expansion=GIB)
    require_host(packed, FreeMemory(0, FULL.total + GIB))
    with pytest.raises(ModelError, match=r"short of host memory by 1\.0 GiB"):
        require_host(packed, FreeMemory(0, FULL.total))
