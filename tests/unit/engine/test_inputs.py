"""The host's part of an edit."""

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from retouch.editing.ports import EditParams
from retouch.engine.inputs import prepare_inputs
from retouch.engine.preset import PresetFile

PARAMS = EditParams("MAKE it  Warmer \U0001f525", "Blur", 1, 2, 2.0, "Euler", 64, 64)


@pytest.mark.parametrize(
    ("preset", "prompts"),
    [
        (PresetFile(plain_prompts=True), ["make it warmer", "blur"]),
        (PresetFile(), [PARAMS.prompt, PARAMS.negative_prompt]),
    ],
)
def test_weights_that_know_plain_words_only_are_given_such(
    preset: PresetFile, prompts: list[str]
) -> None:
    seen: list[list[str]] = []
    text_encoder: Any = SimpleNamespace(
        template=SimpleNamespace(vision_area_px=64 * 64),
        prepare=lambda _, given: seen.append(given),
    )
    vae: Any = SimpleNamespace(token_px=16, channels=16)
    image = Image.new("RGB", (64, 64))
    prepare_inputs([image], PARAMS, None, text_encoder=text_encoder, vae=vae, preset=preset)
    assert seen == [prompts]
