"""What a server says of itself at the start, whatever it says."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from retouch.editing.ports import EngineInfo
from retouch.errors import ModelError
from retouch.remote.describe import describe
from retouch.remote.server import Answer, Server
from retouch.schema import InfoDefaults, ServiceInfo

MODELS = Answer(200, b'{"data": [{"id": "a/model"}]}')


def build_info(**changes: Any) -> dict[str, Any]:
    """Return a retouch's `/info` as its schema has it in the examples; `defaults` are merged."""
    info = {name: one.examples[0] for name, one in ServiceInfo.model_fields.items() if one.examples}
    defaults = {
        name: one.examples[0] for name, one in InfoDefaults.model_fields.items() if one.examples
    }
    return info | changes | {"defaults": defaults | changes.get("defaults", {})}


async def read(info: Mapping[str, Any] | bytes) -> tuple[EngineInfo, bool]:
    body = info if isinstance(info, bytes) else json.dumps(info).encode()

    class Told(Server):
        async def get(self, path: str, *, max_bytes: int) -> Answer:
            assert len(body) <= max_bytes
            return MODELS if path == "/v1/models" else Answer(200, body)

    return await describe(Told.parse("http://engine.example"))


async def test_a_retouch_is_described_by_its_own_info() -> None:
    info, is_retouch = await read(build_info())
    assert is_retouch
    assert (info.model, info.preset.steps) == ("Qwen/Qwen-Image-Edit", 30)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_areas_px": []},
        {"max_areas_px": [-1]},
        {"max_areas_px": [10**12]},
        {"defaults": {"area_px": 0}},
        {"defaults": {"area_px": 10**15}},
        {"defaults": {"num_inference_steps": 0}},
        {"defaults": {"num_inference_steps": 10**9}},
        {"defaults": {"guidance_scale": float("nan")}},
        {"defaults": {"guidance_scale": -1.0}},
    ],
)
async def test_limits_and_defaults_that_no_edit_can_have_end_the_start(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(ModelError, match=r"^ENGINE_URL: the defaults or limits in its /info"):
        await read(build_info(**changes))


async def test_names_and_notes_are_printable_and_bounded() -> None:
    long = "a\n\x1b[2J" * 500
    info, _ = await read(build_info(model=long, dtype=long, notes=[long] * 100))
    assert len(info.model) <= 201
    assert info.model.isprintable()
    assert info.dtype.isprintable()
    assert len(info.notes) == 64
    assert all(note.isprintable() and len(note) <= 2001 for note in info.notes)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[" * 100_000, b"\xff\xfe", b"{}", b"[]", b"NaN"]
)
async def test_whatever_else_info_holds_is_another_kind_of_server(body: bytes) -> None:
    info, is_retouch = await read(body)
    assert (info.model, is_retouch) == ("a/model", False)
