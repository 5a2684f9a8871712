"""Weights that stream give the same bits as weights that stay."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.models.streamed import modules_of, stream_everything
from support.models.tiny import build_tiny_pipeline, keep_resident

from retouch.engine.memory import flat_params, host_memory, prefetch
from retouch.engine.memory.flat_params import flatten_pipeline
from retouch.engine.memory.plan import GIB, EditShape, FreeMemory, Plan, make_plan
from retouch.engine.memory.weights import Weights
from retouch.errors import ModelError

pytestmark = pytest.mark.e2e

CPU = torch.device("cpu")


@pytest.fixture(params=[2, 3])
def weights(request: pytest.FixtureRequest) -> Iterator[Weights]:
    yield (weights := stream_everything(build_tiny_pipeline(), slots=request.param))
    weights.close()


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def addresses(module: torch.nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in module.parameters()}


def test_allocating_changes_no_weight(weights: Weights) -> None:
    for name, module in modules_of(build_tiny_pipeline()).items():
        settled = getattr(weights, name).state_dict()
        for key, tensor in module.state_dict().items():
            torch.testing.assert_close(settled[key], tensor, rtol=0, atol=0)


def test_each_block_is_in_a_slot_with_its_own_weights_while_it_is_yielded(weights: Weights) -> None:
    stock = build_tiny_pipeline().transformer.transformer_blocks
    in_storage = [addresses(block) for block in weights.transformer.transformer_blocks]
    for _step in range(3):
        for number, block in enumerate(weights.blocks()):
            away = addresses(block) - in_storage[number]
            assert len(away) == len(weights.params.blocks[number].views)
            for key, tensor in stock[number].state_dict().items():
                torch.testing.assert_close(block.state_dict()[key], tensor, rtol=0, atol=0)
    assert [addresses(block) for block in weights.transformer.transformer_blocks] == in_storage


def test_weights_that_fit_the_slots_are_not_copied_again(weights: Weights) -> None:
    list(weights.blocks())
    before = weights.copied_bytes
    assert before == sum(weights.params.sizes.blocks)
    list(weights.blocks())
    assert weights.copied_bytes == before


def test_each_unit_is_copied_once_a_pass(weights: Weights) -> None:
    def encode() -> int:
        before = weights.copied_bytes
        with torch.inference_mode():
            weights.text_encoder(input_ids=torch.zeros(1, 4, dtype=torch.long))
        return weights.copied_bytes - before

    language = weights.params.sizes.layers[2:]
    assert encode() >= sum(language)
    assert encode() <= sum(weights.params.sizes.layers)


def test_modulation_comes_for_the_table_only(weights: Weights) -> None:
    stock = build_tiny_pipeline().transformer.transformer_blocks
    home = [addresses(block.img_mod) for block in weights.transformer.transformer_blocks]
    for number, (image_mod, text_mod) in enumerate(weights.modulations()):
        assert not addresses(image_mod) & home[number]
        torch.testing.assert_close(image_mod[1].weight, stock[number].img_mod[1].weight)
        torch.testing.assert_close(text_mod[1].bias, stock[number].txt_mod[1].bias)
    for number, _block in enumerate(weights.blocks()):
        assert addresses(weights.transformer.transformer_blocks[number].img_mod) == home[number]


def test_the_streamed_text_encoder_gives_the_same_bits(weights: Weights) -> None:
    stock = build_tiny_pipeline().text_encoder
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        streamed = weights.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        stayed = stock(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(streamed, stayed)


def test_a_text_encoder_that_streams_in_part_gives_the_same_bits() -> None:
    modules = modules_of(build_tiny_pipeline())
    sizes = flatten_pipeline(**modules).sizes
    plan = Plan(
        "two of four",
        streamed_layers=frozenset({0, 3}),
        slot_bytes=max(*sizes.layers, *sizes.modulation),
        slots=2,
    )
    weights = Weights(**modules, plan=plan, device=CPU)
    weights.allocate()
    stock = build_tiny_pipeline().text_encoder
    ids = torch.arange(12).reshape(2, 6)
    with torch.inference_mode():
        streamed = weights.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        stayed = stock(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(streamed, stayed)
    assert weights.copied_bytes == sizes.layers[3]  # no image: the vision layer 0 did not run


def test_an_interrupted_pass_leaves_the_weights_in_storage(weights: Weights) -> None:
    before = snapshot(weights.transformer)
    home = [addresses(block) for block in weights.transformer.transformer_blocks]
    passing = weights.blocks()
    next(passing)
    passing.close()
    weights.release()
    assert [addresses(block) for block in weights.transformer.transformer_blocks] == home
    assert [number for number, _ in enumerate(weights.blocks())] == [0, 1]
    for key, tensor in snapshot(weights.transformer).items():
        assert torch.equal(tensor, before[key])


def test_a_cast_reaches_every_weight_but_the_modulation_wherever_it_lives() -> None:
    pipe = build_tiny_pipeline()
    pipe.transformer.to(torch.float16)
    stock = snapshot(pipe.transformer)
    weights = stream_everything(pipe)
    list(weights.blocks())  # so that slots hold what is about to change
    weights.cast(torch.bfloat16)
    assert weights.transformer.dtype == torch.bfloat16
    for key, tensor in snapshot(weights.transformer).items():
        assert torch.equal(tensor, stock[key] if "_mod." in key else stock[key].bfloat16())
    for number, block in enumerate(weights.blocks()):
        for key, tensor in block.state_dict().items():
            if "_mod." not in key:
                assert torch.equal(tensor, stock[f"transformer_blocks.{number}.{key}"].bfloat16())


def test_weights_that_stream_in_every_edit_are_pinned(
    monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    """With a pin that only notes: there is no GPU to read pinned memory here."""
    pinned: list[str] = []
    monkeypatch.setattr(
        "retouch.engine.memory.weights.pin", lambda unit: pinned.append(unit.name) or True
    )
    monkeypatch.setattr(
        "retouch.engine.memory.weights.unpin", lambda unit: pinned.remove(unit.name)
    )
    weights.device = torch.device("cuda")
    weights.pin()
    assert pinned == [unit.name for unit in (*weights.params.blocks, *weights.params.layers)]
    weights.close()
    assert pinned == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_may_be_pinned_is_not_copied_by_forks() -> None:
    """A fork would copy pinned pages at once, and the Runpod SDK forks its heartbeat."""
    mapped = host_memory.map_host(4 << 20)
    smaps = Path("/proc/self/smaps").read_text()
    maps = re.findall(r"^(\w+)-(\w+) .*\n(?:\w+:.*\n)*?VmFlags:(.*)$", smaps, re.MULTILINE)
    (flags,) = [
        flags for low, high, flags in maps if int(low, 16) <= mapped.data_ptr() < int(high, 16)
    ]
    assert "dc" in flags.split()


@pytest.mark.parametrize("stage_bytes", [64, 1000, 1 << 20])
def test_weights_copied_in_pieces_are_complete(
    monkeypatch: pytest.MonkeyPatch, stage_bytes: int
) -> None:
    monkeypatch.setattr(prefetch, "STAGE_BYTES", stage_bytes)
    stock = build_tiny_pipeline().transformer.transformer_blocks
    weights = stream_everything(build_tiny_pipeline())
    for number, modulation in enumerate(weights.modulations()):
        pair = stock[number].img_mod, stock[number].txt_mod
        for ours, theirs in zip(modulation, pair, strict=True):
            for key, tensor in ours.state_dict().items():
                assert torch.equal(tensor, theirs.state_dict()[key])


def test_an_interrupted_cast_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = build_tiny_pipeline()
    pipe.transformer.to(torch.float16)
    stock = snapshot(pipe.transformer)
    weights = stream_everything(pipe)
    recast, count = flat_params.recast, 0

    def fail_once(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == 20:
            raise RuntimeError("out of memory")
        return recast(tensor, dtype)

    monkeypatch.setattr(flat_params, "recast", fail_once)
    with pytest.raises(RuntimeError):
        weights.cast(torch.bfloat16)
    assert weights.transformer.dtype == torch.float16
    weights.cast(torch.bfloat16)
    for key, tensor in snapshot(weights.transformer).items():
        assert torch.equal(tensor, stock[key] if "_mod." in key else stock[key].bfloat16())


def test_memory_that_cannot_be_pinned_ends_the_start(
    monkeypatch: pytest.MonkeyPatch, weights: Weights
) -> None:
    monkeypatch.setattr("retouch.engine.memory.weights.pin", lambda unit: False)
    weights.device = torch.device("cuda")
    with pytest.raises(ModelError, match=r"0\.0 GiB of host memory could not be pinned"):
        weights.pin()


def test_resident_weights_stay_where_they_are() -> None:
    modules = modules_of(build_tiny_pipeline())
    before = {name: addresses(module) for name, module in modules.items()}
    weights = keep_resident(**modules)
    assert [*weights.blocks()] == [*modules["transformer"].transformer_blocks]
    assert len([*weights.modulations()]) == 2
    weights.release()
    assert {name: addresses(module) for name, module in modules.items()} == before
    assert weights.plan.name == "resident"


def test_some_blocks_stay_and_some_stream() -> None:
    modules = modules_of(build_tiny_pipeline())
    sizes = flatten_pipeline(**modules).sizes
    picture = EditShape(area_px=4096, condition_area_px=4096, text_tokens=64)
    needed = make_plan(sizes, picture, FreeMemory(GIB * 2, GIB * 64))
    assert needed.name == "resident"
    plan = Plan(
        "one of two",
        streamed_blocks=frozenset({1}),
        slot_bytes=max(*sizes.blocks, *sizes.modulation),
        slots=2,
    )
    weights = Weights(**modules, plan=plan, device=CPU)
    weights.allocate()
    weights.pin()
    stayed = addresses(weights.transformer.transformer_blocks[0])
    seen = [addresses(block) for block in weights.blocks()]
    assert seen[0] == stayed
    assert seen[1] != addresses(weights.transformer.transformer_blocks[1])
