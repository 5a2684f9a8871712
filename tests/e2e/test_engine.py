"""The engine over a tiny random pipeline of the real classes: right and repeatable."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_edits import IMAGE, MODULES, WORK, bound_stock_area, edit, ignore, make_image, run_stock

from retouch import contract
from retouch.engine.conditioning import correct_positions
from retouch.engine.pipeline import QwenEngine
from retouch.engine.tiny import AREA_PX, PRESET, build_tiny, build_tiny_pipeline

pytestmark = pytest.mark.e2e


@pytest.fixture
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    bound_stock_area(monkeypatch, AREA_PX)


@pytest.fixture(scope="module")
def engine() -> QwenEngine:
    return build_tiny()


@pytest.mark.usefixtures("small_stock")
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("size", [(144, 96), (64, 176)])
def test_an_edit_equals_the_stock_pipelines(
    plus: bool, guidance_scale: float, size: tuple[int, int]
) -> None:
    engine = build_tiny(plus=plus)
    work = replace(WORK, guidance_scale=guidance_scale, width_px=size[0], height_px=size[1])
    assert edit(engine, work) == run_stock(engine.pipe, work)


def test_an_edit_at_full_area_equals_the_untouched_stock_pipeline() -> None:
    preset = PRESET.model_copy(update={"condition_area_px": 1024 * 1024})
    engine = QwenEngine(build_tiny_pipeline(), preset=preset, model="tiny", revision="")
    work = replace(WORK, steps=1, guidance_scale=1.0)
    stock = build_tiny_pipeline()
    stock.scheduler = type(stock.scheduler).from_config(stock.scheduler.config, shift_terminal=None)
    correct_positions(stock.text_encoder)
    assert edit(engine, work) == run_stock(stock, work)


@pytest.mark.usefixtures("small_stock")
def test_the_image_reaches_the_original_pipeline_resized() -> None:
    """A list of one image skips the resize there, so the two calls differ."""
    engine = build_tiny()
    assert edit(engine) == run_stock(engine.pipe)
    assert edit(engine) != run_stock(engine.pipe, image=[IMAGE])


@pytest.mark.parametrize("size", [(144, 96), (96, 144), (16, 16), (208, 32)])
def test_the_result_has_the_size_asked_for(engine: QwenEngine, size: tuple[int, int]) -> None:
    work = replace(WORK, width_px=size[0], height_px=size[1], steps=1)
    edited = engine.edit(IMAGE, work, before_step=ignore)
    assert (edited.image.size, edited.image.mode) == (size, "RGB")


def test_positions_are_those_of_the_models_own_inputs() -> None:
    pipe = build_tiny_pipeline()
    text = [pipe.prompt_template_encode.format(WORK.prompt)]
    inputs = pipe.processor(text=text, images=IMAGE, padding=True, return_tensors="pt")
    with torch.no_grad():
        right = pipe.text_encoder(**inputs, output_hidden_states=True).hidden_states[-1][:, 64:]
        without = pipe.encode_prompt(WORK.prompt, IMAGE)[0]
        hook = correct_positions(pipe.text_encoder)
        corrected = pipe.encode_prompt(WORK.prompt, IMAGE)[0]
        hook.remove()
        removed = pipe.encode_prompt(WORK.prompt, IMAGE)[0]
    assert torch.equal(corrected, right)
    assert not torch.allclose(without, right, atol=1e-3)
    assert torch.equal(removed, without)


def test_positions_are_left_alone_where_there_is_no_image() -> None:
    text_encoder = build_tiny_pipeline().text_encoder
    correct_positions(text_encoder)
    with torch.no_grad():
        assert text_encoder(input_ids=torch.tensor([[9, 10]])).logits.shape[1] == 1


def test_guidance_needs_its_scale_and_then_reads_the_negative_prompt(engine: QwenEngine) -> None:
    def results(scale: float) -> list[bytes]:
        texts = (" ", "low quality")
        return [edit(engine, replace(WORK, guidance_scale=scale, negative_prompt=t)) for t in texts]

    off, on = results(1.0), results(4.0)
    assert off[0] == off[1]
    assert on[0] != on[1]
    assert off[0] != on[0]


def test_the_prompt_and_the_image_decide_the_result(engine: QwenEngine) -> None:
    assert edit(engine) != edit(engine, replace(WORK, prompt="make the sky green"))
    assert edit(engine) != edit(engine, image=make_image().rotate(180))


def test_braces_in_a_prompt_are_text(engine: QwenEngine) -> None:
    assert edit(engine, replace(WORK, prompt="a {} {0} {x}"))


def count_image_tokens(engine: QwenEngine) -> tuple[int, int]:
    """Count the image tokens that the transformer and the text encoder see in one edit."""
    pipe, seen = engine.pipe, {}
    hooks = [
        pipe.transformer.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.update(dit=kwargs["hidden_states"].shape[1]),
            with_kwargs=True,
        ),
        pipe.text_encoder.register_forward_pre_hook(
            lambda m, _a, kwargs: seen.update(
                vl=int((kwargs["input_ids"] == m.config.image_token_id).sum())
            ),
            with_kwargs=True,
        ),
    ]
    edit(engine, replace(WORK, width_px=64, height_px=64, steps=1), make_image(100, 100))
    for hook in hooks:
        hook.remove()
    return seen["dit"] - 16, seen["vl"]


@pytest.mark.parametrize("plus", [False, True])
def test_the_conditioning_area_is_the_engines_own(plus: bool) -> None:
    before = [module.calculate_dimensions for module in MODULES]
    engines = [
        QwenEngine(
            build_tiny_pipeline(plus=plus),
            preset=PRESET.model_copy(update={"condition_area_px": side * side}),
            model="tiny",
            revision="",
        )
        for side in (64, 128, 64)
    ]
    assert [count_image_tokens(e) for e in engines] == [(16, 4), (64, 25), (16, 4)]
    assert [module.calculate_dimensions for module in MODULES] == before


def test_a_very_narrow_image_still_has_a_side(engine: QwenEngine) -> None:
    assert edit(engine, image=make_image(1900, 10))


@pytest.mark.parametrize("scheduler", contract.SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 8])
def test_every_scheduler_repeats_itself(engine: QwenEngine, scheduler: str, steps: int) -> None:
    work = replace(WORK, scheduler=scheduler, steps=steps)
    first = edit(engine, work)
    assert first == edit(engine, work)
    assert first != edit(engine, replace(work, seed=8))
    assert len(set(first)) > 1  # a black image is how no numbers look


def test_schedulers_leave_no_trace_in_one_another(engine: QwenEngine) -> None:
    before = edit(engine)
    edit(engine, replace(WORK, scheduler="UniPC", steps=5))
    edit(engine, replace(WORK, scheduler="EulerAncestral", steps=5))
    assert edit(engine) == before


def test_ancestral_noise_is_not_the_first_noise_again(engine: QwenEngine) -> None:
    """The generator goes on; one started anew would add the initial latents a second time."""
    drawn = []
    randn = torch.randn

    def record(*args: Any, **kwargs: Any) -> torch.Tensor:
        drawn.append(randn(*args, **kwargs))
        return drawn[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", record)
        edit(engine, replace(WORK, scheduler="EulerAncestral"))
    noises = {tuple(noise.flatten()[:4].tolist()) for noise in drawn}
    assert len(noises) == len(drawn) == WORK.steps  # the latents, and each step but the last


def test_the_largest_seed_works(engine: QwenEngine) -> None:
    assert edit(engine, replace(WORK, seed=2**32 - 1)) == edit(
        engine, replace(WORK, seed=2**32 - 1)
    )


def test_building_a_tiny_pipeline_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    build_tiny_pipeline(seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
