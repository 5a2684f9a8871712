from typing import Any

import pytest
import torch

from retouch.demo import build, prompts


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build.train_tokenizer()


def test_images_of_many_aspect_ratios_get_flat_and_true_positions(tokenizer: Any) -> None:
    torch.manual_seed(1)
    batch = prompts.PromptTokenizer(tokenizer).tokenize(["make it warmer"] * 40, "cpu")
    flat = torch.arange(prompts.PREFIX_TOKENS + prompts.PROMPT_TOKENS)
    is_flat = (batch.positions == flat).all(-1).all(-1)
    assert 8 < int(is_flat.sum()) < 32
    image_tokens = (batch.ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum(1)
    assert set(image_tokens.tolist()) == {2, 3, 4, 6}
    assert len(set((batch.lengths - image_tokens).tolist())) == 1


def test_a_long_instruction_does_not_fit(tokenizer: Any) -> None:
    prompt_tokenizer = prompts.PromptTokenizer(tokenizer)
    assert prompt_tokenizer.fits("make it warmer and add gentle film grain")
    assert not prompt_tokenizer.fits("make it warmer and " * 20)
