"""Check that tokenizer, image processor and text encoder agree on markers and on patches of images.

A mix of files from two versions loads without an error, but the text encoder never sees the image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retouch.engine.checkpoint.files import read_json
from retouch.engine.tokenizer import Tokenizer
from retouch.errors import ModelError

CONFIG_IDS = {
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
}
MARKERS = ("<|im_start|>", "<|im_end|>", *CONFIG_IDS)
PATCH_SIZES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
"""What an image processor's sizes are called in the configuration of the vision tower."""


def require_markers(folder: Path, tokenizer: Any, config: Any) -> None:
    """Compare the processor's `tokenizer` with the text encoder's `config` and with `tokenizer/`.

    Raises:
        ModelError: names the first marker whose ids differ.
    """
    vocabulary = tokenizer.get_vocab()
    ids = {marker: vocabulary.get(marker) for marker in MARKERS}
    of_config = {marker: getattr(config, name, None) for marker, name in CONFIG_IDS.items()}
    _require_equal(ids, of_config, "text_encoder/config.json")
    _require_equal(ids, read_added_tokens(folder / "tokenizer"), "tokenizer/")
    if missing := [marker for marker, number in ids.items() if number is None]:
        raise ModelError(f"the tokenizer in processor/ does not know {missing[0]}")
    backend = Tokenizer(tokenizer)
    if split := [marker for marker in MARKERS if backend.encode(marker) != [ids[marker]]]:
        raise ModelError(f"the tokenizer in processor/ splits {split[0]} into several tokens")


def require_patches(image_processor: Any, vision_config: Any) -> None:
    """Compare the patches that `image_processor` makes with those of the vision tower.

    Raises:
        ModelError: names the first size that differs.
    """
    for name, other in PATCH_SIZES.items():
        found, expected = getattr(image_processor, name), getattr(vision_config, other)
        if found != expected:
            raise ModelError(
                f"files of different versions: {name} is {found} in processor/, and {other} is {expected} in "
                "text_encoder/config.json; copy all files of one version"
            )


def _require_equal(
    ids: Mapping[str, int | None], others: Mapping[str, int | None], where: str
) -> None:
    for marker in MARKERS:
        other = others.get(marker)
        if other is not None and other != ids[marker]:
            raise ModelError(
                f"files of different versions: {marker} is {ids[marker]} in processor/ and {other} in "
                f"{where}; copy all files of one version"
            )


def read_added_tokens(folder: Path) -> dict[str, int | None]:
    """Return the ids of the added tokens in a tokenizer's folder, from whichever file has them."""
    found: dict[str, int | None] = {}
    if (path := folder / "added_tokens.json").exists():
        found |= read_json(path)
    if (path := folder / "tokenizer_config.json").exists():
        decoder = read_json(path).get("added_tokens_decoder", {})
        found |= {entry["content"]: int(number) for number, entry in decoder.items()}
    if (path := folder / "tokenizer.json").exists():
        found |= {entry["content"]: entry["id"] for entry in read_json(path)["added_tokens"]}
    return found
