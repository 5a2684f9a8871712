"""Files with a transformer's weights: every layout in the field is read right, or refused by its key."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from support.models.packed_files import (
    FP8,
    MARKER,
    SAFETENSORS,
    Packed,
    Weights,
    in_declared_fp8,
    in_marked_fp8,
    in_old_scaled_fp8,
    in_plain_fp8,
    save_gguf,
)

from retouch.engine.checkpoint import packed_file, safetensors_reader
from retouch.errors import ModelError

BLOCK = "transformer_blocks.0.attn.to_q"
Q = gguf.GGMLQuantizationType
NO_WEIGHT = torch.ones(2)


def make_weights() -> Weights:
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "img_in.weight": (64, 32),
        "img_in.bias": (64,),
        f"{BLOCK}.weight": (48, 64),
        f"{BLOCK}.bias": (48,),
        "transformer_blocks.0.attn.norm_q.weight": (8,),
        "transformer_blocks.1.img_mlp.net.2.weight": (64, 128),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


WEIGHTS = make_weights()


def load(path: Path, dtype: torch.dtype = torch.float32) -> Weights:
    """Read a file into weights of `dtype`, as the loader does."""
    entries = packed_file.read_transformer(path).entries
    named = {f"t.{name}": one for name, one in entries.items()}
    packed_file.require_used(named, {"t"}, {f"t.{name}" for name in WEIGHTS})
    wanted = {name: torch.full_like(one, torch.nan, dtype=dtype) for name, one in WEIGHTS.items()}
    safetensors_reader.read_weights(entries, wanted)
    return wanted


@pytest.mark.parametrize("layout", SAFETENSORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_safetensors_layout_gives_its_weights_but_for_rounding(
    tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    packed = SAFETENSORS[layout](WEIGHTS)

    found = load(packed.save(tmp_path / "w.safetensors"), dtype)

    for name, rounded in packed.rounded.items():
        assert torch.equal(found[name], rounded.to(dtype)), name


@pytest.mark.parametrize("kind", [Q.Q8_0, Q.Q5_1, Q.Q5_0, Q.Q4_1, Q.Q4_0, Q.BF16, Q.F16, Q.F32])
def test_a_gguf_file_gives_what_the_reference_reads(tmp_path: Path, kind: Q) -> None:
    rounded = save_gguf(WEIGHTS, tmp_path / "w.gguf", kind)

    found = load(tmp_path / "w.gguf")

    for name, one in rounded.items():
        torch.testing.assert_close(found[name], one, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_NL])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_file_of_k_quants_gives_what_the_reference_reads(
    tmp_path: Path, kind: Q, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "transformer_blocks.0.attn.to_k.weight"
    rounded = save_gguf({name: torch.ones(40, 512)}, tmp_path / "w.gguf", kind)
    entries = packed_file.read_transformer(tmp_path / "w.gguf").entries
    wanted = {name: torch.full((40, 512), torch.nan, dtype=dtype)}
    monkeypatch.setattr(safetensors_reader, "CHUNK_BYTES", 1 << 16)

    safetensors_reader.read_weights(entries, wanted)

    error = (wanted[name].float() - rounded[name]).norm() / rounded[name].norm()
    assert error < (1e-3 if dtype == torch.float16 else 1e-6)


@pytest.mark.parametrize("chunk_bytes", [256, 1 << 12, 1 << 24])
@pytest.mark.parametrize("layout", ["a scale a row", "plain fp8"])
def test_rows_are_read_right_in_chunks_of_any_size(
    tmp_path: Path, layout: str, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = SAFETENSORS[layout](WEIGHTS)
    path = packed.save(tmp_path / "w.safetensors")
    monkeypatch.setattr(safetensors_reader, "CHUNK_BYTES", chunk_bytes)

    found = load(path)

    assert all(torch.equal(found[name], packed.rounded[name].float()) for name in WEIGHTS)


def test_the_factor_of_a_packed_weight_is_applied(tmp_path: Path) -> None:
    packed = in_old_scaled_fp8(WEIGHTS)
    entries = packed_file.read_transformer(packed.save(tmp_path / "w.safetensors")).entries
    wanted = {f"{BLOCK}.weight": torch.empty(48, 64)}

    safetensors_reader.read_weights(entries, wanted, scale=lambda _: 1 / 512)

    assert torch.equal(wanted[f"{BLOCK}.weight"], packed.rounded[f"{BLOCK}.weight"] / 512)


@pytest.mark.parametrize("marker", [torch.zeros(0), torch.zeros(1, dtype=torch.int64)])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_marker_of_2511_is_seen(tmp_path: Path, marker: torch.Tensor, prefix: str) -> None:
    tensors = {prefix + name: one for name, one in WEIGHTS.items()}
    path = Packed({**tensors, prefix + MARKER: marker}, None, {}).save(tmp_path / "w.safetensors")

    assert packed_file.read_transformer(path).is_2511
    assert load(path).keys() == WEIGHTS.keys()


def test_the_marker_of_2511_is_seen_in_gguf(tmp_path: Path) -> None:
    save_gguf({**WEIGHTS, MARKER: torch.zeros(1)}, tmp_path / "a.gguf", Q.Q8_0)
    save_gguf(WEIGHTS, tmp_path / "b.gguf", Q.Q8_0)

    assert packed_file.read_transformer(tmp_path / "a.gguf").is_2511
    assert not packed_file.read_transformer(tmp_path / "b.gguf").is_2511


@pytest.mark.parametrize("key", [b"general.architecture", b"general.architecturE"])
def test_a_gguf_file_of_a_converter_that_names_no_architecture_is_read(
    key: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "w.gguf"
    save_gguf(WEIGHTS, path, Q.Q8_0, architecture="pig")
    path.write_bytes(path.read_bytes().replace(b"general.architecture", key))

    assert load(path).keys() == WEIGHTS.keys()


def test_arrays_in_a_gguf_files_metadata_are_passed_over(tmp_path: Path) -> None:
    arrays = {"a.words": ["one", "two"], "a.numbers": [1, 2, 3], "a.flag": True, "a.real": 0.5}
    rounded = save_gguf(WEIGHTS, tmp_path / "w.gguf", Q.Q8_0, **arrays)

    assert torch.equal(load(tmp_path / "w.gguf")["img_in.bias"], rounded["img_in.bias"])


# Mutations: what is done to a file that loads, and the key that the refusal names.


def without(name: str) -> Callable[[Packed], None]:
    return lambda packed: packed.tensors.__delitem__(name)


def having(name: str, tensor: torch.Tensor) -> Callable[[Packed], None]:
    return lambda packed: packed.tensors.update({name: tensor})


def mark(**form: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(form).encode())).byte()


def declare(text: str) -> Callable[[Packed], None]:
    def change(packed: Packed) -> None:
        assert packed.metadata
        packed.metadata["_quantization_metadata"] = text

    return change


def layer(name: str, **form: Any) -> str:
    return json.dumps({"layers": {name: form}})


SCALE, OLD = f"{BLOCK}.weight_scale", f"{BLOCK}.scale_weight"
NORM = "transformer_blocks.0.attn.norm_q.weight"
MUTATIONS: list[tuple[Callable[[Weights], Packed], Callable[[Packed], None], str]] = [
    # a scale is missing, or is none
    (in_old_scaled_fp8, without(OLD), SCALE),
    (in_marked_fp8, without(SCALE), SCALE),
    (in_declared_fp8, without(SCALE), SCALE),
    (in_old_scaled_fp8, having(OLD, torch.tensor([torch.nan])), OLD),
    (in_old_scaled_fp8, having(OLD, torch.tensor([torch.inf])), OLD),
    (in_marked_fp8, having(SCALE, torch.tensor(0.0)), SCALE),
    (in_marked_fp8, having(SCALE, torch.tensor(-1.0)), SCALE),
    (in_marked_fp8, having(SCALE, torch.ones(2)), SCALE),
    (in_marked_fp8, having(SCALE, torch.ones(64)), SCALE),
    (in_marked_fp8, having(SCALE, torch.ones(1, 48)), SCALE),
    (in_marked_fp8, having(SCALE, torch.ones(1, dtype=torch.int32)), SCALE),
    (in_plain_fp8, having(f"{NORM}_scale", torch.ones(8)), f"{NORM}_scale"),
    (in_marked_fp8, having(SCALE, torch.ones(48, 2).byte()), SCALE),
    (in_marked_fp8, having(SCALE, torch.tensor(1).byte()), SCALE),
    # a format is not known, or not what the weight has
    (in_marked_fp8, having(f"{BLOCK}.comfy_quant", mark(format="nvfp4")), BLOCK),
    (in_marked_fp8, having(f"{BLOCK}.comfy_quant", mark(format="mxfp8")), BLOCK),
    (
        in_marked_fp8,
        having(f"{BLOCK}.comfy_quant", mark(format="float8_e4m3fn", convrot=True)),
        BLOCK,
    ),
    (in_marked_fp8, having(f"{BLOCK}.comfy_quant", torch.ones(3).byte()), f"{BLOCK}.comfy_quant"),
    (in_marked_fp8, having("img_in.comfy_quant", mark(format="float8_e4m3fn")), "img_in.weight"),
    (in_declared_fp8, declare(layer(BLOCK, format="int8_tensorwise")), BLOCK),
    (in_declared_fp8, declare(layer("gone", format="float8_e4m3fn")), "gone.weight"),
    (in_declared_fp8, declare("{"), "_quantization_metadata"),
    (in_declared_fp8, declare('{"layers": 5}'), "_quantization_metadata"),
    # a key is foreign, missing or of another shape or type
    (in_plain_fp8, having("unknown.weight", NO_WEIGHT), "unknown.weight"),
    (in_plain_fp8, having("img_in.lora_A.weight", NO_WEIGHT), "img_in.lora_A.weight"),
    (in_marked_fp8, having(f"{BLOCK}.weight_scale_2", NO_WEIGHT), f"{BLOCK}.weight_scale_2"),
    (in_marked_fp8, having(f"{BLOCK}.pre_quant_scale", NO_WEIGHT), f"{BLOCK}.pre_quant_scale"),
    (in_declared_fp8, having("img_in.input_scale", torch.ones(1)), "img_in.input_scale"),
    (in_plain_fp8, having("vae.conv1.weight", NO_WEIGHT), "vae.conv1.weight"),
    (in_plain_fp8, having("diffusion_model.img_in.bias", torch.ones(64)), "img_in.bias"),
    (in_plain_fp8, without("img_in.bias"), "img_in.bias"),
    (in_plain_fp8, having("img_in.weight", torch.ones(32, 64)), "img_in.weight"),
    (in_plain_fp8, having("img_in.weight", torch.ones(64, 32).char()), "img_in.weight"),
    (
        in_plain_fp8,
        having("img_in.weight", torch.ones(64, 32).to(torch.float8_e5m2)),
        "img_in.weight",
    ),
    (in_plain_fp8, having("img_in.weight", torch.full((64, 32), torch.nan).to(FP8)), "img_in"),
]
"""Layout, change, and the key that the refusal must name."""


@pytest.mark.parametrize(
    ("layout", "change", "key"),
    MUTATIONS,
    ids=[f"{number}-{key}" for number, (_, _, key) in enumerate(MUTATIONS)],
)
def test_a_changed_safetensors_file_is_refused_with_its_key(
    tmp_path: Path,
    layout: Callable[[Weights], Packed],
    change: Callable[[Packed], None],
    key: str,
) -> None:
    packed = layout(WEIGHTS)
    change(packed)
    path = packed.save(tmp_path / "w.safetensors")

    with pytest.raises(ModelError) as refused:
        load(path)
    assert key in refused.value.message
    assert "\n" not in refused.value.message


def patch(find: bytes, after: int, form: str, value: Any) -> Callable[[bytearray], None]:
    """Overwrite a number that stands `after` bytes behind a text."""

    def change(data: bytearray) -> None:
        at = data.index(find) + len(find) + after
        data[at : at + struct.calcsize(form)] = struct.pack(form, value)

    return change


def cut(count: int) -> Callable[[bytearray], None]:
    return lambda data: data.__delitem__(slice(len(data) - count, None))


def grow(data: bytearray) -> None:
    at = data.index(b"img_in.bias")
    data[at : at + 11] = b"img_in.boas"


NAME = f"{BLOCK}.weight".encode()
GGUF_MUTATIONS: list[tuple[str, Callable[[bytearray], None], str]] = [
    ("a type that is not known", patch(NAME, 20, "<I", 16), f"{BLOCK}.weight is GGUF type 16"),
    ("a type from the future", patch(NAME, 20, "<I", 999), f"{BLOCK}.weight is GGUF type 999"),
    ("a row that is no whole blocks", patch(NAME, 4, "<Q", 63), f"{BLOCK}.weight"),
    ("another shape", patch(NAME, 4, "<Q", 32), f"{BLOCK}.weight"),
    ("a shape larger than the file", patch(NAME, 4, "<Q", 1 << 40), f"{BLOCK}.weight"),
    ("an offset after the end", patch(NAME, 24, "<Q", 1 << 40), f"{BLOCK}.weight"),
    ("five dimensions", patch(NAME, 0, "<I", 5), f"{BLOCK}.weight"),
    ("a foreign key", grow, "img_in.boas"),
    ("a name too long", patch(b"img_in.bias", -19, "<Q", 1 << 50), "too early"),
    ("a name that is not UTF-8", lambda d: d.__setitem__(d.index(b"img_in.bias"), 255), "utf-8"),
    ("a version from the future", patch(b"GGUF", 0, "<I", 9), "version 9"),
    ("more weights than there are", patch(b"GGUF", 4, "<Q", 99), "damaged or truncated"),
    ("the end is missing", cut(64), "transformer_blocks.1.img_mlp.net.2.weight"),
    ("most is missing", cut(20000), "damaged or truncated"),
    ("another architecture", lambda d: d.__setitem__(d.index(b"qwen_image"), 81), "Qwen_image"),
    ("a metadata type not known", patch(b"general.architecture", 0, "<I", 77), "type 77"),
]


@pytest.mark.parametrize(
    ("change", "key"),
    [(change, key) for _, change, key in GGUF_MUTATIONS],
    ids=[name for name, _, _ in GGUF_MUTATIONS],
)
def test_a_changed_gguf_file_is_refused_with_its_key(
    tmp_path: Path, change: Callable[[bytearray], None], key: str
) -> None:
    path = tmp_path / "w.gguf"
    save_gguf(WEIGHTS, path, Q.Q8_0)
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)

    with pytest.raises(ModelError) as refused:
        load(path)
    assert key in refused.value.message


def test_a_gguf_file_with_a_scale_that_is_nan_is_refused_with_its_key(tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    save_gguf(WEIGHTS, path, Q.Q8_0)
    entry = packed_file.read_transformer(path).entries[f"{BLOCK}.weight"]
    data = bytearray(path.read_bytes())
    data[entry.offset + 34 : entry.offset + 36] = b"\xff\x7f"
    path.write_bytes(data)

    with pytest.raises(ModelError, match=rf"{BLOCK}\.weight has values that are not finite"):
        load(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "damaged or truncated"),
        (b"GGUF", "damaged or truncated"),
        (b"PK\x03\x04 a pickle of torch", "damaged or truncated"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_what_is_neither_safetensors_nor_gguf_is_refused(
    tmp_path: Path, content: bytes, fault: str
) -> None:
    (tmp_path / "w.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=fault):
        load(tmp_path / "w.gguf")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.gguf cannot be read"):
        load(tmp_path / "gone.gguf")


def make_text_encoder(names: tuple[str, ...]) -> Weights:
    return {name: torch.linspace(-1, 1, 64 * 16).view(64, 16) for name in names}


def test_a_text_encoders_file_has_the_old_names_and_its_output_layer_is_not_used(
    tmp_path: Path,
) -> None:
    names = ("model.layers.0.mlp.up_proj.weight", "visual.blocks.0.mlp.up_proj.weight")
    tensors = make_text_encoder((*names, "lm_head.weight"))
    path = Packed(tensors, None, {}).save(tmp_path / "w.safetensors")

    assert set(packed_file.read_text_encoder(path)) == {
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.visual.blocks.0.mlp.up_proj.weight",
    }


def test_a_text_encoders_weight_by_both_its_names_is_refused(tmp_path: Path) -> None:
    new = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors = make_text_encoder(("model.layers.0.mlp.up_proj.weight", new))
    path = Packed(tensors, None, {}).save(tmp_path / "w.safetensors")

    with pytest.raises(ModelError, match=f"w.safetensors: {new} is there twice"):
        packed_file.read_text_encoder(path)


def test_a_text_encoder_in_gguf_is_refused(tmp_path: Path) -> None:
    save_gguf(WEIGHTS, tmp_path / "w.gguf", Q.Q8_0, architecture="qwen2vl")
    with pytest.raises(ModelError, match="no vision tower"):
        packed_file.read_text_encoder(tmp_path / "w.gguf")
