"""The word embeddings of a written checkpoint, and of the shipped one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from retouch.demo import CHECKPOINT_DIR, build

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def components() -> build.Components:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build.build(build.ModelSize(base=8, layers=1, heads=6))


def embeddings(text_encoder: Any) -> torch.Tensor:
    weight: torch.Tensor = text_encoder.model.language_model.embed_tokens.weight
    return weight.detach().clone().float()


def read(folder: Path) -> tuple[Any, Any]:
    encoder: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder")
    return encoder, Qwen2Tokenizer.from_pretrained(folder / "tokenizer")


def test_a_written_checkpoint_embeds_a_word_alike_at_every_position(
    components: build.Components, tmp_path: Path
) -> None:
    build.save(components, tmp_path)
    encoder, tokenizer = read(tmp_path)
    trained, written = embeddings(components.text_encoder).half().float(), embeddings(encoder)

    def rows(word: str) -> list[int]:
        ids = [tokenizer(text)["input_ids"] for text in (f" {word}", word, word.capitalize())]
        assert [len(row) for row in ids] == [1, 1, 1]
        return [row[0] for row in ids]

    for within, start, capital in map(rows, ("blur", "make", "warmer")):
        assert not torch.equal(trained[start], trained[within])
        assert torch.equal(written[start], trained[within])
        assert torch.equal(written[capital], trained[within])
    changed = (written != trained).any(1).nonzero()[:, 0].tolist()
    tokens = tokenizer.convert_ids_to_tokens(changed)
    assert all(token.isalpha() and len(token) > 1 and token[0] != "Ġ" for token in tokens)


def test_the_shipped_checkpoint_has_shared_embeddings() -> None:
    encoder, tokenizer = read(CHECKPOINT_DIR)
    before = embeddings(encoder)
    build.share_embeddings(encoder, tokenizer)
    assert torch.equal(embeddings(encoder), before)
    start, within = (tokenizer(text)["input_ids"][0] for text in ("Blur", " blur"))
    assert start != within
