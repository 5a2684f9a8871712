from pathlib import Path

import pytest
import torch
from support.models.lora_files import build_tensors, write

from retouch.engine.adapters.describe import describe_adapter
from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.shapes import FULL_CONFIG, layer_shapes

NAMES = ("transformer_blocks.0.attn.to_q", "transformer_blocks.7.img_mlp.net.2", "proj_out")
BASES = {"the toy": {**FULL_CONFIG, "num_layers": 2}, "the full model": FULL_CONFIG}


def test_a_file_is_described_in_full_for_the_base_that_it_fits(tmp_path: Path) -> None:
    shapes = layer_shapes(FULL_CONFIG)
    pairs = {
        name: (torch.ones(2, shapes[name][1]), torch.ones(shapes[name][0], 2)) for name in NAMES
    }
    path = write(tmp_path / "a.safetensors", build_tensors(pairs, "kohya", alpha=1.0))
    lines = describe_adapter(path, BASES)
    assert lines[0] == "style: lora_unet_X.lora_down"
    assert lines[1].startswith("sha256: ")
    assert lines[2:] == [
        "fits: the full model",
        "rank: 2",
        "alpha: 1",
        "layers: 3, in 2 of 60 blocks",
        "  1 attention",
        "  1 feed-forward",
        "  1 outside the blocks",
        "memory while not merged: 0.1 MiB in 16 bits",
    ]


def test_a_file_for_another_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"unet.down.0.lora_A.weight": torch.ones(2, 3)})
    with pytest.raises(AdapterRefused, match="no layer for the key"):
        describe_adapter(path, BASES)
