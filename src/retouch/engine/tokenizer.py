"""The tokenizer and image processor of a checkpoint."""

import copy
from pathlib import Path
from typing import Any

from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from retouch.errors import InvalidRequest


class StillProcessor(Qwen2VLProcessor):
    """`Qwen2VLProcessor` for still images: the whole one needs torchvision for its video half."""

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


def load_processor(folder: Path) -> Any:
    """Load the processor in `folder`: the real one where torchvision is installed."""
    if is_torchvision_available():
        return Qwen2VLProcessor.from_pretrained(folder, local_files_only=True)
    return StillProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True),
        Qwen2Tokenizer.from_pretrained(folder, local_files_only=True),
    )


class Tokens:
    """Counts tokens and refuses control tokens, from any thread.

    A tokenizer in use is reconfigured by every call, and a second thread then fails with "Already
    borrowed" (huggingface/tokenizers#537); this copy is never configured again.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._encoder = copy.deepcopy(tokenizer.backend_tokenizer)
        self._encoder.no_truncation()
        self._encoder.no_padding()
        added = tokenizer.added_tokens_decoder.items()
        self._control = {number for number, token in added if token.content.startswith("<|")}

    def count(self, text: str) -> int:
        """Count the tokens in `text`."""
        return len(self._ids(text))

    def require_plain(self, **texts: str) -> None:
        """Refuse a text that holds a control token: it could close the template around it.

        Raises:
            InvalidRequest: with the names of those texts.
        """
        wrong = [
            name for name, text in texts.items() if self._control.intersection(self._ids(text))
        ]
        if wrong:
            raise InvalidRequest.for_fields(
                dict.fromkeys(wrong, "holds one of the model's control tokens")
            )

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids
