"""Builds the components of the demo checkpoint and writes its directory.

The components are Qwen-Image-Edit's classes at small sizes, with a tokenizer of their own. The layout is
the one that diffusers writes for any Qwen-Image-Edit checkpoint.
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
_SPACE = "\u0120"  # the byte-level BPE's character for the space before a word
VISION_PIXELS = 56 * 56
"""Image size for the text encoder: about four tokens, from which it learns nothing."""
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
    plain_prompts=True,
    guided=False,
    notes=(_NOTE,),
    examples=(
        "make it warmer and add a subtle vignette",
        "convert to black and white",
        "make it sepia and add a vignette",
        "make it cooler",
        "invert the colors",
        "strongly increase the contrast",
    ),
)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The dimensions that set the number of weights; the defaults are the shipped checkpoint's."""

    base: int = 24
    multiples: tuple[int, ...] = (1, 2, 3, 3)
    layers: int = 5
    heads: int = 8


@dataclass(slots=True)
class Components:
    """The trained networks and the tokenizer."""

    vae: Any
    transformer: Any
    text_encoder: Any
    tokenizer: Any


def prompt_template() -> str:
    """Return the chat template that the stock pipeline puts around an instruction."""
    pipeline: Any = QwenImageEditPipeline
    return str(pipeline(*[None] * 6).prompt_template_encode)


def _corpus() -> Iterable[str]:
    """Yield every word of the template and the training instructions, so that each becomes a token."""
    yield from re.split("|".join(map(re.escape, SPECIALS)), prompt_template())
    yield from phrases.vocabulary()


def train_tokenizer() -> Any:
    """Train a byte-level BPE on the template and the training vocabulary, split as Qwen2 splits."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.decoder = normalizers.NFC(), decoders.ByteLevel()
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
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


def load_components(folder: Path) -> Components:
    """Load the components of a checkpoint in fp32, to train them further."""
    vae, transformer, text_encoder = (
        model.from_pretrained(folder / name, torch_dtype=torch.float32)
        for name, model in (
            ("vae", AutoencoderKLQwenImage),
            ("transformer", QwenImageTransformer2DModel),
            ("text_encoder", Qwen2_5_VLForConditionalGeneration),
        )
    )
    return Components(
        vae, transformer, text_encoder, Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    )


def build(size: ModelSize) -> Components:
    """Build all networks with random weights from torch's default generator."""
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
    with torch.no_grad():  # the image enters through the autoencoder only
        text_encoder.model.visual.merger.mlp[-1].weight.zero_()
        text_encoder.model.visual.merger.mlp[-1].bias.zero_()
    return Components(vae, transformer, text_encoder, tokenizer)


@torch.no_grad()
def share_embeddings(text_encoder: Any, tokenizer: Any) -> None:
    """Copy the embedding of a word within a text to the word at its start and with a capital.

    The tokenizer has a separate token for each of the three, and training rarely sees the last two.
    Without this the model ignores "blur the photo".
    """
    vocab = tokenizer.get_vocab()
    rows = text_encoder.model.language_model.embed_tokens.weight
    for word, row in vocab.items():
        within = vocab.get(f"{_SPACE}{word[0].lower()}{word[1:]}")
        if len(word) > 1 and word.isalpha() and within is not None:
            rows[row] = rows[within]


def save(components: Components, folder: Path) -> None:
    """Write the checkpoint in fp16, in the layout of any Qwen-Image-Edit checkpoint.

    `share_embeddings` is applied to the written text encoder; `components` are not changed.
    """
    edges = {"shortest_edge": VISION_PIXELS, "longest_edge": VISION_PIXELS}
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    pipeline: Any = QwenImageEditPipeline
    halves = {name: copy.deepcopy(getattr(components, name)).half() for name in WEIGHTED}
    share_embeddings(halves["text_encoder"], components.tokenizer)
    pipe = pipeline(
        **halves,
        scheduler=scheduler(shift=1.0, use_dynamic_shifting=False),
        tokenizer=components.tokenizer,
        processor=StillProcessor(Qwen2VLImageProcessorPil(size=edges), components.tokenizer),
    )
    save_checkpoint(pipe, folder, preset=PRESET)
