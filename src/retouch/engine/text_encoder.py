"""What makes conditions of an instruction and an image: tokens, the processor, correct positions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL.Image import Image

from retouch.errors import ModelError

_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """How one pipeline of the family asks its text encoder.

    `template` holds `{}` for the instruction; the first `hidden_tokens` of it the transformer never
    sees. The text encoder sees the image at no more than `vision_area_px`.
    """

    template: str
    hidden_tokens: int
    vision_area_px: int


def describe_template(pipeline: str) -> PromptTemplate:
    """Describe the pipeline that a checkpoint's index names, in the words of diffusers."""
    module: Any = pipeline_qwenimage_edit
    picture, area_px = "", 1024 * 1024
    if pipeline == "QwenImageEditPlusPipeline":
        module = pipeline_qwenimage_edit_plus
        picture, area_px = f"Picture 1: {_IMAGE}", module.CONDITION_IMAGE_SIZE
    stock = getattr(module, pipeline)(*[None] * 6)  # its parts play no role in its template
    template = stock.prompt_template_encode.format(f"{picture}{{}}")
    return PromptTemplate(template, stock.prompt_template_encode_start_idx, area_px)


def require_template(family: PromptTemplate, tokenizer: Any) -> None:
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
    family: PromptTemplate,
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
