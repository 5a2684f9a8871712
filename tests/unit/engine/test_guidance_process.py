"""Guidance over two engines; the second is served in a thread, through the pipe of the real process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import Pipe
from typing import Any

import pytest
import torch
from support.models.reference_edits import IMAGE, WORK
from support.models.tiny import build_engine, build_tiny, build_tiny_pipeline

from retouch.editing.ports import AppliedAdapter, EditParams, run_edit
from retouch.engine import guidance_child
from retouch.engine.engine import QwenEngine
from retouch.engine.guidance_process import GuidanceProcess, choose_second_gpu
from retouch.errors import ModelError, ModelLost, OutOfMemory

GUIDED = replace(WORK, guidance_scale=4.0)


@contextmanager
def split(there: QwenEngine) -> Iterator[tuple[QwenEngine, GuidanceProcess]]:
    """An engine whose second branches `there` computes."""
    ours, theirs = Pipe()
    second = GuidanceProcess(ours)

    def serve() -> None:
        with theirs, pytest.raises((EOFError, OSError)):
            guidance_child.serve(theirs, there.local)

    thread = threading.Thread(target=serve)
    thread.start()
    yield build_engine(build_tiny_pipeline(), second=second), second
    second.close()
    thread.join()


def pixels(engine: QwenEngine, work: EditParams = GUIDED) -> bytes:
    return run_edit(engine, [IMAGE], work)[0].tobytes()


def fail_once(module: torch.nn.Module, fault: Exception) -> None:
    """Let the next pass through `module` fail."""

    def fail(*_: Any) -> None:
        handle.remove()
        raise fault

    handle = module.register_forward_pre_hook(fail)


@pytest.fixture
def expected() -> bytes:
    return pixels(build_tiny())


def test_two_processes_make_the_bytes_of_one(expected: bytes) -> None:
    there = build_tiny()
    forward = there.local.start
    started: list[int] = []

    def start(inputs: Any) -> Any:
        started.append(len(inputs.texts))
        return forward(inputs)

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
    with split(there) as (engine, second):
        second.cast(torch.bfloat16)
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
    with split(build_tiny()) as (engine, second):
        second.close()
        with pytest.raises(ModelLost, match="second GPU has ended"):
            pixels(engine)


def test_the_second_gpu_is_the_second_that_is_visible() -> None:
    assert choose_second_gpu("3,1", 2) == "1"
    with pytest.raises(ModelError, match="needs two GPUs"):
        choose_second_gpu("3", 1)


def test_an_adapter_that_a_request_brought_keeps_the_edit_here() -> None:
    there = build_tiny()
    brought = AppliedAdapter("url-1", 1.0, "0" * 64, 1)
    with split(there) as (engine, _):
        replace_call(there, "txt_in", ValueError("it is not asked"))
        pixels(engine, replace(GUIDED, loras=(brought,)))
