"""Load a checkpoint's tokenizer and image processor, and use the tokenizer from any thread."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from transformers import Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class Tokenizer:
    """Encode and count text. Safe in any thread.

    A transformers tokenizer is reconfigured by every call, and a second thread then fails with
    "Already borrowed" (huggingface/tokenizers#537). This copy of its backend is configured once.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = copy.deepcopy(tokenizer.backend_tokenizer)
        self._backend.no_truncation()
        self._backend.no_padding()
        self.pad_id: int = tokenizer.pad_token_id

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids


class Processor(NamedTuple):
    """A checkpoint's tokenizer and image processor."""

    tokenizer: Any
    image_processor: Any


def load_processor(folder: Path) -> Processor:
    """Load the processor in `folder`.

    The image processor is always the Pillow one, so that results do not depend on whether
    torchvision is installed.
    """
    return Processor(
        Qwen2Tokenizer.from_pretrained(folder, local_files_only=True),
        Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True),
    )
