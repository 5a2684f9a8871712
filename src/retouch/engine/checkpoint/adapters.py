"""Load the adapters and profiles of the settings for a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from retouch.editing.ports import ProfileInfo
from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.load import load_adapters, require_sha256
from retouch.engine.adapters.loaded import LoadedAdapters, NamedAdapter
from retouch.engine.adapters.read import Adapter, Shape, read_adapter
from retouch.engine.adapters.shapes import FULL_CONFIG, layer_shapes
from retouch.engine.adapters.source import hold_in_memory
from retouch.engine.checkpoint.family import family_of
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.weights_file import find_weights_file
from retouch.engine.preset import PresetFile
from retouch.engine.profiles import (
    BUILT_IN,
    FULL,
    LIGHTNING_ALPHA,
    LIGHTNING_LAYERS,
    LIGHTNING_RANK,
    Expected,
    ProfileFile,
    built_in_profile,
    read_profiles,
)
from retouch.errors import ModelError

_SHA256_DIGITS = 64


def load_all(
    settings: CheckpointSettings,
    preset: PresetFile,
    config: Mapping[str, Any],
    pipeline: str,
    *,
    weight_factor: Callable[[str], float],
) -> LoadedAdapters:
    """Load what `settings` name for a checkpoint of this pipeline class and transformer `config`.

    Raises:
        ModelError: a file is missing, has another hash, or cannot be applied in full; a profile is
            unknown or made for another model.
    """
    shapes = layer_shapes(config)
    adapters = [
        replace(one, fixed=one.always and settings.merge_adapters)
        for one in load_adapters(
            settings.adapters, shapes, partial(_open, "LORAS", settings=settings)
        )
    ]
    own = read_profiles(settings.profiles_file)
    profiles: list[tuple[ProfileInfo, NamedAdapter | None]] = []
    for name in settings.profiles:
        if name in {adapter.name for adapter in adapters}:
            raise ModelError(f"PROFILES: {name} is the name of an adapter in LORAS too")
        try:
            profiles.append(_load_profile(name, own, settings, preset, config, pipeline, shapes))
        except (AdapterRefused, ModelError) as error:
            reason = str(error).removeprefix("PROFILES: ")
            raise ModelError(f"PROFILES: {name}: {reason}") from error
    return LoadedAdapters(
        adapters, shapes, weight_factor, profiles, url_bytes=settings.lora_url_bytes
    )


def _load_profile(
    name: str,
    own: Mapping[str, ProfileFile],
    settings: CheckpointSettings,
    preset: PresetFile,
    config: Mapping[str, Any],
    pipeline: str,
    shapes: Mapping[str, Shape],
) -> tuple[ProfileInfo, NamedAdapter | None]:
    if name == FULL:
        return ProfileInfo(FULL, preset.steps, preset.guidance_scale, is_fixed=False), None
    family = family_of(pipeline, config)
    expected = None
    if name in own:
        profile = own[name]
    elif name not in BUILT_IN:
        known = ", ".join((FULL, *BUILT_IN, *own))
        raise ModelError(f"there is no such profile; there are: {known}")
    elif any(config[key] != value for key, value in FULL_CONFIG.items()):
        raise ModelError("it is for Qwen-Image-Edit, 2509 and 2511, not for what is loaded")
    else:
        profile, expected = built_in_profile(name, family)
    if profile.family not in {"", family}:
        raise ModelError(f"it is for {profile.family}, and the model is {family}")
    named = None
    if profile.file:
        with _open("PROFILES", profile.file, settings=settings) as path:
            adapter = require_sha256(read_adapter(path, shapes), profile.sha256)
            if expected:
                _require_lightning(adapter, path, expected)
        named = NamedAdapter(name, adapter, profile.scale, fixed=len(settings.profiles) == 1)
    return ProfileInfo(
        name,
        profile.steps,
        profile.guidance_scale,
        shift=profile.shift,
        adapter=named.info if named else None,
    ), named


def _require_lightning(adapter: Adapter, path: Path, expected: Expected) -> None:
    """Check a built-in profile's file against what is known of it.

    Raises:
        AdapterRefused: it is another file.
    """
    blob = path.resolve().name  # in a hub cache the hub's own SHA-256 of the file
    ranks = {layer.rank for layer in adapter.layers.values()}
    alphas = {layer.alpha for layer in adapter.layers.values()}
    found = (len(adapter.layers), ranks, alphas)
    if found != (LIGHTNING_LAYERS, {LIGHTNING_RANK}, {LIGHTNING_ALPHA}):
        raise AdapterRefused("the file is not the published one: its layers, rank or alpha differ")
    if expected.size_bytes and path.stat().st_size != expected.size_bytes:
        raise AdapterRefused(f"the file has not the published {expected.size_bytes} bytes")
    if expected.sha256_starts and not adapter.sha256.startswith(expected.sha256_starts):
        raise AdapterRefused(f"its SHA-256 is {adapter.sha256}, not the published one")
    if len(blob) == _SHA256_DIGITS and blob != adapter.sha256:
        raise AdapterRefused("its SHA-256 is not the one that the hub gives")


@contextmanager
def _open(setting: str, source: str, *, settings: CheckpointSettings) -> Iterator[Path]:
    """Make a LoRA file readable at a path.

    Raises:
        ModelError: there is no such file, or it cannot be downloaded.
    """
    if source.startswith("https://"):
        with hold_in_memory(settings.fetch(source)) as held:
            yield held
    else:
        cache = Path(settings.cache_dir) if settings.cache_dir else None
        yield find_weights_file(source, setting=setting, cache=cache, token=settings.hf_token)
