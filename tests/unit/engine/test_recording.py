"""Steps that are repeated from a recording. On a CPU a recording calls the step again, over its own inputs."""

from collections.abc import Callable

import pytest
import torch
from support.models.forward_pass import Case

from retouch.engine.block import run_block
from retouch.engine.modulation import ModulationCache, StepModulation
from retouch.engine.recording import LOCK, Forward, RecordedSteps, Recording

TIMESTEPS = torch.tensor([900.0, 600.0, 300.0, 100.0])


class Recorder:
    """Records by calling; `repeats` counts. With `fault` a recording cannot be repeated.

    `held` says of both whether an exchange had to wait for them to be ended.
    """

    def __init__(self) -> None:
        self.records = self.repeats = self.blocks = 0
        self.held: list[bool] = []
        self.fault: Exception | None = None

    def record(
        self, forward: Forward, latents: torch.Tensor, modulation: StepModulation
    ) -> Recording:
        self.records += 1
        self.held.append(LOCK.locked())
        inputs = latents.clone(), *(part.clone() for part in modulation)

        def run() -> list[torch.Tensor]:
            return forward(
                inputs[0], modulation=StepModulation(*inputs[1:]), after_block=self._count
            )

        outputs = run()

        def repeat() -> None:
            self.repeats += 1
            self.held.append(LOCK.locked())
            if self.fault:
                raise self.fault
            for output, found in zip(outputs, run(), strict=True):
                output.copy_(found)

        return Recording(inputs, outputs, repeat)

    def _count(self) -> None:
        self.blocks += 1


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def case() -> Case:
    return Case()


def start(
    case: Case, recorder: Recorder
) -> tuple[RecordedSteps, Callable[..., list[torch.Tensor]]]:
    """Return recorded steps over the model of `case`, and the same steps one by one."""
    transformer, conditioning = case.over(run_block), case.prepare_conditioning()
    table = ModulationCache(case.weights).get(TIMESTEPS)

    def forward(latents: torch.Tensor, **options: object) -> list[torch.Tensor]:
        return transformer.forward(latents, conditioning, **options)  # type: ignore[arg-type]

    def plain(latents: torch.Tensor, step: int) -> list[torch.Tensor]:
        return forward(latents, modulation=table.of_step(step))

    return RecordedSteps(forward, table, recorder.record), plain


@torch.no_grad()
def test_each_step_is_of_its_own_latents_and_time(case: Case, recorder: Recorder) -> None:
    steps, plain = start(case, recorder)
    found = [steps(case.sample * step, step) for step in range(len(TIMESTEPS))]
    for step, velocities in enumerate(found):  # also those found before a later step ran
        torch.testing.assert_close(velocities, plain(case.sample * step, step))
    assert (recorder.records, recorder.repeats) == (1, 2)  # the first runs as it is
    assert recorder.blocks == 3 * len(case.transformer.transformer_blocks)


@torch.no_grad()
def test_a_recording_is_let_go_of_where_a_step_fails(case: Case, recorder: Recorder) -> None:
    steps, plain = start(case, recorder)
    for step in range(2):
        steps(case.sample, step)
    recorder.fault = RuntimeError("the exchange ended")
    with pytest.raises(RuntimeError, match="the exchange ended"):
        steps(case.sample, 2)
    recorder.fault = None
    torch.testing.assert_close(steps(case.sample, 2), plain(case.sample, 2))
    assert recorder.records == 2


@torch.no_grad()
def test_an_exchange_is_not_ended_while_it_is_recorded(case: Case, recorder: Recorder) -> None:
    steps, _ = start(case, recorder)
    for step in range(3):
        steps(case.sample, step)
    assert recorder.held == [True, False]  # a repeat that waits for a lost process has to be ended
    assert not LOCK.locked()
