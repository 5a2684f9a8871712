"""Before stage 2: the text encoder learns to tell the edits apart, so that the editor finds them there.

Without it the editor copies the picture for a long time before it notices that the words matter.
"""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from retouch.engine.demo import build, phrases
from retouch.engine.demo import editor_model as em
from retouch.engine.demo.steps import Clock, Optimizer, warm_cosine

_BATCH, _LR = 256, 2e-3
_END_TOKENS = 5  # of the template after the instruction: they have seen all of it


def _draw(tokens: em.Tokens, dice: random.Random, count: int) -> tuple[list[str], torch.Tensor]:
    """Draw instructions and what they ask: the amount of each edit, (count, edits)."""
    names = list(phrases.WORDS)
    texts, amounts = [], torch.zeros(count, len(names))
    while len(texts) < count:
        text, changes = phrases.instruct(dice)
        if tokens.fits(text):
            for change in changes:
                amounts[len(texts), names.index(change.name)] = change.amount
            texts.append(text)
    return texts, amounts


def train_words(parts: build.Parts, plan: Any) -> None:
    """Train the text encoder and a throw-away reader of its last states ."""
    dice = random.Random(plan.seed)  # noqa: S311
    tokens = em.Tokens(parts.tokenizer)
    count = 4000 if plan.quick else 16_000
    drawn, wanted = _draw(tokens, dice, count)
    texts, wanted = tokens.rows(drawn, plan.device), wanted.to(plan.device)
    reader = nn.Linear(build.TEXT_WIDTH, len(phrases.WORDS)).to(plan.device)
    language = parts.text_encoder.model.language_model
    optimizer = Optimizer([*language.parameters(), *reader.parameters()], _LR)
    clock = Clock("words", plan.words_s)
    ends = torch.arange(_END_TOKENS, device=plan.device)
    while clock.share < 1:
        optimizer.set_lr(warm_cosine(clock.iteration, clock.share, 50) + 0.01)
        at = torch.randint(count, (_BATCH,), device=plan.device)
        states = em.embed(parts.text_encoder, texts.ids[at], texts.positions[at])
        last = texts.lengths[at, None] - 1 - ends  # (b, end tokens)
        told = reader(states.gather(1, last[..., None].expand(-1, -1, states.shape[-1])))
        loss = F.mse_loss(told, wanted[at, None].expand_as(told))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        clock.iteration += 1
        if clock.iteration % 20 == 0:
            clock.say(f"amounts off by {float(loss.detach()) ** 0.5:.3f}")
