import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.images import samples
from support.images.decoding import (
    COSTLY,
    LIMITS,
    PATIENCE_S,
    PHOTO,
    children,
    idle,
    is_running,
    limits_of,
    open_files,
    until,
)

from retouch import errors
from retouch.images import decode, sandbox

pytestmark = pytest.mark.integration


async def test_200_decodes_leave_nothing_behind(build: Callable[..., sandbox.Decoder]) -> None:
    decoding = build()
    await asyncio.gather(*(decoding.decode(PHOTO, timeout_s=PATIENCE_S) for _ in range(8)))
    await idle()
    before = open_files(), threading.active_count(), len(children())
    bodies = [PHOTO, PHOTO[:-9], b"", samples.samples()["png"]] * 50
    found = await asyncio.gather(
        *(decoding.decode(body, timeout_s=120) for body in bodies), return_exceptions=True
    )
    assert [type(each) for each in found[:3]] == [
        decode.Decoded,
        errors.BrokenImage,
        errors.UnsupportedImage,
    ]
    assert len(found) == 200
    await idle()
    after = open_files(), threading.active_count(), len(children())
    # Fewer, where files of an earlier test were closed meanwhile.
    assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)


async def test_closing_ends_everything() -> None:
    threads = threading.active_count()
    others = children()
    decoding = sandbox.Decoder(LIMITS, sandbox.DecoderSettings(children=1))
    await idle(1)
    running, queued = (
        asyncio.create_task(decoding.decode(COSTLY, timeout_s=PATIENCE_S)) for _ in range(2)
    )
    await asyncio.sleep(0.2)
    await asyncio.to_thread(decoding.close)
    for task in (running, queued):
        with pytest.raises(errors.NotReady):
            await task
    with pytest.raises(errors.NotReady):
        await decoding.decode(PHOTO, timeout_s=PATIENCE_S)
    assert children() == others
    assert threading.active_count() <= threads + 1  # the one of `to_thread`


# --- the child's rights ----------------------------------------------------------------------


async def test_a_child_has_no_secrets_no_files_and_no_way_to_open_any(
    build: Callable[..., sandbox.Decoder],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("S3_SECRET_KEY", "canary")
    with (tmp_path / "open").open("w") as handle:
        os.set_inheritable(handle.fileno(), True)
        build(children=1)
        (pid,) = await idle(1)
        process = Path(f"/proc/{pid}")
        assert b"canary" not in (process / "environ").read_bytes()
        assert {handle.name for handle in (process / "fd").iterdir()} == {"0", "1", "2"}
    assert "Seccomp:\t2" in (process / "status").read_text()
    limits = limits_of(pid)
    for name in ("Max file size", "Max core file size"):
        assert limits[name] == ["0", "0"]
    assert limits["Max open files"] == ["3", "3"]
    assert limits["Max cpu time"] == ["10", "11"]
    assert int(limits["Max address space"][1]) < (1 << 30) + (200 << 20)
    assert (process / "oom_score_adj").read_text() == "1000\n"


async def test_a_child_survives_the_sigterm_that_the_supervisor_passes_on(
    build: Callable[..., sandbox.Decoder],
) -> None:
    decoding = build(children=1)
    (pid,) = await idle(1)
    os.kill(pid, signal.SIGTERM)
    await asyncio.sleep(0.2)
    assert is_running(pid)
    await decoding.decode(PHOTO, timeout_s=PATIENCE_S)


OPENED_FOR_WRITING = """
import asyncio, os, sys
from retouch.images import decode, sandbox
from support.images.decoding import PATIENCE_S, PHOTO, idle

written = set()

def watch(event, args):
    if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) and isinstance(args[0], str | bytes):
        written.add(args[0])  # else it is a pipe's number

async def run():
    decoder = sandbox.Decoder(decode.Limits(), sandbox.DecoderSettings())
    await idle()
    sys.addaudithook(watch)
    await decoder.decode(PHOTO, timeout_s=PATIENCE_S)
    await idle()
    print(sorted(written - {os.devnull}))
    decoder.close()

asyncio.run(run())
"""


def test_no_file_is_opened_for_writing() -> None:
    """In a process of its own: an audit hook stays for good."""
    found = subprocess.run(  # noqa: S603
        [sys.executable, "-B", "-c", OPENED_FOR_WRITING],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        check=True,
        text=True,
    )
    assert found.stdout == "[]\n"


async def test_children_end_with_their_parent() -> None:
    script = (
        "import time; from retouch.images import decode, sandbox\n"
        "started = []\n"
        "def spawn(command):\n"
        "    started.append(sandbox.start_child(command))\n"
        "    return started[-1]\n"
        "decoder = sandbox.Decoder(decode.Limits(), spawn=spawn)\n"
        "print(*(child.pid for child in started), flush=True)\n"
        "time.sleep(60)"
    )
    path = os.pathsep.join(sys.path)
    with subprocess.Popen(  # noqa: ASYNC220, S603
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env={"PYTHONPATH": path}
    ) as parent:
        assert parent.stdout is not None
        pids = parent.stdout.readline().split()
        parent.kill()
    assert len(pids) == 2
    await until(lambda: not any(is_running(int(pid)) for pid in pids))


# --- where it works --------------------------------------------------------------------------


def test_it_works_in_several_loops_and_threads_at_a_time(
    build: Callable[..., sandbox.Decoder],
) -> None:
    decoding = build()
    widths: list[int] = []

    def run() -> None:
        for _ in range(2):
            decoded = asyncio.run(decoding.decode(PHOTO, timeout_s=PATIENCE_S))
            widths.append(decoded.width_px)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert widths == [640] * 8


def test_it_works_under_uvloop(decoding: sandbox.Decoder) -> None:
    uvloop = pytest.importorskip("uvloop")
    decoded = uvloop.run(decoding.decode(PHOTO, timeout_s=PATIENCE_S))
    assert decoded.width_px == 640
