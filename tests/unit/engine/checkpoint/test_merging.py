"""Adapters merged into weights while these are read, and what rounding loses of them."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import packed_files
from support.models.adapters import draw, largest_difference, load, name_adapter
from support.models.lora_files import Pair
from support.models.packed_files import Kind, save_gguf
from support.models.reference_edits import IMAGE, WORK as SMALL
from support.models.streamed import CPU, plan_streaming
from support.models.tiny import build_engine, build_tiny_pipeline
from support.models.tiny_folder import tiny_folder

from retouch import demo
from retouch.editing.adapters import resolve_adapters
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.adapters.read import LowRank, read_adapter
from retouch.engine.adapters.shapes import layer_shapes
from retouch.engine.checkpoint import build, entries, merging
from retouch.engine.checkpoint.files import WEIGHTED, read_json
from retouch.engine.checkpoint.merging import Storage, choose_merged, measure_losses, merge_into
from retouch.engine.checkpoint.safetensors_reader import read_weights
from retouch.engine.engine import QwenEngine
from retouch.engine.memory.encode import PACKERS, encode_as
from retouch.engine.memory.flat_params import keep_plain
from retouch.engine.memory.plan import RESIDENT
from retouch.engine.memory.quantization import Quantization
from retouch.engine.memory.weights import Weights
from retouch.engine.packing.encoding import Packer, Plain
from retouch.engine.precision import residual_scale
from retouch.schema import Lora

WORK = replace(SMALL, steps=1, width_px=64, height_px=48)


@cache
def base() -> Any:
    return build_tiny_pipeline()


@cache
def configs() -> Any:
    return build.read_configs(tiny_folder())


@cache
def stored() -> dict[str, entries.TensorEntry]:
    return entries.read_headers(tiny_folder())


@cache
def inputs() -> tuple[Any, Any, Any]:
    """What the transformer edits: the same for all engines here, since only their transformers differ."""
    engine = build_engine(base())
    prepared = engine.prepare([IMAGE.resize((48, 32))], WORK)
    with torch.no_grad():
        return (
            prepared,
            engine.encode_prompts(prepared.inputs),
            engine.encode_images(prepared.inputs),
        )


def fix(folder: Path, pairs: Mapping[str, Pair], *, scale: float = 0.7) -> LoadedAdapters:
    """Load an adapter that is applied to every request, to be merged."""
    named = name_adapter(folder, "a", pairs, always=True, scale=scale)
    adapters = load(replace(named, fixed=True))
    adapters.merged = frozenset({"a"})
    return adapters


def read(adapters: LoadedAdapters, *, streamed: bool = False, packed: str = "none") -> QwenEngine:
    """Read the tiny model, with the adapters that are `merged`."""
    modules = build.build_modules(configs(), dict.fromkeys(WEIGHTED, torch.float32))
    encode = encode_as(Quantization(packed))
    plan = plan_streaming(modules, encode) if streamed else RESIDENT
    weights = Weights(**modules, plan=plan, device=CPU, encode=encode)
    weights.allocate()
    read_weights(stored(), merge_into(weights.destinations(), adapters))
    return build_engine(base(), weights, adapters=adapters)


def leave_unmerged(adapters: LoadedAdapters) -> QwenEngine:
    """Build the tiny model with the adapters beside its weights."""
    adapters.merged = frozenset()
    return build_engine(build_tiny_pipeline(), adapters=adapters)


def denoise(engine: QwenEngine, **scales: float) -> torch.Tensor:
    loras = [Lora(name=name, scale=scale) for name, scale in scales.items()]
    work = replace(WORK, loras=resolve_adapters(loras, engine.info.adapters))
    prepared, texts, images = inputs()
    with torch.no_grad():
        return engine.denoise(replace(prepared, params=work), texts, images)


@pytest.fixture(scope="module")
def plain() -> torch.Tensor:
    """The result without an adapter."""
    return denoise(build_engine(build_tiny_pipeline()))


@pytest.mark.parametrize("only", ["", "attn", "_mod", "out"])
def test_merged_and_unmerged_weights_agree_resident_and_streamed(
    only: str, tmp_path: Path, plain: torch.Tensor
) -> None:
    adapters = fix(tmp_path, draw(only=only))

    found = {streamed: denoise(read(adapters, streamed=streamed)) for streamed in (False, True)}

    unmerged = denoise(leave_unmerged(adapters))
    assert torch.equal(found[True], found[False])
    assert largest_difference(found[False], unmerged) < 1e-5
    assert largest_difference(plain, unmerged) > 1e-3


def test_a_request_may_give_a_merged_adapter_another_scale_or_none_of_it(
    tmp_path: Path, plain: torch.Tensor
) -> None:
    adapters = fix(tmp_path, draw())
    merged = read(adapters)
    unmerged = leave_unmerged(fix(tmp_path, draw()))
    for scale in (0.0, -1.0, 2.0):
        assert largest_difference(denoise(merged, a=scale), denoise(unmerged, a=scale)) < 1e-5
    assert torch.equal(denoise(unmerged, a=0.0), plain)
    assert largest_difference(denoise(merged, a=0.0), plain) < 1e-5


@pytest.mark.parametrize(("packed", "error"), [("int8", 0.005), ("nf4", 0.05)])
def test_merged_before_packing_and_unmerged_over_packed_weights_agree(
    packed: str, error: float, tmp_path: Path, plain: torch.Tensor
) -> None:
    """Each is as near to the exact update as packing lets it be."""
    adapters = fix(tmp_path, draw(), scale=2.0)
    merged = denoise(read(adapters, packed=packed))
    adapters.merged = frozenset()
    unmerged = denoise(read(adapters, packed=packed))
    exact = denoise(leave_unmerged(adapters))
    assert largest_difference(merged, exact) < error
    assert largest_difference(unmerged, exact) < error
    assert largest_difference(plain, exact) > 4 * error


def test_merged_adapters_make_no_terms_and_the_plan_no_room_for_them(tmp_path: Path) -> None:
    adapters = fix(tmp_path, draw(only="attn"))
    with_room_to_leave_it_out = adapters.terms_bytes
    applied = resolve_adapters([], adapters.info)
    assert applied[0].merged
    assert not adapters.get_terms(applied, torch.ones(1)).blocks
    adapters.merged = frozenset()
    assert adapters.get_terms(resolve_adapters([], adapters.info), torch.ones(1)).blocks
    assert adapters.terms_bytes == with_room_to_leave_it_out > 0


def placed(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(one)["fields"] for one in caplog.records if one.message == "adapter.placed"]


def choose(adapters: LoadedAdapters, stored: Any, storage: Storage) -> frozenset[str]:
    return choose_merged(adapters, stored, storage, CPU)


def test_an_adapter_that_rounding_would_lose_stays_unmerged_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    adapters = fix(tmp_path, draw(), scale=0.001)  # below the last bits of bfloat16
    fine = Storage(keep_plain, torch.float32, lambda _: 1.0)
    coarse = Storage(keep_plain, torch.bfloat16, lambda _: 1.0)
    in_bfloat16 = round_stored(tmp_path, torch.bfloat16)

    assert choose(adapters, in_bfloat16, fine) == {"a"}
    assert choose(adapters, in_bfloat16, coarse) == frozenset()

    kept, left = placed(caplog)
    assert (kept["merged"], left["merged"]) == (True, False)
    assert kept["merge_loss"] < 0.10 < left["merge_loss"]


def test_nothing_is_merged_into_the_packed_weights_of_a_gguf_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    state: packed_files.Weights = dict(base().transformer.state_dict())
    save_gguf(state, tmp_path / "w.gguf", lambda _: Kind.Q8_0)
    parts = build.read_parts(tiny_folder(), {"transformer": tmp_path / "w.gguf"}, family="edit")
    filed = build.list_filed(parts.packed, lambda _: 1.0)
    encode = encode_as(Quantization(**filed.formats), filed.encodings)
    storage = Storage(encode, torch.float32, lambda _: 1.0)
    stored = build.list_entries(tiny_folder(), parts.packed)
    assert choose(fix(tmp_path, draw()), stored, storage) == frozenset()
    assert placed(caplog) == [{"name": "a", "merged": False, "merge_loss": None, "packed": "Q8_0"}]


def test_the_loss_is_measured_on_a_sample_of_many_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def count(updates: Any, *rest: Any) -> Any:
        asked.append(len(updates))
        return measure_losses(updates, *rest)

    monkeypatch.setattr(merging, "measure_losses", count)
    monkeypatch.setattr(merging, "SAMPLE", 5)
    storage = Storage(keep_plain, torch.float32, lambda _: 1.0)
    assert choose(fix(tmp_path, draw()), stored(), storage)
    assert 1 < asked[0] <= 5


def test_an_adapter_without_layers_to_merge_loses_nothing(tmp_path: Path) -> None:
    adapters = fix(tmp_path, draw(only="_mod"))
    plain = Storage(keep_plain, torch.float32, lambda _: 1.0)
    assert choose(adapters, stored(), plain) == {"a"}


def test_what_merging_would_lose_is_said_for_each_storage(tmp_path: Path) -> None:
    adapter = name_adapter(tmp_path, "a", draw()).adapter
    first, *losses = merging.describe_losses(adapter, tiny_folder(), CPU)
    assert first == "merged it would lose (over 0.10 it stays unmerged):"
    assert [line.partition(" in ")[2] for line in losses] == ["bfloat16", "float16", "int8"]


def round_stored(folder: Path, dtype: torch.dtype) -> dict[str, entries.TensorEntry]:
    """Write the tiny transformer in a 16-bit type, as published weights are."""
    from safetensors.torch import save_file

    state = {name: weight.to(dtype) for name, weight in base().transformer.state_dict().items()}
    save_file(state, folder / "rounded.safetensors")
    found, _ = entries.read_safetensors(folder / "rounded.safetensors")
    return {f"transformer.{entry.name}": entry for entry in found}


@pytest.mark.parametrize(
    ("name", "packer", "dtype"),
    [
        ("bfloat16", Plain(torch.bfloat16), torch.bfloat16),
        ("float16", Plain(torch.float16), torch.float16),
        ("int8", PACKERS["int8"], torch.float16),
    ],
)
def test_the_loss_of_the_demos_adapter_is_what_float32_arithmetic_says(
    name: str, packer: Packer, dtype: torch.dtype
) -> None:
    config = read_json(demo.CHECKPOINT_DIR / "transformer" / "config.json")
    adapter = read_adapter(demo.ADAPTERS_DIR / "duotone.safetensors", layer_shapes(config))
    stored = entries.read_headers(demo.CHECKPOINT_DIR, ["transformer"])
    chosen = dict(list(adapter.layers.items())[::10])
    updates = {merging.weight_path(layer): (update, 0.05) for layer, update in chosen.items()}
    scales = {path: residual_scale(path, dtype) for path in updates}

    found = measure_losses(
        updates, stored, {path: {name: (packer, scales[path])} for path in updates}, CPU
    )

    assert found[name].share == pytest.approx(
        expected_loss(updates, name, dtype, scales), rel=1e-4, abs=1e-6
    )
    assert found[name].update > 0


def expected_loss(
    updates: Mapping[str, tuple[LowRank, float]],
    name: str,
    dtype: torch.dtype,
    scales: Mapping[str, float],
) -> float:
    """Compute the loss from the formula, with torch's own rounding."""
    from safetensors.torch import load_file

    state = load_file(demo.CHECKPOINT_DIR / "transformer" / "diffusion_pytorch_model.safetensors")

    def lost(weight: torch.Tensor, scale: float) -> torch.Tensor:
        if name != "int8":
            return (weight * scale).to(dtype).float() / scale - weight
        step = weight.abs().amax(1, keepdim=True) / 127
        return (weight / step).round() * step - weight

    merged = plain = size = 0.0
    for path, (layer, scale) in updates.items():
        weight = state[path.removeprefix("transformer.")].float()
        change = scale * layer.alpha / layer.rank * (layer.up.float() @ layer.down.float())
        merged += float(lost(weight + change, scales[path]).double().square().sum())
        plain += float(lost(weight, scales[path]).double().square().sum())
        size += float(change.double().square().sum())
    return float((max(0.0, merged - plain) / size) ** 0.5)
