import pytest
import torch

from retouch.demo.flow import Pairs
from retouch.demo.pool import Pool
from retouch.demo.steps import Clock, Optimizer, captured, warm_cosine
from retouch.demo.texts import Texts


def pairs(value: int, count: int = 4) -> Pairs:
    latents = torch.full((count, 6, 64), float(value)).half()
    whole = torch.full((count, 9), value)
    return Pairs(latents, latents, latents, Texts(whole, whole, whole[:, 0]))


def test_a_pool_renews_the_oldest_and_draws_from_all() -> None:
    made = iter(range(10))
    pool = Pool(lambda: pairs(next(made)), capacity=13)
    for _ in range(5):
        pool.renew()
    assert (pool.capacity, pool.filled) == (12, 12)
    torch.manual_seed(0)
    drawn = pool.draw(200)
    assert set(drawn.texts.lengths.tolist()) == {2, 3, 4}
    assert torch.equal(drawn.source[:, 0, 0], drawn.texts.lengths.float())
    assert drawn.source.dtype == torch.float32


def test_the_rate_rises_and_then_falls_to_nothing() -> None:
    rates = [warm_cosine(0, 0.0, 10), warm_cosine(9, 0.0, 10), warm_cosine(99, 0.5, 10)]
    assert rates == pytest.approx([0.1, 1, 0.5])
    assert warm_cosine(99, 1.5, 10) == pytest.approx(0)


def test_a_step_clips_the_gradient_and_forgets_it() -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    optimizer = Optimizer([weight], 0.1)
    optimizer.set_lr(0.5)
    weight.grad = torch.full((4,), 100.0)
    optimizer.step()
    assert weight.grad is None
    assert weight.tolist() == pytest.approx([-0.05] * 4, rel=1e-3)


def test_without_a_gpu_a_step_is_left_as_it_is() -> None:
    def step() -> torch.Tensor:
        return torch.zeros(())

    assert captured(step, "cpu") is step


def test_a_clock_counts_earlier_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock("words", total_s=40, spent_s=10, started=now)
    now = 110.0
    assert (clock.elapsed_s, clock.share) == (20, 0.5)
    now = 900.0
    assert clock.share == 1
    assert Clock("nothing", total_s=0).share == 1


def test_progress_is_said_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock("editor", total_s=40, started=now)
    clock.say("one")
    now = 103.0
    clock.say("two")
    clock.say("three", every_s=0)
    assert capsys.readouterr().err.splitlines() == [
        "editor   0%      0 s, step 0: one",
        "editor   8%      3 s, step 0: three",
    ]
