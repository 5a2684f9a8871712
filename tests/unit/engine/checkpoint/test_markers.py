import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models.tiny_folder import tiny_folder

from retouch.engine.checkpoint.build import read_parts
from retouch.errors import ModelError


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content))


def unmark(folder: Path) -> None:
    """Leave the image's marker in the vocabulary, but as text like any other."""
    marker = "<|image_pad|>"
    change(
        folder / "processor/tokenizer.json",
        lambda tokenizer: tokenizer.update(
            added_tokens=[one for one in tokenizer["added_tokens"] if one["content"] != marker]
        ),
    )
    change(
        folder / "processor/tokenizer_config.json",
        lambda config: config["extra_special_tokens"].remove(marker),
    )


def resize(name: str, value: int) -> Callable[[Path], None]:
    return lambda folder: change(
        folder / "processor/processor_config.json",
        lambda config: config["image_processor"].update({name: value}),
    )


def copy_tiny(tmp_path: Path) -> Path:
    ignore = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny_folder(), tmp_path / "model", ignore=ignore))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (unmark, r"the tokenizer in processor/ splits <\|image_pad\|> into several tokens"),
        (resize("patch_size", 16), "^files of different versions: patch_size is 16 in processor/"),
        (resize("merge_size", 1), "merge_size is 1 in processor/, and spatial_merge_size is 2"),
        (resize("temporal_patch_size", 1), "temporal_patch_size is 1 in processor/"),
    ],
)
def test_files_of_different_versions_are_refused_before_the_weights_are_read(
    tmp_path: Path, damage: Callable[[Path], None], fault: str
) -> None:
    damage(folder := copy_tiny(tmp_path))
    with pytest.raises(ModelError, match=fault):
        read_parts(folder)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "sdnq", "awq"])
def test_a_part_that_another_library_quantized_is_refused(
    tmp_path: Path, part: str, method: str
) -> None:
    config = {"quantization_config": {"quant_method": method}}
    change(copy_tiny(tmp_path) / part / "config.json", lambda found: found.update(config))
    with pytest.raises(ModelError, match=f"^{part}/ is quantized: name a checkpoint in 16"):
        read_parts(tmp_path / "model")
