"""The engine over a tiny random pipeline of the real classes: right and repeatable."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.models.reference_edits import (
    IMAGE,
    WORK,
    bound_stock_area,
    build_stock,
    decode_of,
    edit,
    engine_over,
    make_image,
    run_stock,
)
from support.models.tiny import AREA_PX, build_tiny, build_tiny_pipeline

from retouch import schema
from retouch.editing.ports import EditParams, EngineOutput, run_edit
from retouch.engine.block import run_block
from retouch.engine.engine import QwenEngine
from retouch.engine.text_encoder import TextEncoder, describe_template

pytestmark = pytest.mark.e2e


@pytest.fixture
def small_stock(monkeypatch: pytest.MonkeyPatch) -> None:
    bound_stock_area(monkeypatch, AREA_PX)


@pytest.fixture(scope="module")
def engine() -> QwenEngine:
    return build_tiny()


def assert_equals_stock(pipe: Any, work: EditParams) -> None:
    engine = engine_over(pipe)
    ours = decode_of(pipe.vae, lambda: edit(engine, work))
    stock = decode_of(pipe.vae, lambda: run_stock(pipe, work))
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("small_stock")
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("size", [(144, 96), (64, 176), (16, 16)])
def test_an_edit_equals_the_stock_pipelines(
    plus: bool, zero_cond_t: bool, guidance_scale: float, size: tuple[int, int]
) -> None:
    work = replace(WORK, guidance_scale=guidance_scale, width_px=size[0], height_px=size[1])
    assert_equals_stock(build_stock(plus=plus, zero_cond_t=zero_cond_t), work)


@pytest.mark.usefixtures("small_stock")
@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("scheduler", schema.SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 6])
def test_every_scheduler_runs_as_in_the_stock_pipelines(
    plus: bool, scheduler: str, steps: int
) -> None:
    assert_equals_stock(build_stock(plus=plus), replace(WORK, scheduler=scheduler, steps=steps))


def assert_images_equal_stock(
    count: int, work: EditParams, *, plus: bool = True, zero_cond_t: bool = False
) -> None:
    images = [make_image(*size) for size in ((150, 100), (60, 120), (128, 128))[:count]]
    pipe = build_stock(plus=plus, zero_cond_t=zero_cond_t)
    engine = engine_over(pipe)
    ours = decode_of(pipe.vae, lambda: run_edit(engine, images, work))
    stock = decode_of(pipe.vae, lambda: run_stock(pipe, work, images if plus else images[0]))
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("small_stock")
@pytest.mark.parametrize("zero_cond_t", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [(144, 96), (64, 176)])
def test_an_edit_of_several_images_equals_the_stock_pipeline(
    zero_cond_t: bool, count: int, size: tuple[int, int]
) -> None:
    work = replace(WORK, width_px=size[0], height_px=size[1])
    assert_images_equal_stock(count, work, zero_cond_t=zero_cond_t)


@pytest.mark.usefixtures("small_stock")
@pytest.mark.parametrize("scheduler", schema.SCHEDULERS)
@pytest.mark.parametrize("count", [2, 3])
def test_every_scheduler_edits_several_images_as_the_stock_pipeline(
    scheduler: str, count: int
) -> None:
    assert_images_equal_stock(count, replace(WORK, scheduler=scheduler, guidance_scale=1.0))


def test_the_order_of_images_matters_and_how_many_one_edit_takes_is_stated() -> None:
    plus = build_tiny(plus=True)
    assert [len(each.info.max_areas_px) for each in (plus, build_tiny())] == [3, 1]
    pair = [make_image(), make_image(60, 120)]
    results = [run_edit(plus, images, WORK)[0].tobytes() for images in (pair, pair[::-1], pair[:1])]
    assert len(set(results)) == 3


@pytest.mark.usefixtures("small_stock")
def test_a_long_negative_prompt_does_not_disturb_a_short_prompt() -> None:
    assert_equals_stock(build_stock(), replace(WORK, prompt="red", negative_prompt="blurry " * 40))


def test_an_edit_at_full_area_equals_the_untouched_stock_pipeline() -> None:
    pipe = build_stock(plus=True)
    engine = engine_over(pipe, condition_area_px=1024 * 1024)
    work = replace(WORK, steps=1, guidance_scale=1.0)
    ours = decode_of(pipe.vae, lambda: edit(engine, work))
    stock = decode_of(pipe.vae, lambda: run_stock(pipe, work))
    torch.testing.assert_close(ours, stock, rtol=0, atol=1e-5)


def test_the_image_is_seen_once_and_both_prompts_are_read_in_one_pass() -> None:
    engine = build_tiny()
    calls: list[tuple[str, int]] = []
    encoder = engine.weights.text_encoder
    modules = {"vision": encoder.model.visual, "words": encoder.lm_head}
    modules["layer"] = encoder.model.language_model.layers[0]
    hooks = [
        module.register_forward_hook(
            lambda _m, inputs, _o, name=name: calls.append((name, len(inputs[0])))
        )
        for name, module in modules.items()
    ]
    edit(engine)
    for hook in hooks:
        hook.remove()
    assert [name for name, _ in calls] == ["vision", "layer"]
    assert calls[1] == ("layer", 2)


def test_a_repeated_prompt_and_image_are_encoded_once_and_give_the_same_bits() -> None:
    def count_passes(engine: QwenEngine) -> list[int]:
        passes: list[int] = []
        layer = engine.weights.text_encoder.model.language_model.layers[0]
        layer.register_forward_hook(lambda *_: passes.append(1))
        return passes

    engine = build_tiny(prompt_cache_bytes=1 << 20)
    passes = count_passes(engine)
    first, again = edit(engine), edit(engine)
    edit(engine, replace(WORK, seed=8, scheduler="UniPC", width_px=96))
    assert first == again
    assert len(passes) == 1
    for changed in (replace(WORK, prompt="x"), replace(WORK, negative_prompt="x")):
        edit(engine, changed)
    edit(engine, image=make_image().rotate(180))
    edit(engine, replace(WORK, guidance_scale=1.0))
    assert len(passes) == 5
    keeps_none = build_tiny()
    passes = count_passes(keeps_none)
    assert edit(keeps_none) == edit(keeps_none) == first
    assert len(passes) == 2


def test_both_branches_go_through_a_block_before_the_next() -> None:
    order: list[torch.nn.Module] = []

    def record(block: torch.nn.Module, *rest: Any, exchange: None) -> Any:
        order.append(block)
        return run_block(block, *rest, exchange=exchange)

    engine = build_tiny(run_block=record)
    edit(engine, replace(WORK, steps=2))
    first, second = engine.weights.transformer.transformer_blocks
    assert order == [first, first, second, second] * 2


@pytest.mark.parametrize("size", [(144, 96), (96, 144), (16, 16), (208, 32)])
def test_the_result_has_the_size_asked_for(engine: QwenEngine, size: tuple[int, int]) -> None:
    work = replace(WORK, width_px=size[0], height_px=size[1], steps=1)
    image, _ = run_edit(engine, [IMAGE], work)
    assert (image.size, image.mode) == (size, "RGB")


def test_positions_are_those_of_the_models_own_inputs(engine: QwenEngine) -> None:
    pipe = build_tiny_pipeline()
    text = [pipe.prompt_template_encode.format(WORK.prompt)]
    inputs = pipe.processor(text=text, images=IMAGE, padding=True, return_tensors="pt")
    with torch.no_grad():
        right = pipe.text_encoder(**inputs, output_hidden_states=True).hidden_states[-1][:, 64:]
        encoder = TextEncoder(
            pipe.text_encoder,
            processor=pipe.processor,
            template=describe_template("QwenImageEditPipeline"),
        )
        (ours,) = encoder.encode(encoder.prepare([IMAGE], [WORK.prompt]), torch.device("cpu"))
        stock = pipe.encode_prompt(WORK.prompt, IMAGE)[0]
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-5)
    assert not torch.allclose(stock, right, atol=1e-3)  # when this fails, upstream is mended


@pytest.mark.parametrize("scheduler", schema.SCHEDULERS)
def test_previews_come_before_the_end_and_change_nothing(
    engine: QwenEngine, scheduler: str
) -> None:
    work = replace(WORK, scheduler=scheduler, steps=5)
    shown: list[EngineOutput] = []
    prepared = replace(engine.prepare([IMAGE], work), previews=2, on_preview=shown.append)
    output = engine.edit(prepared, on_step=lambda _done, _steps: None)
    assert engine.finish(output).tobytes() == edit(engine, work)
    assert [one.pixels.shape for one in shown] == [output.pixels.shape] * 2
    distances = [(one.pixels.float() - output.pixels.float()).abs().mean() for one in shown]
    assert distances[1] < distances[0]


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
    """Count the tokens of the condition image for the transformer and for the text encoder."""
    inputs = engine.prepare([make_image(100, 100)], WORK).inputs
    (rows, columns), merge = inputs.grids[1], 2
    return rows * columns, int(inputs.text.vision.grids.prod()) // merge**2


@pytest.mark.parametrize("plus", [False, True])
def test_the_conditioning_area_is_the_presets(plus: bool) -> None:
    pipe = build_tiny_pipeline(plus=plus)
    engines = [engine_over(pipe, condition_area_px=side * side) for side in (64, 128)]
    assert [count_image_tokens(e) for e in engines] == [(16, 4), (64, 25)]


def test_edit_plus_reads_a_smaller_image_than_it_paints_from() -> None:
    engine = engine_over(build_tiny_pipeline(plus=True), condition_area_px=512 * 512)
    assert count_image_tokens(engine) == (32 * 32, 196)


def test_a_very_narrow_image_still_has_a_side(engine: QwenEngine) -> None:
    assert edit(engine, image=make_image(1900, 10))


@pytest.mark.parametrize("scheduler", schema.SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 8])
def test_every_scheduler_repeats_itself(engine: QwenEngine, scheduler: str, steps: int) -> None:
    work = replace(WORK, scheduler=scheduler, steps=steps)
    first = edit(engine, work)
    assert first == edit(engine, work)
    assert first != edit(engine, replace(work, seed=8))
    assert len(set(first)) > 1  # non-finite values would give a black image


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
