"""Adapters and profiles of the settings, loaded for a tiny checkpoint."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models.adapters import draw
from support.models.lora_files import build_tensors, write
from support.models.tiny import PRESET, build_tiny_pipeline
from support.models.tiny_folder import tiny_folder

from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.checkpoint import adapters, hub
from retouch.engine.checkpoint.adapters import load_all
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.errors import ModelError
from retouch.settings.loras import LoraSetting

PAIRS = draw(only="attn")
CONFIG = dict(build_tiny_pipeline().transformer.config)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "a.safetensors", build_tensors(PAIRS, "kohya", alpha=2.0))


def load_with(pipeline: str = "QwenImageEditPipeline", **settings: Any) -> LoadedAdapters:
    return load_all(
        CheckpointSettings(**settings), PRESET, CONFIG, pipeline, weight_factor=lambda _: 1.0
    )


def describe(path: Path, **changes: Any) -> str:
    """Write a PROFILES_FILE with one profile, `fast`, over the LoRA file at `path`."""
    profile = {
        "steps": 2,
        "shift": 3.0,
        "file": str(path),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **changes,
    }
    file = path.with_name("profiles.json")
    file.write_text(json.dumps({"fast": {k: v for k, v in profile.items() if v is not None}}))
    return str(file)


def test_a_url_is_fetched_into_memory(path: Path) -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return path.read_bytes()

    sources = (LoraSetting("warm", "https://a.example/b?c"),)
    (one,) = load_with(adapters=sources, fetch=fetch).info
    assert asked == ["https://a.example/b?c"]
    assert one.layers == len(PAIRS)
    with pytest.raises(ModelError, match="LORAS: warm: URLs are not fetched here"):
        load_with(adapters=sources)


def test_a_hub_name_is_taken_from_the_hub(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def download_file(repository: str, name: str, **_: object) -> Path:
        asked.append((repository, name))
        return path

    monkeypatch.setattr(hub, "download_file", download_file)
    assert load_with(adapters=(LoraSetting("warm", "o/r/d/f.safetensors"),)).info
    assert asked == [("o/r", "d/f.safetensors")]
    asked.clear()
    load_with(adapters=(LoraSetting("warm", "o/r/d/adapter_model.safetensors"),))
    assert asked == [("o/r", f"d/adapter_{rest}") for rest in ("model.safetensors", "config.json")]


def test_a_checkpoint_is_loaded_with_its_adapters_and_profiles(path: Path) -> None:
    engine = load(
        CheckpointSettings(
            model_id=str(tiny_folder()),
            adapters=(LoraSetting("warm", str(path)),),
            profiles=("fast", "full"),
            profiles_file=describe(path),
        )
    )
    assert [one.name for one in engine.info.adapters] == ["warm"]
    fast, full = engine.info.profiles
    assert (fast.name, fast.steps, fast.guidance_scale, fast.shift) == ("fast", 2, 1.0, 3.0)
    assert fast.adapter
    assert (full.name, full.steps, full.is_fixed) == ("full", PRESET.steps, False)
    assert (engine.info.preset.steps, engine.info.preset.guidance_scale) == (2, 1.0)


@pytest.mark.parametrize("merge", [False, True])
def test_what_is_always_used_is_merged_where_no_request_may_leave_it_out(
    path: Path, merge: bool
) -> None:
    engine = load(
        CheckpointSettings(
            model_id=str(tiny_folder()),
            adapters=(
                LoraSetting("always", str(path), always=True),
                LoraSetting("named", str(path)),
            ),
            merge_adapters=merge,
            profiles=("fast",),
            profiles_file=describe(path),
        )
    )
    assert [one.merged for one in engine.info.adapters] == [merge, False]
    (fast,) = engine.info.profiles
    assert fast.adapter
    assert fast.adapter.merged


def test_a_profile_without_a_file_is_the_checkpoint_itself(path: Path) -> None:
    file = describe(path, file=None, sha256=None, guidance_scale=2.0)
    (fast,) = load_with(profiles=("fast",), profiles_file=file).profiles
    assert (fast.steps, fast.guidance_scale, fast.adapter) == (2, 2.0, None)


def test_a_file_of_profiles_may_begin_with_a_byte_order_mark(path: Path) -> None:
    file = Path(describe(path))
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load_with(profiles=("fast",), profiles_file=str(file)).profiles


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sha256": "0" * 64}, "PROFILES: fast: the file's SHA-256 is"),
        ({"sha256": None}, "PROFILES_FILE: fast: give the file's sha256"),
        ({"family": "2511"}, "PROFILES: fast: it is for 2511, and the model is edit"),
        ({"file": "none.safetensors"}, "PROFILES: fast: there is no file none.safetensors"),
        ({"steps": 0}, "PROFILES_FILE: fast.steps"),
        ({"sampler": "x"}, "PROFILES_FILE: fast.sampler"),
    ],
)
def test_a_wrong_profile_ends_the_start(path: Path, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ModelError, match=f"^{fault}"):
        load_with(profiles=("fast",), profiles_file=describe(path, **changes))


def test_an_unknown_profile_is_refused_with_the_list(path: Path) -> None:
    with pytest.raises(ModelError, match="there are: full, lightning-8, lightning-4, fast"):
        load_with(profiles=("slow",), profiles_file=describe(path))
    with pytest.raises(ModelError, match="PROFILES_FILE cannot be read"):
        load_with(profiles_file=str(path.with_name("none.json")))


def test_a_name_is_either_a_profiles_or_an_adapters(path: Path) -> None:
    sources = (LoraSetting("fast", str(path)),)
    with pytest.raises(ModelError, match="fast is the name of an adapter in LORAS too"):
        load_with(adapters=sources, profiles=("fast",), profiles_file=describe(path))


def test_lightning_is_refused_for_another_model_before_it_is_downloaded() -> None:
    with pytest.raises(ModelError, match="lightning-8: it is for Qwen-Image-Edit, 2509 and 2511"):
        load_with(profiles=("lightning-8",))


@pytest.fixture
def lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LoadedAdapters]:
    """Load lightning-8 of 2511 from a file of a tiny model's shape that takes its place."""

    def load_file(
        *, rank: int = 64, alpha: float = 8.0, only: str = "", blob: str = "", **known: Any
    ) -> LoadedAdapters:
        names = {
            name: pair for name, pair in draw(rank=rank, only=only).items() if "_mod" not in name
        }
        inside = {name: pair for name, pair in names.items() if "transformer_blocks" in name}
        file = write(tmp_path / "f.safetensors", build_tensors(inside, "lightning", alpha=alpha))
        if blob:
            file = file.rename(tmp_path / blob)
        monkeypatch.setattr(adapters, "FULL_CONFIG", {"num_layers": 2})
        monkeypatch.setattr(adapters, "LIGHTNING_LAYERS", 24)
        monkeypatch.setattr(hub, "download_file", lambda *_, **__: file)
        profile, _ = adapters.built_in_profile("lightning-8", "2511")
        expected = adapters.Expected(**known)
        monkeypatch.setattr(adapters, "built_in_profile", lambda *_: (profile, expected))
        config = CONFIG | {"zero_cond_t": True}
        settings = CheckpointSettings(profiles=("lightning-8",))
        return load_all(
            settings, PRESET, config, "QwenImageEditPlusPipeline", weight_factor=lambda _: 1.0
        )

    return load_file


def test_lightning_has_its_steps_shift_and_layers(
    lightning: Callable[..., LoadedAdapters],
) -> None:
    (profile,) = lightning().profiles
    assert (profile.steps, profile.guidance_scale, profile.shift) == (8, 1.0, 3.0)
    assert profile.adapter
    assert (profile.adapter.layers, profile.adapter.rank) == (24, 64)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"rank": 32}, "its layers, rank or alpha differ"),
        ({"alpha": 64.0}, "its layers, rank or alpha differ"),
        ({"only": "attn"}, "its layers, rank or alpha differ"),
        ({"size_bytes": 5}, "has not the published 5 bytes"),
        ({"sha256_starts": ("zz",)}, "not the published one"),
        ({"blob": "0" * 64}, "not the one that the hub gives"),
    ],
)
def test_another_file_than_the_published_one_is_refused(
    lightning: Callable[..., LoadedAdapters], changes: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ModelError, match=f"PROFILES: lightning-8: .*{fault}"):
        lightning(**changes)
