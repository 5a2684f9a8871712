import json
from pathlib import Path

import pytest
import torch
from support.models.lora_files import STYLES, build_tensors, draw_pairs, write
from support.models.tiny import build_tiny_pipeline

from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.read import MAX_RANK, read_adapter
from retouch.engine.adapters.shapes import layer_shapes

SHAPES = {
    "img_in": (8, 6),
    "transformer_blocks.0.attn.to_q": (8, 8),
    "transformer_blocks.0.attn.to_out.0": (8, 8),
    "transformer_blocks.0.img_mod.1": (48, 8),
    "transformer_blocks.1.txt_mlp.net.0.proj": (32, 8),
    "transformer_blocks.1.txt_mlp.net.2": (8, 32),
    "proj_out": (4, 8),
}
PAIRS = draw_pairs(SHAPES)


@pytest.mark.parametrize("alpha", [None, 2.0])
@pytest.mark.parametrize("style", STYLES)
def test_every_key_style_gives_the_same_updates(
    style: str, alpha: float | None, tmp_path: Path
) -> None:
    adapter = read_adapter(
        write(tmp_path / "a.safetensors", build_tensors(PAIRS, style, alpha=alpha)), SHAPES
    )
    assert adapter.layers.keys() == SHAPES.keys()
    factor = 1.0 if alpha is None else alpha / 4
    for name, (down, up) in PAIRS.items():
        layer = adapter.layers[name]
        assert torch.allclose(layer.factor * layer.up @ layer.down, factor * up @ down)
        assert (layer.rank, layer.alpha) == (4, alpha or 4.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.int32])
def test_alpha_may_be_of_any_number_type(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "kohya", alpha=2.0)
    tensors |= {key: one.to(dtype) for key, one in tensors.items() if key.endswith("alpha")}
    adapter = read_adapter(write(tmp_path / "a.safetensors", tensors), SHAPES)
    assert {layer.factor for layer in adapter.layers.values()} == {0.5}


def as_diffusers(**config: object) -> dict[str, str]:
    named = {f"transformer.{name}": value for name, value in config.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(named)}


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        (as_diffusers(r=4, lora_alpha=16), 4.0),
        (as_diffusers(r=4, lora_alpha=16, use_rslora=True), 8.0),
        (as_diffusers(lora_alpha=None), 1.0),
        ({"lora_alpha": "2"}, 0.5),
        ({"network_alpha": "2.0", "r": "4"}, 0.5),
        ({"ss_network_alpha": "2"}, 1.0),
        ({}, 1.0),
    ],
)
def test_alpha_may_stand_in_the_header(
    metadata: dict[str, str], factor: float, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", build_tensors(PAIRS, "diffusers"), metadata)
    adapter = read_adapter(path, SHAPES)
    assert {layer.factor for layer in adapter.layers.values()} == {factor}


def test_a_layer_may_have_an_alpha_of_its_own_in_the_header(tmp_path: Path) -> None:
    metadata = as_diffusers(lora_alpha=4, alpha_pattern={"attn.to_q": 8, "^proj_out": 2})
    path = write(tmp_path / "a.safetensors", build_tensors(PAIRS, "diffusers"), metadata)
    factors = {name: layer.factor for name, layer in read_adapter(path, SHAPES).layers.items()}
    others = dict.fromkeys(SHAPES, 1.0)
    assert factors == others | {"transformer_blocks.0.attn.to_q": 2.0, "proj_out": 0.5}


@pytest.mark.parametrize(("name", "factor"), [("adapter_model", 2.0), ("other", 1.0)])
def test_peft_has_alpha_in_a_file_beside_its_own(name: str, factor: float, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "alpha_pattern": {}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = write(tmp_path / f"{name}.safetensors", build_tensors(PAIRS, "peft"))
    assert {layer.factor for layer in read_adapter(path, SHAPES).layers.values()} == {factor}


def test_an_alpha_among_the_keys_outranks_the_header(tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "kohya", alpha=2.0)
    path = write(tmp_path / "a.safetensors", tensors, {"lora_alpha": "16"})
    assert {layer.factor for layer in read_adapter(path, SHAPES).layers.values()} == {0.5}


@pytest.mark.parametrize(
    "metadata",
    [
        {"lora_alpha": "None"},
        {"lora_adapter_metadata": "["},
        {"lora_adapter_metadata": "[" * 9000},
        {"lora_adapter_metadata": "[1]"},
        as_diffusers(lora_alpha=float("nan")),
        as_diffusers(lora_alpha=[1]),
        as_diffusers(alpha_pattern={"(a*)*b": 1}),
    ],
)
def test_an_alpha_in_the_header_that_cannot_be_read_is_refused(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.safetensors", build_tensors(PAIRS, "diffusers"), metadata)
    with pytest.raises(AdapterRefused, match="metadata"):
        read_adapter(path, SHAPES)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "OLoRA", "loftq", "corda", "lora_ga"])
def test_a_file_trained_on_changed_weights_is_refused(init: str, tmp_path: Path) -> None:
    metadata = as_diffusers(r=4, lora_alpha=4, init_lora_weights=init)
    path = write(tmp_path / "a.safetensors", build_tensors(PAIRS, "diffusers"), metadata)
    with pytest.raises(AdapterRefused, match=f"weights that {init} changed"):
        read_adapter(path, SHAPES)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_how_else_the_training_began_does_not_matter(init: object, tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "lora_alpha": 8, "init_lora_weights": init}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    path = write(tmp_path / "adapter_model.safetensors", build_tensors(PAIRS, "peft"))
    assert {layer.factor for layer in read_adapter(path, SHAPES).layers.values()} == {2.0}


def test_ranks_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    wide = draw_pairs({"img_in": SHAPES["img_in"]}, rank=5)
    tensors = build_tensors(PAIRS | wide, "diffusers")
    adapter = read_adapter(write(tmp_path / "a.safetensors", tensors), SHAPES)
    assert {layer.rank for layer in adapter.layers.values()} == {4, 5}


def test_the_hash_is_the_files(tmp_path: Path) -> None:
    import hashlib

    path = write(tmp_path / "a.safetensors", build_tensors(PAIRS, "bare"))
    assert read_adapter(path, SHAPES).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def refuse(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(AdapterRefused) as caught:
        read_adapter(path, SHAPES)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("diffusion_model.img_in.dora_scale", "DoRA"),
        ("base_model.model.img_in.lora_magnitude_vector", "DoRA"),
        ("diffusion_model.img_in.lokr_w1", "LoKr"),
        ("lora_unet_img_in.hada_w1_a", "LoHa"),
        ("diffusion_model.img_in.diff_b", "differences"),
        ("diffusion_model.img_in.diff", "differences"),
        ("transformer.img_in.lora_B.bias", "biases"),
    ],
)
def test_other_kinds_of_adapters_are_refused_by_name(key: str, kind: str, tmp_path: Path) -> None:
    message = refuse(tmp_path, build_tensors(PAIRS, "ai-toolkit") | {key: torch.ones(4)})
    assert kind in message
    assert key in message


@pytest.mark.parametrize("style", STYLES)
def test_a_file_that_matches_by_half_is_refused_with_its_first_odd_key(
    style: str, tmp_path: Path
) -> None:
    unknown = {"transformer_blocks.9.attn.to_q": PAIRS["transformer_blocks.0.attn.to_q"]}
    message = refuse(tmp_path, build_tensors(PAIRS | unknown, style))
    assert "the model has no layer for the key" in message
    assert "9" in message


def test_a_key_of_no_known_form_is_refused(tmp_path: Path) -> None:
    assert "not a LoRA key: readme" in refuse(tmp_path, {"readme": torch.ones(1)})


def test_a_missing_half_is_refused(tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "diffusers")
    del tensors["transformer.img_in.lora_B.weight"]
    message = refuse(tmp_path, tensors)
    assert "one half of an update is missing beside transformer.img_in.lora_A.weight" in message


def test_the_same_part_twice_is_refused(tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "diffusers") | build_tensors(
        {"img_in": PAIRS["img_in"]}, "comfy"
    )
    assert "two keys for the same part" in refuse(tmp_path, tensors)


def test_a_file_for_another_model_is_refused_with_both_shapes(tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "diffusers")
    tensors["transformer.img_in.lora_A.weight"] = torch.ones(4, 7)
    message = refuse(tmp_path, tensors)
    assert "[4, 7]" in message
    assert "[4, 6]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_non_finite_values_are_refused(value: float, key: str, tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "diffusers", alpha=2.0)
    name = f"transformer.img_in.{key}"
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[-1] = value
    assert f"non-finite values (NaN or infinity) in {name}" in refuse(tmp_path, tensors)


def test_a_rank_over_the_limit_is_refused(tmp_path: Path) -> None:
    tensors = build_tensors(draw_pairs(SHAPES, rank=MAX_RANK + 1), "diffusers")
    assert f"rank {MAX_RANK + 1} is not from 1 to {MAX_RANK}" in refuse(tmp_path, tensors)


def test_an_alpha_of_several_numbers_is_refused(tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "kohya") | {"lora_unet_img_in.alpha": torch.ones(2)}
    assert "alpha must be one number" in refuse(tmp_path, tensors)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "diffusers")
    tensors["transformer.img_in.lora_A.weight"] = torch.ones(4, 6, dtype=torch.int8)
    assert "the type I8 is not supported for LoRA weights" in refuse(tmp_path, tensors)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "no tensors" in refuse(tmp_path, {})


@pytest.mark.parametrize("body", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_file_that_is_not_safetensors_is_refused(body: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(body)
    with pytest.raises(AdapterRefused, match="not a readable safetensors file"):
        read_adapter(path, SHAPES)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch.save({"transformer.img_in.lora_A.weight": torch.ones(4, 6)}, path)
    with pytest.raises(AdapterRefused, match="pickles are never opened"):
        read_adapter(path, SHAPES)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", build_tensors(PAIRS, "bare"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterRefused, match="not a readable safetensors file"):
        read_adapter(path, SHAPES)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
        (b"\n<!doctype html>", "a web page"),
    ],
)
def test_what_stands_in_the_place_of_a_file_is_named(
    body: bytes, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(body)
    with pytest.raises(AdapterRefused, match=kind):
        read_adapter(path, SHAPES)


def test_one_shard_of_an_adapter_is_refused(tmp_path: Path) -> None:
    tensors = build_tensors(PAIRS, "peft")
    whole = write(tmp_path / "adapter_model-00001-of-00001.safetensors", tensors)
    assert read_adapter(whole, SHAPES)
    joined = write(tmp_path / "a-00001-of-00002.safetensors-joined.safetensors", tensors)
    assert read_adapter(joined, SHAPES)
    part = write(tmp_path / "adapter_model-00001-of-00002.safetensors", tensors)
    with pytest.raises(AdapterRefused, match="one of several shards"):
        read_adapter(part, SHAPES)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match=r"there is no file .*/b\.safetensors"):
        read_adapter(tmp_path / "b.safetensors", SHAPES)


def test_the_layers_of_a_configuration_are_those_of_the_model() -> None:
    transformer = build_tiny_pipeline().transformer
    assert layer_shapes(transformer.config) == {
        name: tuple(module.weight.shape)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
