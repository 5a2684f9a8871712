import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXEulerAncestralRFScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_shift

from retouch import schema
from retouch.engine.schedulers import (
    SCHEDULERS,
    EulerAncestral,
    build_scheduler,
    start_schedule,
)

CONFIG = {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
MU = 0.6


def start(name: str, steps: int, seed: int = 0) -> Any:
    scheduler = build_scheduler(
        name, CONFIG, steps=steps, generator=torch.Generator().manual_seed(seed)
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=MU)
    scheduler.set_begin_index(0)
    return scheduler


def run(scheduler: Any) -> torch.Tensor:
    sample = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    for timestep in scheduler.timesteps:
        velocity = torch.sin(3 * sample)
        sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
    return sample


def test_every_scheduler_of_the_contract_is_here_and_no_other() -> None:
    assert tuple(SCHEDULERS) == schema.SCHEDULERS


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_count_of_steps_ends_in_numbers_with_one_model_call_a_step(name: str) -> None:
    for steps in (*range(1, 13), 20, 33, 40, schema.MAX_STEPS):
        scheduler = start(name, steps)
        assert len(scheduler.timesteps) == steps
        assert scheduler.sigmas[-1] == 0
        assert torch.isfinite(run(scheduler)).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    assert torch.equal(run(start(name, 8)), run(start(name, 8)))


def test_only_the_ancestral_scheduler_depends_on_the_seed() -> None:
    depends = {n for n in SCHEDULERS if not torch.equal(run(start(n, 8)), run(start(n, 8, seed=9)))}
    assert depends == {"EulerAncestral"}


def test_the_five_schedulers_are_five() -> None:
    results = [run(start(name, 8)) for name in SCHEDULERS]
    assert not any(torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.parametrize("name", ["EulerAncestral", "UniPC"])
def test_sigmas_follow_the_checkpoints_shift(name: str) -> None:
    torch.testing.assert_close(start(name, 8).sigmas, start("Euler", 8).sigmas, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_the_pipeline_reads_from_the_config_is_kept(name: str) -> None:
    kept = start(name, 8).config
    names = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
    assert [kept[key] for key in names] == [CONFIG[key] for key in names]


def test_a_fixed_shift_reaches_unipc_too() -> None:
    config = {**CONFIG, "use_dynamic_shifting": False, "shift": 3.0, "shift_terminal": None}
    sigmas = []
    for name in ("Euler", "UniPC"):
        scheduler = build_scheduler(name, config, steps=4, generator=torch.Generator())
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4))
        sigmas.append(scheduler.sigmas)
    torch.testing.assert_close(sigmas[0], sigmas[1], rtol=0, atol=2e-6)


def test_a_stochastic_checkpoint_config_is_made_repeatable() -> None:
    config = {**CONFIG, "stochastic_sampling": True}
    scheduler = build_scheduler("Euler", config, steps=2, generator=torch.Generator())
    assert not scheduler.config.stochastic_sampling


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_the_checkpoints_own_kind_of_sigmas_does_not_join_the_named_schedulers(
    name: str, kind: str
) -> None:
    generator = torch.Generator()
    plain = build_scheduler(name, CONFIG, steps=4, generator=generator)
    config = {**CONFIG, f"use_{kind}_sigmas": True}
    changed = build_scheduler(name, config, steps=4, generator=generator)
    for scheduler in (plain, changed):
        start_schedule(scheduler, steps=4, image_tokens=2000)
    assert torch.equal(plain.sigmas, changed.sigmas)


@pytest.mark.parametrize("steps", [2, 8, 30, 50])
def test_the_ancestral_step_equals_the_librarys_bit_for_bit(steps: int) -> None:
    ours = start("EulerAncestral", steps)
    theirs = LTXEulerAncestralRFScheduler()
    theirs.set_timesteps(sigmas=ours.sigmas.tolist())
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1))
    for timestep in theirs.timesteps[:-1]:
        velocity = torch.sin(3 * sample)
        sample = theirs.step(velocity, timestep, sample, generator=generator).prev_sample
    assert torch.equal(run(ours), sample)


def test_the_ancestral_step_without_noise_is_euler() -> None:
    scheduler = start("EulerAncestral", 8)
    scheduler.eta = 0.0
    torch.testing.assert_close(run(scheduler), run(start("Euler", 8)), rtol=0, atol=2e-6)


def test_the_ancestral_step_finds_its_place_without_a_begin_index() -> None:
    scheduler = EulerAncestral.from_config(CONFIG)
    scheduler.generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=MU)
    assert torch.equal(run(scheduler), run(start("EulerAncestral", 8)))


def test_the_stock_schedule_of_one_step_is_nan() -> None:
    """The upstream fault that `build_scheduler` works round; when this fails, it can go."""
    stock = FlowMatchEulerDiscreteScheduler.from_config(CONFIG)
    with np.errstate(invalid="ignore"):
        stock.set_timesteps(sigmas=np.linspace(1.0, 1.0, 1), mu=MU)
    assert torch.isnan(stock.sigmas[0])


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("image_tokens", [1, 256, 4096, 16384])
def test_a_schedule_starts_as_in_the_stock_pipelines(name: str, image_tokens: int) -> None:
    theirs = start(name, 8)
    mu = calculate_shift(image_tokens, 256, 8192, 0.5, 0.9)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=mu)
    ours = start(name, 8)
    timesteps = start_schedule(ours, steps=8, image_tokens=image_tokens)
    assert torch.equal(timesteps, theirs.timesteps)
    assert torch.equal(ours.sigmas, theirs.sigmas)
    assert timesteps.device.type == ours.sigmas.device.type == "cpu"
    assert torch.isfinite(run(ours)).all()


def test_a_config_without_a_shift_line_has_the_pipelines_own() -> None:
    config = {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": True}
    sigmas = []
    for name in ("Euler", "UniPC"):
        scheduler = build_scheduler(name, config, steps=4, generator=torch.Generator())
        start_schedule(scheduler, steps=4, image_tokens=2000)
        sigmas.append(scheduler.sigmas)
    torch.testing.assert_close(sigmas[0], sigmas[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("steps", "sigmas"),
    [
        (4, [1, 0.9, 0.75, 0.5, 0]),
        (8, [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0]),
    ],
)
@pytest.mark.parametrize("image_tokens", [64, 4096, 16384])
def test_a_shift_of_three_gives_the_schedule_of_lightning_at_any_size(
    steps: int, sigmas: list[float], image_tokens: int
) -> None:
    config = {"shift": 1.0, "use_dynamic_shifting": True, "shift_terminal": 0.02, "max_shift": 0.9}
    scheduler = build_scheduler(
        "Euler", config, steps=steps, generator=torch.Generator(), shift=3.0
    )
    start_schedule(scheduler, steps=steps, image_tokens=image_tokens)
    assert scheduler.sigmas.tolist() == pytest.approx(sigmas, abs=1e-4)


def test_a_shift_of_three_equals_the_authors_own_scheduler() -> None:
    authors = FlowMatchEulerDiscreteScheduler(
        base_shift=math.log(3),
        max_shift=math.log(3),
        use_dynamic_shifting=True,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        time_shift_type="exponential",
        shift_terminal=None,
    )
    ours = build_scheduler(
        "Euler", dict(authors.config), steps=8, generator=torch.Generator(), shift=3.0
    )
    start_schedule(authors, steps=8, image_tokens=4096)
    start_schedule(ours, steps=8, image_tokens=4096)
    torch.testing.assert_close(ours.sigmas, authors.sigmas, rtol=0, atol=1e-6)
