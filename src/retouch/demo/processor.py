"""A processor without torchvision, and pipelines saved as checkpoint folders."""

import json
from pathlib import Path
from typing import Any

from transformers import Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retouch.engine.checkpoint.files import INDEX_FILE
from retouch.engine.preset import PRESET_FILE, PresetFile


class StillProcessor(Qwen2VLProcessor):
    """`Qwen2VLProcessor` for still images: upstream's needs torchvision for videos."""

    def __init__(
        self, image_processor: Any, tokenizer: Any, chat_template: str | None = None
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.video_processor = None
        self.chat_template = chat_template


def build_processor(tokenizer: Any) -> StillProcessor:
    """Build a processor with the image sizes of Qwen2-VL."""
    return StillProcessor(Qwen2VLImageProcessorPil(), tokenizer)


def save_checkpoint(pipe: Any, folder: Path, *, preset: PresetFile) -> None:
    """Save a pipeline as a checkpoint folder that the engine and the stock library read."""
    pipe.save_pretrained(folder)
    index = folder / INDEX_FILE
    parts = json.loads(index.read_bytes()) | {"processor": ["transformers", "Qwen2VLProcessor"]}
    index.write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
    text = preset.model_dump_json(indent=2, exclude_defaults=True)
    (folder / PRESET_FILE).write_text(text + "\n", encoding="utf-8")
