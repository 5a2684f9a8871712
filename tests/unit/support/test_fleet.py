"""The simulation of a fleet against the formulas of queueing theory."""

import numpy as np
import pytest
from support.load.fleet import (
    Fleet,
    Load,
    Outcome,
    find_workers,
    mean_wait_s,
    simulate,
)

EXPONENTIAL = tuple(-np.log((np.arange(4000) + 0.5) / 4000))
"""4,000 quantiles of the exponential distribution of mean 1."""


def batch_error_s(outcome: Outcome, batches: int = 25) -> float:
    """The standard error of the mean wait, from the means of batches: waits are correlated."""
    size = len(outcome.wait_s) // batches
    means = outcome.wait_s[: size * batches].reshape(batches, size).mean(axis=1)
    return float(means.std(ddof=1) / batches**0.5)


@pytest.mark.parametrize(("workers", "busy"), [(1, 0.6), (4, 0.8), (50, 0.9)])
def test_exponential_service_times_wait_as_erlang_c_says(workers: int, busy: float) -> None:
    load = Load(busy * workers, EXPONENTIAL)
    outcome = simulate(Fleet(workers, workers), load, edits=20_000, seed=1)
    expected_s = mean_wait_s(workers, busy * workers, 1.0)
    assert abs(outcome.wait_s.mean() - expected_s) < 4 * batch_error_s(outcome)


def test_equal_service_times_on_one_worker_wait_as_pollaczek_and_khinchine_say() -> None:
    outcome = simulate(Fleet(1, 1), Load(0.7, (1.0,)), edits=20_000, seed=2)
    assert abs(outcome.wait_s.mean() - 0.7 / (2 * 0.3)) < 4 * batch_error_s(outcome)


def test_a_burst_waits_one_behind_the_other() -> None:
    outcome = simulate(Fleet(2, 2), Load(1.0, (10.0,), "bursts", 5), edits=5)
    assert sorted(outcome.latency_s) == [10, 10, 20, 20, 30]


def test_a_worker_on_demand_costs_its_start_its_edits_and_its_idle_time() -> None:
    fleet = Fleet(0, 1, cold_start_s=60, idle_s=5, flex_price=0.001)
    outcome = simulate(fleet, Load(1.0, (10.0,), "bursts", 2), edits=2)
    assert sorted(outcome.latency_s) == [70, 80]
    assert (outcome.starts, outcome.paid_s) == (1, pytest.approx(85))
    assert outcome.cost == pytest.approx(0.085)


def test_no_more_workers_start_than_the_cap_and_the_edits_need() -> None:
    load = Load(1.0, (10.0,), "bursts", 6)
    assert simulate(Fleet(0, 4), load, edits=6).starts == 4
    assert simulate(Fleet(1, 40), load, edits=6).starts == 5
    assert simulate(Fleet(0, 40, per_worker=3), load, edits=6).starts == 2


def test_a_full_queue_refuses() -> None:
    outcome = simulate(Fleet(1, 1, queue=2), Load(1.0, (10.0,), "bursts", 6), edits=6)
    assert (outcome.refused, len(outcome.latency_s)) == (3, 3)


def test_the_fewest_workers_for_a_load_are_found() -> None:
    load = Load(1.0, (10.0,))
    found = find_workers(load, target_s=15, edits=5000)
    for workers, is_enough in ((found, True), (found - 1, False)):
        outcome = simulate(Fleet(workers, workers), load, edits=5000)
        assert (outcome.percentile(99) <= 15) is is_enough
    with pytest.raises(ValueError, match="alone"):
        find_workers(load, target_s=9, edits=10)
