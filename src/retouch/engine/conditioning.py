"""What makes conditions of an instruction and an image: tokens, the processor, correct positions."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL.Image import Image
from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.utils.import_utils import is_torchvision_available

from retouch.errors import InvalidRequest, ModelError

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


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


@dataclass(frozen=True, slots=True)
class Family:
    """How one pipeline of the family asks its text encoder.

    `template` holds `{}` for the instruction; the first `hidden_tokens` of it the transformer never
    sees. The text encoder sees the image at no more than `vision_area_px`.
    """

    template: str
    hidden_tokens: int
    vision_area_px: int


def describe_family(pipeline: str) -> Family:
    """Describe the pipeline that a checkpoint's index names, in the words of diffusers."""
    module: Any = pipeline_qwenimage_edit
    picture, area_px = "", 1024 * 1024
    if pipeline == "QwenImageEditPlusPipeline":
        module = pipeline_qwenimage_edit_plus
        picture, area_px = f"Picture 1: {_IMAGE}", module.CONDITION_IMAGE_SIZE
    stock = getattr(module, pipeline)(*[None] * 6)  # its parts play no role in its template
    template = stock.prompt_template_encode.format(f"{picture}{{}}")
    return Family(template, stock.prompt_template_encode_start_idx, area_px)


def require_template(family: Family, tokenizer: Any) -> None:
    """Check that the template's prefix has as many tokens as are cut off.

    From a folder without its vocabulary transformers makes an empty tokenizer, and says nothing.

    Raises:
        ModelError: it has not, so the tokenizer is not this family's.
    """
    prefix = re.split(r"Picture 1: |<\|vision_start\|>|{}", family.template)[0]
    found, wanted = len(tokenizer(prefix)["input_ids"]), family.hidden_tokens
    if found != wanted:
        raise ModelError(f"the processor makes {found} tokens of the template's {wanted}")


def encode(
    text_encoder: Any,
    processor: Any,
    family: Family,
    *,
    image: Image,
    prompts: Sequence[str],
    device: torch.device,
) -> list[torch.Tensor]:
    """Encode `image` once and all `prompts` over it in one pass: (1, token, dim) for each.

    Texts are padded behind their end, where nothing looks in a causal model, so none needs a mask.
    Image tokens are placed in three dimensions, as the model was trained: transformers >= 5.3 does
    so only if told which they are, which diffusers 0.42.1 does not (huggingface/diffusers#14194).
    """
    model = text_encoder.model
    seen = processor.image_processor(images=[image], return_tensors="pt")
    grid = seen["image_grid_thw"]
    count = int(grid.prod()) // processor.image_processor.merge_size**2
    tokens = processor.tokenizer(
        [_fill(family.template, prompt, image_tokens=count) for prompt in prompts],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    is_image = tokens["input_ids"] == text_encoder.config.image_token_id
    positions, _ = model.get_rope_index(
        tokens["input_ids"],
        mm_token_type_ids=is_image.int(),
        image_grid_thw=grid.repeat(len(prompts), 1),
        attention_mask=tokens["attention_mask"],
    )
    vision = model.get_image_features(seen["pixel_values"].to(device), grid.to(device))
    table = model.language_model.embed_tokens  # it may stay on the host: a few of its rows are read
    words = table(tokens["input_ids"].to(table.weight.device)).to(device)
    pictures = vision.pooler_output[0].to(words.dtype).repeat(len(prompts), 1)
    hidden = model.language_model(
        inputs_embeds=words.masked_scatter(is_image[..., None].to(device), pictures),
        position_ids=positions.to(device),
        use_cache=False,
    ).last_hidden_state
    ends = tokens["attention_mask"].sum(1).tolist()
    return [row[None, family.hidden_tokens : end] for row, end in zip(hidden, ends, strict=True)]


def _fill(template: str, prompt: str, *, image_tokens: int) -> str:
    """Put the prompt into the template, and as many image tokens as the image has."""
    return template.replace("<|image_pad|>", "<|image_pad|>" * image_tokens).format(prompt)


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
            raise InvalidRequest(dict.fromkeys(wrong, "holds one of the model's control tokens"))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids
