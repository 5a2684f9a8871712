import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.images import samples
from support.images.decoding import (
    COSTLY,
    LIMITS,
    PATIENCE_S,
    PHOTO,
    children,
    decoders,
    idle,
    is_running,
    running,
    until,
)

from retouch import errors
from retouch.images import decode, sandbox

pytestmark = pytest.mark.integration


async def test_a_child_decodes_as_this_process_does(decoding: sandbox.Decoder) -> None:
    for body in samples.samples().values():
        wanted = decode.decode(body, LIMITS)
        decoded = await decoding.decode(body, timeout_s=PATIENCE_S)
        assert decoded.image.tobytes() == wanted.image.tobytes()
        assert (decoded.image.mode, decoded.image.size) == ("RGB", wanted.image.size)
        assert (decoded.width_px, decoded.height_px) == (wanted.width_px, wanted.height_px)
        assert (decoded.format, decoded.notes) == (wanted.format, wanted.notes)


async def test_a_child_decodes_a_mask_as_this_process_does(decoding: sandbox.Decoder) -> None:
    for body in samples.samples().values():
        decoded = await decoding.decode(body, timeout_s=PATIENCE_S, kind="mask")
        wanted = decode.decode(body, LIMITS, "mask")
        assert (decoded.image.mode, decoded.image.size) == ("L", wanted.image.size)
        assert decoded.image.tobytes() == wanted.image.tobytes()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<svg/>",
        PHOTO[:-2000],
        samples.saved(Image.new("1", (8000, 8000)), "PNG"),
        samples.saved(Image.new("1", (2100, 100)), "PNG"),
        samples.wide_webp(16383, 16383),
        samples.scan_bomb(64, 2010),
    ],
)
async def test_a_refusal_arrives_unchanged(decoding: sandbox.Decoder, body: bytes) -> None:
    with pytest.raises(errors.BadInput) as wanted:
        decode.decode(body, LIMITS)
    with pytest.raises(errors.BadInput) as refusal:
        await decoding.decode(body, timeout_s=PATIENCE_S)
    assert type(refusal.value) is type(wanted.value)
    assert refusal.value.message == wanted.value.message


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGBA", "PNG", {"compress_level": 1}),
        ("I;16", "PNG", {"compress_level": 1}),
        ("RGB", "JPEG", {"progressive": True}),
    ],
)
async def test_50_megapixels_decode_within_the_limits(
    decoding: sandbox.Decoder, mode: str, image_format: str, options: dict[str, Any]
) -> None:
    body = samples.saved(Image.new(mode, (7071, 7071)), image_format, **options)
    decoded = await decoding.decode(body, timeout_s=PATIENCE_S)
    assert (decoded.width_px, decoded.height_px) == (7071, 7071)
    assert decoded.image.size == (2048, 2048)


# --- limits ------------------------------------------------------------------------


async def test_processor_time_is_limited(build: Callable[..., sandbox.Decoder]) -> None:
    with pytest.raises(errors.DecodeLimitExceeded, match="1 s of processor time") as refusal:
        await build(cpu_seconds=1).decode(COSTLY, timeout_s=PATIENCE_S)
    assert refusal.value.context["returncode"] in (-signal.SIGXCPU, -signal.SIGKILL)


async def test_memory_is_limited(build: Callable[..., sandbox.Decoder]) -> None:
    body = samples.saved(Image.new("1", (7000, 7000)), "PNG")
    with pytest.raises(errors.DecodeLimitExceeded, match="memory"):
        await build(memory_bytes=40 << 20).decode(body, timeout_s=PATIENCE_S)


async def test_the_callers_time_ends_a_decode_without_blaming_the_image(
    decoding: sandbox.Decoder,
) -> None:
    await idle()
    start_s = time.monotonic()
    with pytest.raises(errors.DecoderBusy):
        await decoding.decode(COSTLY, timeout_s=0.2)
    assert time.monotonic() - start_s < 5  # all of it takes longer


async def test_a_stopped_child_does_not_blame_the_image(decoding: sandbox.Decoder) -> None:
    for pid in await idle():
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(errors.DecoderBusy):
        await decoding.decode(PHOTO, timeout_s=0.5)


async def test_the_callers_deadline_ends_the_wait_for_a_child(decoding: sandbox.Decoder) -> None:
    with pytest.raises(errors.DecoderBusy):
        await decoding.decode(PHOTO, timeout_s=0.001)  # none is ready yet
    decoded = await decoding.decode(PHOTO, timeout_s=PATIENCE_S)
    assert decoded.width_px == 640


async def test_without_a_free_child_in_time_the_caller_is_told_to_retry(
    build: Callable[..., sandbox.Decoder],
) -> None:
    decoding = build(children=1)
    await idle(1)
    first = asyncio.create_task(decoding.decode(COSTLY, timeout_s=PATIENCE_S))
    await asyncio.sleep(0.1)
    with pytest.raises(errors.DecoderBusy) as refusal:
        await decoding.decode(PHOTO, timeout_s=0.1)
    assert refusal.value.retry_after_s == 10
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first


# --- cancelling, kills and compromise ----------------------------------------------------------------------


async def test_cancelling_ends_the_child(build: Callable[..., sandbox.Decoder]) -> None:
    decoding = build(children=1)
    (pid,) = await idle(1)
    task = asyncio.create_task(decoding.decode(COSTLY, timeout_s=PATIENCE_S))
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: pid not in children())
    assert (await decoding.decode(PHOTO, timeout_s=PATIENCE_S)).width_px == 640


@pytest.mark.parametrize("wait_s", [0.0, 0.02])
async def test_cancelling_before_a_child_is_ready_leaves_none_running(
    build: Callable[..., sandbox.Decoder], wait_s: float
) -> None:
    decoding = build(children=1)
    task = asyncio.create_task(decoding.decode(COSTLY, timeout_s=PATIENCE_S))
    await asyncio.sleep(wait_s)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    start_s = time.monotonic()
    assert (await decoding.decode(PHOTO, timeout_s=PATIENCE_S)).width_px == 640
    assert time.monotonic() - start_s < 5, "the cancelled picture was decoded first"


async def test_a_child_killed_at_any_point_never_blames_the_image(
    decoding: sandbox.Decoder,
) -> None:
    moments = random.Random(1)  # noqa: S311
    outcomes: set[type] = set()
    for _ in range(15):
        task = asyncio.create_task(decoding.decode(PHOTO, timeout_s=PATIENCE_S))
        await asyncio.sleep(moments.uniform(0, 0.06))
        for pid in decoders():
            os.kill(pid, signal.SIGKILL)
        try:
            outcomes.add(type(await task))
        except errors.EditError as error:
            outcomes.add(type(error))
    assert outcomes <= {decode.Decoded, errors.DecoderBusy}
    assert decode.Decoded in outcomes
    assert (await decoding.decode(PHOTO, timeout_s=PATIENCE_S)).width_px == 640


async def test_no_good_image_is_blamed_beside_busy_processes_and_stopped_children(
    decoding: sandbox.Decoder,
) -> None:
    good = [body for name, body in samples.samples().items() if "animated" not in name]
    waiting = iter(good * (int(os.environ.get("GOOD_IMAGES", "40")) // len(good) + 1))
    outcomes: Counter[type] = Counter()

    async def work() -> None:
        for body in waiting:
            try:
                outcomes[type(await decoding.decode(body, timeout_s=5))] += 1
            except errors.EditError as error:
                outcomes[type(error)] += 1

    async def stop() -> None:
        moments = random.Random(1)  # noqa: S311
        while True:
            await asyncio.sleep(moments.uniform(0, 0.5))
            for pid in decoders():
                with suppress(ProcessLookupError):
                    os.kill(pid, moments.choice((signal.SIGSTOP, signal.SIGCONT, signal.SIGCONT)))

    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]  # noqa: ASYNC220
    try:
        async with asyncio.TaskGroup() as group:
            stopper = group.create_task(stop())
            await asyncio.gather(*(work() for _ in range(4)))
            stopper.cancel()
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert set(outcomes) <= {decode.Decoded, errors.DecoderBusy}
    assert outcomes[decode.Decoded] > sum(outcomes.values()) / 2


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
async def test_without_a_child_the_fault_is_ours(
    build: Callable[..., sandbox.Decoder], program: str
) -> None:
    decoding = build(spawn=lambda _command: sandbox.start_child([program]))
    with pytest.raises(errors.InternalError, match="could not be started"):
        await decoding.decode(PHOTO, timeout_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("script", "refusal"),
    [
        ("w(b'\\xff' * 100000)", errors.BrokenImage),
        ("w(b'\\0' * 20)", errors.BrokenImage),
        ("w(struct.pack('>5I', 4, 65536, 65536, 9, 9) + b'jpeg' + bytes(9))", errors.BrokenImage),
        ("w(struct.pack('>5I', 4, 4, 4, 9, 9) + b'jpeg' + bytes(9))", errors.InternalError),
        ("w(struct.pack('>5I', 4, 4, 4, 9, 9)); time.sleep(60)", errors.DecoderBusy),
        ("pass", errors.InternalError),
        ("os._exit(3)", errors.InternalError),
        ("os.kill(os.getpid(), 9)", errors.DecoderBusy),
        ("os.kill(os.getpid(), 11)", errors.DecodeLimitExceeded),
    ],
)
async def test_a_compromised_child_is_not_believed(
    build: Callable[..., sandbox.Decoder], script: str, refusal: type[errors.EditError]
) -> None:
    decoding = build(spawn=running("os.read(0, 8); os.read(0, 1);" + script))
    with pytest.raises(refusal):
        await decoding.decode(b"?", timeout_s=2.0)


@pytest.mark.parametrize(
    ("signal_number", "tries", "refusal"),
    [
        (signal.SIGKILL, 2, errors.DecoderBusy),
        (signal.SIGSYS, 1, errors.DecodeLimitExceeded),
    ],
)
async def test_an_image_whose_children_are_killed_is_not_tried_for_long(
    build: Callable[..., sandbox.Decoder],
    tmp_path: Path,
    signal_number: int,
    tries: int,
    refusal: type[errors.EditError],
) -> None:
    tried = tmp_path / "tried"
    script = f"os.read(0, 10); open({str(tried)!r}, 'a').write('x'); os.kill(os.getpid(), {signal_number:d})"
    with pytest.raises(refusal):
        await build(spawn=running(script)).decode(b"?", timeout_s=PATIENCE_S)
    assert tried.read_text() == "x" * tries


async def test_children_killed_while_they_wait_cost_no_tries(
    build: Callable[..., sandbox.Decoder],
) -> None:
    decoding = build(children=4)
    pids = await idle(4)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not any(is_running(pid) for pid in pids))
    assert (await decoding.decode(PHOTO, timeout_s=PATIENCE_S)).width_px == 640


async def test_a_child_that_does_not_read_is_not_waited_for(
    build: Callable[..., sandbox.Decoder],
) -> None:
    more_than_a_pipe_holds = bytes(3 << 20)
    with pytest.raises(errors.DecoderBusy):
        await build(spawn=running("time.sleep(60)")).decode(more_than_a_pipe_holds, timeout_s=0.5)
