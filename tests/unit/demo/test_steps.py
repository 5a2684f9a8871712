import pytest
import torch
from support.models.no_compiler import no_compiler

from retouch.demo.steps import Optimizer, StageClock, capture_graph, warm_cosine


def test_the_learning_rate_rises_and_then_falls_to_zero() -> None:
    rates = [warm_cosine(0, 0.0, 10), warm_cosine(9, 0.0, 10), warm_cosine(99, 0.5, 10)]
    assert rates == pytest.approx([0.1, 1, 0.5])
    assert warm_cosine(99, 1.5, 10) == pytest.approx(0)


def test_a_step_clips_the_gradient_and_clears_it() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    with no_compiler():
        optimizer = Optimizer([weight], 0.1)
        optimizer.set_lr(0.5)
        weight.grad = torch.full((4,), 100.0)
        optimizer.step()
    assert weight.grad is None
    assert weight.tolist() == pytest.approx([-0.05] * 4, rel=1e-3)


def test_a_cpu_step_is_not_captured() -> None:
    def step() -> torch.Tensor:
        return torch.zeros(())

    assert capture_graph(step, "cpu") is step


def test_a_clock_counts_earlier_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = StageClock("stage", total_s=40, spent_s=10, started=now)
    now = 110.0
    assert (clock.elapsed_s, clock.share) == (20, 0.5)
    now = 900.0
    assert clock.share == 1
    assert StageClock("nothing", total_s=0).share == 1


def test_progress_is_logged_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = StageClock("editor", total_s=40, started=now)
    clock.log("one")
    now = 103.0
    clock.log("two")
    clock.log("three", every_s=0)
    assert capsys.readouterr().err.splitlines() == [
        "editor   0%      0 s, step 0: one",
        "editor   8%      3 s, step 0: three",
    ]
