"""The engine stopped, failing and used from other threads: the right error, and clean afterwards."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any

import pytest
import torch
from support.models.reference_edits import IMAGE, WORK, edit, ignore
from support.models.tiny import build_tiny, build_tiny_pipeline

from retouch.editing.ports import run_edit
from retouch.engine.block import run_block
from retouch.engine.engine import QwenEngine
from retouch.engine.hooks import StepState
from retouch.errors import ModelError, NonFiniteResult, OutOfMemory

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def engine() -> QwenEngine:
    return build_tiny()


def test_steps_are_reported_before_they_run_and_the_phases_timed() -> None:
    reported, forwards = [], []

    def record(*block_and_streams: Any, exchange: None) -> Any:
        forwards.append(len(reported))
        return run_block(*block_and_streams, exchange=exchange)

    engine = build_tiny(run_block=record)
    _, edited = run_edit(engine, [IMAGE], WORK, on_step=lambda *step: reported.append(step))
    assert reported == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert forwards == [*4 * [1], *4 * [2], *4 * [3]]  # two branches and two blocks a step
    assert min(edited.condition_ms, edited.denoise_ms, edited.vae_decode_ms) > 0


class Stop(Exception):
    pass


@pytest.mark.parametrize("scheduler", ["Euler", "UniPC"])
@pytest.mark.parametrize("last", [0, 1, 3])
def test_an_edit_stopped_at_a_step_leaves_the_next_one_clean(
    engine: QwenEngine, scheduler: str, last: int
) -> None:
    work = replace(WORK, scheduler=scheduler)
    before, reported, stop = edit(engine, work), [], Stop()

    def on_step(step: int, _steps: int) -> None:
        reported.append(step)
        if step == last:
            raise stop

    with pytest.raises(Stop) as caught:
        run_edit(engine, [IMAGE], work, on_step=on_step)
    assert caught.value is stop
    assert reported == list(range(last + 1))
    assert edit(engine, work) == before


def frames(trace: TracebackType | None) -> Iterator[Any]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def test_the_error_of_a_stopped_edit_keeps_no_tensor_alive(engine: QwenEngine) -> None:
    def on_step(step: int, _steps: int) -> None:
        if step == 2:
            raise Stop

    with pytest.raises(Stop) as caught:
        run_edit(engine, [IMAGE], WORK, on_step=on_step)
    loops = [f for f in frames(caught.value.__traceback__) if f.f_code.co_name == "denoise"]
    assert loops
    assert not any(isinstance(v, torch.Tensor) for f in loops for v in f.f_locals.values())


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_non_finite_values_never_become_an_image(engine: QwenEngine, part: str) -> None:
    before = edit(engine)
    weights = engine.weights
    module = weights.transformer.txt_norm if part == "transformer" else weights.vae.decoder
    hook = module.register_forward_hook(lambda _m, _i, output: output * float("nan"))
    with pytest.raises(NonFiniteResult):
        edit(engine)
    hook.remove()
    assert edit(engine) == before


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "ran out of memory"),
        (RuntimeError("secret path"), ModelError, "the model failed on this edit"),
    ],
)
def test_a_fault_of_the_model_is_a_model_error(
    engine: QwenEngine, fault: Exception, error: type[ModelError], text: str
) -> None:
    def fail(*_: object) -> None:
        raise fault

    hook = engine.weights.vae.decoder.register_forward_hook(fail)
    with pytest.raises(ModelError, match=text) as caught:
        edit(engine)
    hook.remove()
    assert type(caught.value) is error
    assert caught.value.__cause__ is fault


def test_a_failing_clean_up_does_not_hide_the_first_error(
    engine: QwenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = torch.OutOfMemoryError("CUDA out of memory")

    def fail(*_: object) -> None:
        raise fault

    def release() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    hook = engine.weights.vae.decoder.register_forward_hook(fail)
    monkeypatch.setattr(engine.weights, "release", release)
    with pytest.raises(OutOfMemory) as caught:
        edit(engine)
    hook.remove()
    assert caught.value.__cause__ is fault


def test_a_failing_clean_up_alone_is_a_model_error(
    engine: QwenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def release() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engine.weights, "release", release)
    with pytest.raises(ModelError):
        edit(engine)


def test_an_edit_is_prepared_and_finished_while_another_runs(engine: QwenEngine) -> None:
    first, second = WORK, replace(WORK, prompt="make the sky green", seed=8)
    expected = [edit(engine, first), edit(engine, second)]
    waiting = []

    def on_step(done: int, _steps: int) -> None:
        if done == 1:
            with ThreadPoolExecutor(1) as pool:
                waiting.append(pool.submit(engine.prepare, [IMAGE], second).result())

    output = engine.edit(engine.prepare([IMAGE], first), on_step=on_step)
    outputs = [output, engine.edit(waiting[0], on_step=ignore)]
    with ThreadPoolExecutor(2) as pool:
        found = [image.tobytes() for image in pool.map(engine.finish, outputs)]
    assert found == expected


def test_hooks_run_before_the_first_step_and_after_each_and_may_change_the_latents(
    engine: QwenEngine,
) -> None:
    seen = []

    def double(state: StepState) -> torch.Tensor:
        return 2 * state.latents

    def record(state: StepState) -> None:
        seen.append((state.done, state.steps, state.latents.shape))

    prepared = engine.prepare([IMAGE], WORK)
    with torch.no_grad():
        texts = engine.encode_prompts(prepared.inputs)
        images = engine.encode_images(prepared.inputs)
        plain = engine.denoise(prepared, texts, images)
        doubled = engine.denoise(prepared, texts, images, hooks=[double, record])
    assert seen == [(done, 3, (1, 6 * 9, 16)) for done in range(4)]
    assert not torch.allclose(plain, doubled)


def test_tokens_are_counted_from_any_thread_during_an_edit(engine: QwenEngine) -> None:
    text = "make the sky purple, naïvely " * 20
    expected = len(build_tiny_pipeline().tokenizer(text)["input_ids"])
    before = edit(engine)

    def count(_: int) -> set[int]:
        return {engine.count_tokens(text) for _ in range(100)}

    with ThreadPoolExecutor(2) as pool:
        counts = pool.map(count, range(4))
        assert edit(engine) == before
        assert list(counts) == [{expected}] * 4
