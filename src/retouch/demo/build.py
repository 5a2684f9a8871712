"""The parts of the demo checkpoint: the real classes at small sizes, a tokenizer of its own, and its folder.

The layout of the folder is the one diffusers writes for any Qwen-Image-Edit checkpoint.
"""

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from retouch.demo import phrases
from retouch.demo.processor import StillProcessor, save_checkpoint
from retouch.engine import preset
from retouch.engine.checkpoint.files import WEIGHTED

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
Z = 16
"""Latent channels."""
TEXT_WIDTH = 128
_SPACE = "\u0120"  # how a byte-level BPE writes the space before a word
VISION_PIXELS = 56 * 56
"""What the text encoder gets to see of the picture: about four tokens. It learns nothing from them."""
_NOTE = (
    "this is the small demo model, not Qwen-Image-Edit: it knows warmer, cooler, brighter, darker, "
    "more and less contrast, black and white, sepia, invert, more and less saturation, film grain, "
    "blur, sharpen, vignette, and a red, green, blue or purple tint, each also "
    '"slightly" or "strongly" and two joined by "and"; the rest it mostly leaves alone'
)
PRESET = preset.PresetFile(
    name="retouch-demo",
    steps=2,
    guidance_scale=1.0,
    area_px=512 * 512,
    condition_area_px=512 * 512,
    condition_as_result=True,
    guided=False,
    notes=(_NOTE,),
)


@dataclass(frozen=True, slots=True)
class Size:
    """The widths that set the number of weights; the defaults are the shipped checkpoint's."""

    base: int = 24
    multiples: tuple[int, ...] = (1, 2, 3, 3)
    layers: int = 5
    heads: int = 8


@dataclass(slots=True)
class Parts:
    """The trained parts and the tokenizer."""

    vae: Any
    transformer: Any
    text_encoder: Any
    tokenizer: Any


def edit_template() -> str:
    """Give the chat template that the stock pipeline puts around an instruction."""
    pipeline: Any = QwenImageEditPipeline
    return str(pipeline(*[None] * 6).prompt_template_encode)


def _corpus() -> Iterable[str]:
    """Every word of the template and of the training sentences, so that each becomes one token."""
    yield from re.split("|".join(map(re.escape, SPECIALS)), edit_template())
    yield from phrases.vocabulary()


def train_tokenizer() -> Any:
    """Train a byte-level BPE with Qwen2's own splitting rule on the template and the phrases."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.decoder = normalizers.NFC(), decoders.ByteLevel()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=1, show_progress=False, initial_alphabet=alphabet
    )
    bpe.train_from_iterator(_corpus(), trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = dict(model["vocab"])
    for special in SPECIALS:
        vocab.setdefault(special, len(vocab))
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        extra_special_tokens=list(SPECIALS[1:]),
    )


def _text_config(tokenizer: Any) -> Qwen2_5_VLConfig:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [4, 6, 6]},
        "rope_theta": 1e6,
    }
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "fullatt_block_indexes": [0],
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def build(size: Size) -> Parts:
    """Build all parts with random weights from torch's default generator."""
    tokenizer = train_tokenizer()
    vae: Any = AutoencoderKLQwenImage(  # type: ignore[no-untyped-call]
        base_dim=size.base,
        z_dim=Z,
        dim_mult=list(size.multiples),
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * Z,
        latents_std=[1.0] * Z,
    )
    transformer: Any = QwenImageTransformer2DModel(  # type: ignore[no-untyped-call]
        patch_size=2,
        in_channels=4 * Z,
        out_channels=Z,
        num_layers=size.layers,
        attention_head_dim=32,
        num_attention_heads=size.heads,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12),
    )
    text_encoder: Any = Qwen2_5_VLForConditionalGeneration(_text_config(tokenizer))
    with torch.no_grad():  # the picture comes through the autoencoder: image tokens carry nothing
        text_encoder.model.visual.merger.mlp[-1].weight.zero_()
        text_encoder.model.visual.merger.mlp[-1].bias.zero_()
    return Parts(vae, transformer, text_encoder, tokenizer)


@torch.no_grad()
def share_embeddings(text_encoder: Any, tokenizer: Any) -> None:
    """Give a word at the start of a text, or with a capital, the embedding it has within one.

    The tokenizer has a token of its own for each of the three, and training hardly sees the first
    two: without this the shipped model did nothing when told "blur the photo".
    """
    vocab = tokenizer.get_vocab()
    rows = text_encoder.model.language_model.embed_tokens.weight
    for word, row in vocab.items():
        within = vocab.get(f"{_SPACE}{word[0].lower()}{word[1:]}")
        if len(word) > 1 and word.isalpha() and within is not None:
            rows[row] = rows[within]


def save(parts: Parts, folder: Path) -> None:
    """Write the checkpoint in fp16, in the layout of any Qwen-Image-Edit folder.

    The written text encoder has gone through `share_embeddings`; `parts` stay as they are.
    """
    edges = {"shortest_edge": VISION_PIXELS, "longest_edge": VISION_PIXELS}
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    pipeline: Any = QwenImageEditPipeline
    halves = {name: copy.deepcopy(getattr(parts, name)).half() for name in WEIGHTED}
    share_embeddings(halves["text_encoder"], parts.tokenizer)
    pipe = pipeline(
        **halves,
        scheduler=scheduler(shift=1.0, use_dynamic_shifting=False),
        tokenizer=parts.tokenizer,
        processor=StillProcessor(Qwen2VLImageProcessorPil(size=edges), parts.tokenizer),
    )
    save_checkpoint(pipe, folder, preset=PRESET)
