"""The first runs of tests/bench/killed_workers.py, and a check that its judges detect faults."""

from io import BytesIO
from pathlib import Path

import pytest
from support.processes import killed_folder
from support.processes.killed import PICTURE, Tally, kill_workers, victims
from support.servers.ceph_rgw import Rgw

pytestmark = pytest.mark.integration


def test_killed_workers_leave_each_key_absent_or_whole(rgw: Rgw) -> None:
    tally = kill_workers(rgw, kills=3, seed=1)
    assert tally.faults == []
    assert tally.counts["kills"] == 3


def test_an_incomplete_object_is_detected(rgw: Rgw) -> None:
    with victims(rgw, seed=2) as at_work:
        at_work.client.put_object(
            bucket_name=rgw.bucket,
            object_name="killed-2/sources/v1/00/half",
            data=BytesIO(PICTURE[:1000]),
            length=1000,
        )
        at_work.judge()
        at_work.client.remove_object(
            bucket_name=rgw.bucket, object_name="killed-2/sources/v1/00/half"
        )
        assert [fault.partition(":")[0] for fault in at_work.tally.faults] == [
            "killed-2/sources/v1/00/half"
        ]


def test_killed_writers_leave_no_partial_object_and_no_lasting_draft(tmp_path: Path) -> None:
    tally = killed_folder.kill_writers(tmp_path, kills=10, seed=1)
    assert tally.faults == []
    assert tally.counts["objects judged"] > 0


def test_a_file_that_no_sweep_removes_is_detected(tmp_path: Path) -> None:
    killed_folder.open_store(tmp_path)
    (tmp_path / "tmp123").write_bytes(b"left")
    tally = Tally()
    killed_folder.judge(tmp_path, tally)
    assert tally.faults == [f"{tmp_path / 'tmp123'} is left for ever"]
