"""Checkpoints saved and loaded for real: bit-equal, or refused in one line."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from support.models.checkpoints import make_folder
from support.models.reference_edits import edit
from support.models.tiny import PRESET, build_tiny, build_tiny_pipeline
from support.servers.model_hub import Hub

from retouch.demo.processor import save_checkpoint
from retouch.editing.ports import AdapterChoice
from retouch.engine import preset
from retouch.engine.checkpoint import build, entries, find, load, safetensors_reader
from retouch.engine.checkpoint.files import WEIGHTED, compute_revision
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.packed_file import ZERO_CONDITION
from retouch.engine.checkpoint.weights_file import find_weights_file
from retouch.engine.memory.weights import Weights
from retouch.errors import ModelError

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_checkpoint(build_tiny_pipeline(), path, preset=PRESET)
    return path


@pytest.mark.parametrize("plus", [False, True])
def test_a_saved_engine_loads_bit_equal(tmp_path: Path, plus: bool) -> None:
    built = build_tiny(plus=plus)
    save_checkpoint(build_tiny_pipeline(plus=plus), tmp_path, preset=PRESET)
    parts: list[str] = []
    settings = CheckpointSettings(model_id=str(tmp_path))
    loaded = load.load(settings, progress=parts.append)
    assert parts == ["processor", "weights"]
    revision, profiles = compute_revision(tmp_path), loaded.info.profiles
    assert [profile.name for profile in profiles] == ["full"]
    known = {"profiles": profiles, "adapter_choices": (AdapterChoice("full"),)}
    assert loaded.info == replace(built.info, revision=revision, **known)
    assert edit(loaded) == edit(built)


def test_loading_tells_how_far_it_is_and_lets_go_of_what_it_took(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CheckpointSettings(model_id=str(folder))
    reported, called = list[str](), list[str]()
    monkeypatch.setattr(safetensors_reader, "REPORT_EVERY_S", 0.0)
    for name in ("pin", "release", "close"):
        monkeypatch.setattr(Weights, name, lambda _, name=name: called.append(name))
    load.load(settings, progress=reported.append)
    assert called == ["pin", "release"]
    assert reported[:2] == ["processor", "weights"]
    assert re.fullmatch(r"weights: (\d+) of \1 MiB read", reported[-1])

    def fail(_: Weights) -> None:
        raise ModelError("0.1 GiB of host memory could not be pinned")

    monkeypatch.setattr(Weights, "pin", fail)
    called.clear()
    with pytest.raises(ModelError, match="could not be pinned"):
        load.load(settings)
    assert called == ["close"]


def test_the_modulation_stays_as_its_file_has_it_and_gives_the_same(tmp_path: Path) -> None:
    pipe = build_tiny_pipeline()
    pipe.transformer.to(torch.bfloat16)
    save_checkpoint(pipe, tmp_path, preset=PRESET)
    settings = CheckpointSettings(model_id=str(tmp_path))
    kept, converted = load.load(settings), load.load(settings)
    converted.weights.transformer.float()
    block = kept.weights.transformer.transformer_blocks[0]
    assert block.img_mod[1].weight.dtype == block.txt_mod[1].bias.dtype == torch.bfloat16
    assert block.attn.to_q.weight.dtype == torch.float32
    assert edit(kept) == edit(converted)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float16),
    ],
)
def test_the_modulation_has_the_type_of_its_file_where_that_is_no_larger(
    tmp_path: Path, stored: torch.dtype, kept: torch.dtype
) -> None:
    pipe = build_tiny_pipeline()
    pipe.transformer.to(stored)
    save_checkpoint(pipe, tmp_path, preset=PRESET)
    transformer = build_tiny_pipeline().transformer.half()
    build.keep_modulation(transformer, entries.read_headers(tmp_path))
    block = transformer.transformer_blocks[1]
    assert {weight.dtype for weight in block.txt_mod.parameters()} == {kept}
    assert block.attn.to_q.weight.dtype == torch.float16


def test_the_stock_library_loads_the_same_weights(folder: Path) -> None:
    stock = DiffusionPipeline.from_pretrained(folder, processor=build_tiny_pipeline().processor)
    ours = load.load(CheckpointSettings(model_id=str(folder))).weights
    for part in WEIGHTED:
        wanted = getattr(stock, part).state_dict()
        found = getattr(ours, part).state_dict()
        assert found.keys() == wanted.keys() - {"lm_head.weight"}
        assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_a_checkpoint_without_a_preset_is_named_by_its_folder_and_runs_as_the_full_model(
    folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in folder.iterdir():
        if part.name != preset.PRESET_FILE:
            (bare / part.name).symlink_to(part)
    engine = load.load(CheckpointSettings(model_id=str(bare)))
    assert engine.info.model == "bare"
    assert (engine.info.preset.steps, engine.info.preset.area_px) == (30, 1024 * 1024)
    assert engine.info.dtype == "float32"


def damage_weights(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_in.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def cut_weights(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_config(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(path.read_text().replace('"num_layers": 2', '"num_layers": 3'))


def damage_preset(folder: Path) -> None:
    (folder / preset.PRESET_FILE).write_text('{"steps": 0}')


def change_image_token(folder: Path) -> None:
    """Files of two versions mixed: the text encoder would never see the image."""
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_bytes())
    config["image_token_id"] += 300
    path.write_text(json.dumps(config))


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    for token in tokenizer["added_tokens"]:
        token["id"] += token["content"] == "<|vision_end|>"
    path.write_text(json.dumps(tokenizer))


def cut_tokenizer(folder: Path) -> None:
    path = folder / "processor" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"model": {}}))


def damage_number(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"base_dim": "wide"}))


def change_transformer(folder: Path, **changes: Any) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def mark_as_2511(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), ZERO_CONDITION: torch.zeros(0)}, path)


def test_the_mark_of_2511_is_of_use_to_that_model_only(tmp_path: Path) -> None:
    save_checkpoint(build_tiny_pipeline(plus=True), tmp_path, preset=PRESET)
    mark_as_2511(tmp_path)
    change_transformer(tmp_path, zero_cond_t=True)
    assert load.load(CheckpointSettings(model_id=str(tmp_path)))


def drop_vocabulary(folder: Path) -> None:
    (folder / "processor" / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (
            damage_weights,
            "1 weights are missing or have the wrong shape, such as vae.decoder.conv_in.weight",
        ),
        (cut_weights, "transformer/diffusion_pytorch_model.safetensors is damaged or truncated"),
        (damage_config, r"32 weights are missing .* transformer\.transformer_blocks\.2"),
        (
            lambda folder: change_transformer(folder, num_layers=1),
            r"transformer/.*: the model has no weight transformer_blocks\.1\.",
        ),
        (mark_as_2511, f"transformer/.*: the model has no weight {ZERO_CONDITION}"),
        (damage_preset, "retouch_preset.json: steps: "),
        (
            change_image_token,
            r"<\|image_pad\|> is \d+ in processor/ and \d+ in text_encoder/config",
        ),
        (change_tokenizer, r"<\|vision_end\|> is \d+ in processor/ and \d+ in tokenizer/"),
        (cut_tokenizer, "processor/ cannot be used: "),
        (damage_number, "vae/config.json cannot be used: "),
        (drop_vocabulary, "the tokenizer makes .* tokens of the template's prefix, not 64"),
    ],
)
def test_a_damaged_checkpoint_is_never_half_loaded(tmp_path: Path, damage: Any, fault: str) -> None:
    save_checkpoint(build_tiny_pipeline(), tmp_path, preset=PRESET)
    damage(tmp_path)
    with pytest.raises(ModelError, match=fault) as caught:
        load.load(CheckpointSettings(model_id=str(tmp_path)))
    assert "\n" not in caught.value.message
    assert str(tmp_path) in caught.value.message


def test_a_hub_id_without_a_network_fails_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = CheckpointSettings(model_id="org/name", cache_dir=str(tmp_path))
    with pytest.raises(ModelError, match="cannot load org/name: ") as caught:
        load.load(settings)
    assert "not cached completely, and the download failed (" in caught.value.message
    assert "\n" not in caught.value.message


def test_the_hubs_answers_are_explained_and_its_files_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "vae" / "model.fp16.safetensors").write_bytes(b"not needed")
    with Hub(folder, model_id="org/name", token="secret") as server:  # noqa: S106 - made up
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        settings = CheckpointSettings(cache_dir=str(tmp_path / "hub"))
        with pytest.raises(ModelError, match="check MODEL_ID"):
            find.find("org/name", settings)
        settings = CheckpointSettings(cache_dir=str(tmp_path / "hub"), hf_token="secret")  # noqa: S106
        reported: list[str] = []
        snapshot = find.find("org/name", settings, progress=reported.append)
        downloads = server.downloads
        assert find.find("org/name", settings) == snapshot
        assert server.downloads == downloads
    assert reported[0].startswith("downloading org/name, 0.0 GiB, to ")
    assert not (snapshot / "vae" / "model.fp16.safetensors").exists()
    assert json.loads((snapshot / "model_index.json").read_bytes())


def test_one_file_of_the_hub_is_downloaded_once_and_a_missing_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "w-Q4_K_M.gguf").write_bytes(b"weights")
    with Hub(folder, model_id="org/name", token="secret") as server:  # noqa: S106 - made up
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)

        def fetch(name: str) -> Path:
            return find_weights_file(
                f"org/name/{name}",
                setting="TRANSFORMER_FILE",
                cache=tmp_path / "hub",
                token="secret",  # noqa: S106 - made up
            )

        path = fetch("w-Q4_K_M.gguf")
        assert path.read_bytes() == b"weights"
        assert fetch("w-Q4_K_M.gguf@main") == path
        assert server.downloads == 1
        with pytest.raises(ModelError, match="no such file: check TRANSFORMER_FILE"):
            fetch("gone.gguf")
