"""Encode prompts over images with Qwen2.5-VL: template, tokens, positions, hidden states."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL.Image import Image

from retouch.engine.tokenizer import Tokenizer
from retouch.engine.vision import VisionInputs, encode_vision, prepare_vision
from retouch.errors import ModelError

_IMAGE_PAD = "<|image_pad|>"
_PICTURE = f"Picture {{}}: <|vision_start|>{_IMAGE_PAD}<|vision_end|>"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The chat template that one pipeline of the family puts around a prompt.

    `text` holds `{}` for the prompt. The transformer does not see the first `prefix_tokens`. The
    text encoder sees each image at no more than `vision_area_px`. With `numbers_images` every image
    is introduced as `Picture n: `; without, the template itself has the place of one image.
    """

    text: str
    prefix_tokens: int
    vision_area_px: int
    numbers_images: bool

    @property
    def max_images(self) -> int:
        """How many images the pipeline's checkpoints were trained for."""
        return 3 if self.numbers_images else 1

    def fill(self, prompt: str, image_tokens: Sequence[int]) -> str:
        """Return the template with the prompt and with as many image tokens as each image has.

        >>> PromptTemplate("a {} b", 0, 0, numbers_images=True).fill("go", [2])
        'a Picture 1: <|vision_start|><|image_pad|><|image_pad|><|vision_end|>go b'
        """
        pictures = ""
        if self.numbers_images:
            pictures = "".join(_PICTURE.format(n + 1) for n in range(len(image_tokens)))
        first, *rest = self.text.replace("{}", f"{pictures}{{}}").split(_IMAGE_PAD)
        filled = zip(image_tokens, rest, strict=True)
        text = first + "".join(_IMAGE_PAD * count + after for count, after in filled)
        return text.format(prompt)


def describe_template(pipeline: str) -> PromptTemplate:
    """Return the template of the pipeline class that a checkpoint's index names, as in diffusers."""
    plus = pipeline == "QwenImageEditPlusPipeline"
    module: Any = pipeline_qwenimage_edit_plus if plus else pipeline_qwenimage_edit
    stock = getattr(module, pipeline)(*[None] * 6)  # the template does not depend on its parts
    return PromptTemplate(
        text=stock.prompt_template_encode,
        prefix_tokens=stock.prompt_template_encode_start_idx,
        vision_area_px=module.CONDITION_IMAGE_SIZE if plus else 1024 * 1024,
        numbers_images=plus,
    )


def require_template(template: PromptTemplate, tokenizer: Any) -> None:
    """Check that the template's prefix has as many tokens as are cut off.

    From a directory without a vocabulary, transformers silently builds an empty tokenizer.

    Raises:
        ModelError: the count differs, so the tokenizer is not this family's.
    """
    prefix = re.split(r"<\|vision_start\|>|{}", template.text)[0]
    found, expected = len(Tokenizer(tokenizer).encode(prefix)), template.prefix_tokens
    if found != expected:
        raise ModelError(
            f"the tokenizer makes {found} tokens of the template's prefix, not {expected}"
        )


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Inputs of the text encoder, on the host, for all guidance branches of one edit.

    `ids` is (branch, token), padded on the right; `lengths` has each branch's tokens without
    padding; `positions` is (3, branch, token): time, row, column. `key` names images and prompts.
    """

    ids: torch.Tensor
    lengths: tuple[int, ...]
    positions: torch.Tensor
    vision: VisionInputs
    key: bytes


class TextEncoder:
    """Qwen2.5-VL (`module`) as the pipelines of this family use it.

    `cache_bytes` is host memory for the latest embeddings: about 10 MB a prompt of the full model.
    """

    def __init__(
        self, module: Any, *, processor: Any, template: PromptTemplate, cache_bytes: int = 0
    ) -> None:
        self._module = module
        self._images = processor.image_processor
        self.tokenizer = Tokenizer(processor.tokenizer)
        self.template = template
        self._embeddings: LRUCache[bytes, list[torch.Tensor]] = LRUCache(
            cache_bytes, getsizeof=_count_bytes
        )

    def prepare(self, images: Sequence[Image], prompts: Sequence[str]) -> TextInputs:
        """Build the inputs for all prompts over all images. Host only, any thread.

        Texts are padded on the right: in a causal model no token looks there, so none needs a mask.
        Image tokens get positions in three dimensions, as the model was trained: transformers >= 5.3
        does so only if told which tokens they are, which diffusers 0.42.1 does not
        (huggingface/diffusers#14194).
        """
        patches = self._images(images=list(images), return_tensors="pt")
        grids = patches["image_grid_thw"]
        counts = (grids.prod(-1) // self._images.merge_size**2).tolist()
        rows = [self.tokenizer.encode(self.template.fill(text, counts)) for text in prompts]
        lengths = tuple(len(row) for row in rows)
        ids = torch.full((len(rows), max(lengths)), self.tokenizer.pad_id)
        mask = torch.zeros_like(ids)
        for branch, row in enumerate(rows):
            ids[branch, : len(row)] = torch.tensor(row)
            mask[branch, : len(row)] = 1
        positions, _ = self._module.model.get_rope_index(
            ids,
            mm_token_type_ids=(ids == self._module.config.image_token_id).int(),
            image_grid_thw=grids.repeat(len(rows), 1),
            attention_mask=mask,
        )
        vision = prepare_vision(patches["pixel_values"], grids, self._module.config.vision_config)
        digest = hashlib.sha256(
            repr([image.size for image in images]).encode() + ids.numpy().tobytes()
        )
        for image in images:
            digest.update(image.tobytes())
        return TextInputs(ids, lengths, positions, vision, digest.digest())

    def encode(self, inputs: TextInputs, device: torch.device) -> list[torch.Tensor]:
        """Return each branch's hidden states without the template's prefix: (1, token, dim).

        Those of the latest edits are kept on the host. All branches are kept or computed together: of
        another batch, half precision would give other bits, and the result depend on what was kept.
        """
        if (kept := self._embeddings.get(inputs.key)) is not None:
            return [hidden.to(device) for hidden in kept]
        computed = self._encode(inputs, device)
        if _count_bytes(computed) <= self._embeddings.maxsize:
            self._embeddings[inputs.key] = [hidden.cpu() for hidden in computed]
        return computed

    def _encode(self, inputs: TextInputs, device: torch.device) -> list[torch.Tensor]:
        """The vision tower sees each image once; all branches run in one pass."""
        model = self._module.model
        vision = encode_vision(model.visual, inputs.vision, device)
        embedding = model.language_model.embed_tokens  # may stay on the host: few rows are read
        embedded = embedding(inputs.ids.to(embedding.weight.device)).to(device)
        is_image = (inputs.ids == self._module.config.image_token_id)[..., None].to(device)
        # (image token, dim) -> (branch x image token, dim): scattered in the order of the rows
        pictures = vision.to(embedded.dtype).repeat(len(inputs.ids), 1)
        hidden = model.language_model(
            inputs_embeds=embedded.masked_scatter(is_image, pictures),
            position_ids=inputs.positions.to(device),
            use_cache=False,
        ).last_hidden_state
        first = self.template.prefix_tokens
        return [row[None, first:end] for row, end in zip(hidden, inputs.lengths, strict=True)]


def _count_bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
