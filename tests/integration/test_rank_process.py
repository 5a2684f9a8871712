"""Guidance over two engines; the second is served in a thread, through the pipe of the real process."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import reference_edits
from support.models.tiny import build_engine, build_tiny, build_tiny_pipeline

from retouch.editing.ports import AppliedAdapter, EditParams, run_edit
from retouch.engine import rank_child
from retouch.engine.engine import QwenEngine
from retouch.engine.memory.shared_memory import HostShare, sharing
from retouch.engine.rank_process import RankProcess, start_process
from retouch.engine.team import Team
from retouch.errors import ModelError, ModelLost, OutOfMemory

pytestmark = pytest.mark.integration

WORK = replace(reference_edits.WORK, steps=2, width_px=64, height_px=48)
GUIDED = replace(WORK, guidance_scale=4.0)
IMAGE = reference_edits.make_image(48, 32)


@contextmanager
def split(
    *there: QwenEngine, guidance: bool = True, tokens: bool = False
) -> Iterator[tuple[QwenEngine, Team]]:
    """An engine whose edits `there` shares, with a branch or with tokens of its own."""
    pairs = [Pipe() for _ in there]

    def serve(connection: Any, engine: QwenEngine) -> None:
        with connection, suppress(EOFError, OSError):
            rank_child.Rank(engine.local).serve(connection)

    with ThreadPoolExecutor(len(there)) as pool:
        for (_, theirs), engine in zip(pairs, there, strict=True):
            pool.submit(serve, theirs, engine)
        team = Team([RankProcess(ours) for ours, _ in pairs], guidance=guidance)
        if tokens:
            team.join(torch.device("cpu"), is_resident=True)
        yield build_engine(build_tiny_pipeline(), team=team), team
        team.close()


def pixels(engine: QwenEngine, work: EditParams = GUIDED) -> bytes:
    return run_edit(engine, [IMAGE], work)[0].tobytes()


def fail_once(module: torch.nn.Module, fault: Exception) -> None:
    """Let the next pass through `module` fail."""

    def fail(*_: Any) -> None:
        handle.remove()
        raise fault

    handle = module.register_forward_pre_hook(fail)


@pytest.fixture(scope="module")
def expected() -> bytes:
    return pixels(build_tiny())


def test_two_processes_make_the_bytes_of_one(expected: bytes) -> None:
    there = build_tiny()
    forward = there.local.start
    started: list[int] = []

    def start(inputs: Any, *share: Any) -> Any:
        started.append(len(inputs.texts))
        return forward(inputs, *share)

    there.local.start = start  # type: ignore[method-assign]
    with split(there) as (engine, _):
        assert pixels(engine) == expected
        assert pixels(engine) == expected
        assert started == [1, 1]
        plain = replace(WORK, guidance_scale=1.0)
        assert pixels(engine, plain) == pixels(build_tiny(), plain)
        assert started == [1, 1]  # without guidance there is nothing to split


def test_both_are_cast_together() -> None:
    there, alone = build_tiny(), build_tiny()
    alone.local.cast(torch.bfloat16)
    with split(there) as (engine, team):
        team.cast(torch.bfloat16)
        engine.local.cast(torch.bfloat16)
        assert pixels(engine) == pixels(alone)
        assert there.weights.transformer.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(torch.OutOfMemoryError(), OutOfMemory), (ValueError("bug"), ModelError)],
)
@pytest.mark.parametrize("where", ["txt_in", "proj_out"])
def test_a_fault_there_fails_the_edit_and_not_the_next(
    expected: bytes, fault: Exception, raised: type[Exception], where: str
) -> None:
    there = build_tiny()
    with split(there) as (engine, _):
        replace_call(there, where, fault)
        with pytest.raises(raised):
            pixels(engine)
        assert pixels(engine) == expected


def replace_call(engine: QwenEngine, where: str, fault: Exception) -> None:
    """Let the next edit fail as it begins, or in its first step."""
    start: Callable[..., Any] = engine.local.start

    def fail(*_: Any) -> Any:
        engine.local.start = start  # type: ignore[method-assign]
        if where == "txt_in":
            raise fault

        def compute(*_: Any) -> Any:
            raise fault

        return compute

    engine.local.start = fail  # type: ignore[method-assign]


def test_a_fault_here_leaves_no_answer_for_the_next_edit(expected: bytes) -> None:
    with split(build_tiny()) as (engine, _):
        replace_call(engine, "proj_out", ValueError("bug"))
        with pytest.raises(ModelError):
            pixels(engine)
        assert pixels(engine) == expected


def test_an_edit_that_is_cancelled_leaves_no_answer_for_the_next_edit(expected: bytes) -> None:
    def cancel(done: int, _: int) -> None:
        if done == 1:
            raise KeyError

    with split(build_tiny()) as (engine, _):
        with pytest.raises(KeyError):
            engine.edit(engine.prepare([IMAGE], GUIDED), on_step=cancel)
        assert pixels(engine) == expected


def test_a_process_that_has_ended_loses_the_model() -> None:
    with split(build_tiny()) as (engine, team):
        team.close()
        with pytest.raises(ModelLost, match="another GPU has ended"):
            pixels(engine)


def test_an_adapter_that_a_request_brought_keeps_the_edit_here() -> None:
    there = build_tiny()
    brought = AppliedAdapter("url-1", 1.0, "0" * 64, 1)
    with split(there) as (engine, _):
        replace_call(there, "txt_in", ValueError("it is not asked"))
        pixels(engine, replace(GUIDED, loras=(brought,)))


def assert_close(engine: QwenEngine, work: EditParams) -> None:
    """Shares of tokens round differently: by at most one of 255 levels a pixel."""
    found, expected = (
        np.frombuffer(pixels(one, work), np.uint8).astype(int) for one in (engine, build_tiny())
    )
    assert abs(found - expected).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_two_processes_share_the_tokens_of_every_branch(scale: float) -> None:
    with split(build_tiny(), guidance=False, tokens=True) as (engine, _):
        assert_close(engine, replace(WORK, guidance_scale=scale))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_four_processes_share_branches_and_their_tokens(scale: float) -> None:
    with split(build_tiny(), build_tiny(), build_tiny(), tokens=True) as (engine, _):
        assert_close(engine, replace(WORK, guidance_scale=scale))


@pytest.mark.parametrize(
    ("fault", "raised"),
    [(torch.OutOfMemoryError(), OutOfMemory), (ValueError("bug"), ModelError)],
)
def test_a_process_that_fails_while_others_wait_for_it_ends_the_edit_and_then_the_model(
    fault: Exception, raised: type[Exception]
) -> None:
    there = build_tiny()
    with split(there, guidance=False, tokens=True) as (engine, _):
        replace_call(there, "proj_out", fault)
        with pytest.raises(raised):
            pixels(engine)
        with pytest.raises(ModelLost):
            pixels(engine)


def test_a_process_whose_gpu_is_broken_still_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    there = build_tiny()

    def fail() -> None:
        raise RuntimeError("the GPU is broken")

    monkeypatch.setattr(there.local, "release", fail)
    with split(there, guidance=False, tokens=True) as (engine, _):
        replace_call(there, "proj_out", ValueError("bug"))
        with pytest.raises(ModelError):
            pixels(engine)


def test_a_failed_start_of_shared_tokens_spoils_no_later_edit() -> None:
    there = build_tiny()
    with split(there, guidance=False, tokens=True) as (engine, _):
        replace_call(there, "txt_in", ValueError("bug"))
        with pytest.raises(ModelError):
            pixels(engine)
        assert_close(engine, GUIDED)


def test_a_process_has_the_gpu_and_the_memory_that_it_is_given() -> None:
    with sharing(2):
        share = HostShare.find()
        assert share
        process = start_process(None, "7")
        assert process.process
        theirs = Path(f"/proc/{process.process.pid}")
        environment = (theirs / "environ").read_bytes().split(b"\0")
        inherited = (theirs / f"fd/{share.descriptor}").readlink()
        process.kill()  # it has only begun to import torch
        process.close()
    assert b"CUDA_VISIBLE_DEVICES=7" in environment
    assert f"RETOUCH_WEIGHTS={share.descriptor},2".encode() in environment
    assert "retouch-weights" in str(inherited)
