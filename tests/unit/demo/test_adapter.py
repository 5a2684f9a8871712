"""The LoRA adapter that ships with the demo model, and its instructions."""

import random

import torch
from support.demo.album import photo

from retouch import demo
from retouch.demo import edits
from retouch.demo.edits import Change
from retouch.demo.train_adapter import NAME, draw_instruction
from retouch.engine.adapters.read import read_adapter
from retouch.engine.adapters.shapes import layer_shapes
from retouch.engine.checkpoint.files import read_json


def test_the_shipped_file_fits_the_demo_model_and_is_small() -> None:
    config = read_json(demo.CHECKPOINT_DIR / "transformer" / "config.json")
    path = demo.ADAPTERS_DIR / f"{NAME}.safetensors"
    adapter = read_adapter(path, layer_shapes(config))
    assert (len(adapter.layers), adapter.rank) == (60, 8)
    assert path.stat().st_size < 1_000_000


def test_a_duotone_has_two_colours_and_what_lies_between() -> None:
    image = edits.apply(photo(), [Change(NAME)])
    dark, light = torch.tensor([0.10, 0.06, 0.38]), torch.tensor([1.0, 0.86, 0.50])
    share = ((image[0] - dark[:, None, None]) / (light - dark)[:, None, None]).clamp(0, 1)
    assert float((share[0] - share[1]).abs().max()) < 1e-4
    assert float((share[0] - share[2]).abs().max()) < 1e-4


def test_most_instructions_ask_for_the_edit_and_some_for_what_the_model_knows() -> None:
    rng = random.Random(0)  # noqa: S311
    drawn = [draw_instruction(rng) for _ in range(300)]
    asking = [text for text, changes in drawn if changes == (Change(NAME),)]
    assert 150 < len(asking) < 270
    assert all("duotone" in text.lower() for text in asking)
