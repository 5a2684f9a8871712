"""How people ask for the edits: the sentences of training, and only those.

The demo model never sees the wordings it is tested on (`tests/bench/wordings.json`): every sentence
that can come out of `instruct` is made of `templates`, which a test compares with them.
"""

import random
import re
from collections.abc import Iterator
from functools import cache

from retouch.demo.edits import PLAIN, SLIGHT, STRONG, Change
from retouch.demo.words import (
    BLANK,
    COLORS,
    HEADS,
    JOINS,
    NOUNS,
    OBJECTS,
    STRENGTHS,
    TAILS,
    UNCHANGED,
    UNTAUGHT,
    WORDS,
    Words,
)

_BLANK_SHARE, _UNTAUGHT_SHARE, _UNCHANGED_SHARE = 0.03, 0.07, 0.04
_SINGLE_SHARE, _CAPITAL_SHARE = 0.7, 0.3
_AMOUNTS = {PLAIN: 5, SLIGHT: 3, STRONG: 3}
_GRAIN_WEIGHT = 1.5  # the hardest edit is asked for more often
_ALIKE = (  # of each group at most one in a sentence: two would undo or hide each other
    {"warmer", "cooler", "red", "green", "blue", "purple", "black_and_white", "sepia"},
    {"black_and_white", "sepia", "more_saturation", "less_saturation", "invert"},
    {"brighter", "darker"},
    {"more_contrast", "less_contrast"},
    {"blur", "sharpen"},
)


def _expand(words: Words) -> Iterator[tuple[str, ...]]:
    """Give the sentences of one edit, kind by kind."""
    objects = ("{o}", "{o}", "{k}") if words.colors else ("{o}",)
    yield words.verbs
    yield tuple(
        form.format(x=x, o=o)
        for x in words.adjectives
        for o in objects
        for form in ("make {o} {{c}}{x}", "make {o} {{c}}{x}", "{{c}}{x}", "I want {o} {{c}}{x}")
    )
    yield tuple(
        form.format(x=x)
        for x in words.adjectives
        for form in (
            "make {{o}} look {{c}}{x}",
            "let {{o}} be {{c}}{x}",
            "{{o}} should be {{c}}{x}",
        )
    )
    yield tuple(f"make {{o}} {x}" for x in words.states) + tuple(
        f"make {{o}} look {x}" for x in words.states if "look" not in x and x != "pop"
    )
    yield tuple(
        form.format(x=x)
        for x in words.looks
        for form in (
            *("give {{o}} a {{a}}{x} look", "give {{o}} a {{a}}{x} feel", "a {{a}}{x} look"),
            *("apply a {{a}}{x} effect", "apply a {{a}}{x} filter", "a {{a}}{x} effect on {{o}}"),
        )
    )
    yield tuple(
        form.format(x=x)
        for x in words.things
        for form in ("add {{n}}{x}", "add {{n}}{x}", "add {{n}}{x} to {{o}}", "give {{o}} {{n}}{x}")
    )


@cache
def templates(name: str) -> tuple[tuple[str, ...], ...]:
    """List the sentences for the edit `name`, in kinds; slots stand for objects and strengths.

    >>> "make {o} {c}warmer" in templates("warmer")[1]
    True
    """
    if name == "unchanged":
        return (UNCHANGED,)
    return tuple(kind for kind in _expand(WORDS[name]) if kind)


def _fill(template: str, amount: float, dice: random.Random) -> tuple[str, float]:
    """Fill the slots; a sentence without a place for the strength is a plain one."""
    slots = [slot for slot in re.findall(r"{(\w)}", template) if slot in STRENGTHS]
    amount = amount if slots else PLAIN
    chosen = dice.choice(slots) if slots else ""
    filled = {
        slot: dice.choice(words[amount if slot == chosen else PLAIN])
        for slot, words in STRENGTHS.items()
    }
    text = template.format(o=dice.choice(OBJECTS), k=dice.choice(COLORS), **filled)
    return re.sub(r"\ba (?=[aeio]\w|un)", "an ", text), amount


def _phrase(name: str, dice: random.Random) -> tuple[str, Change]:
    kind = dice.choice(templates(name))
    amount = dice.choices(list(_AMOUNTS), list(_AMOUNTS.values()))[0]
    text, amount = _fill(dice.choice(kind), amount, dice)
    return text, Change(name, amount)


def _untaught(dice: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    gibberish = "".join(dice.choices(letters, k=dice.randint(2, 8)))
    return dice.choice(UNTAUGHT).format(x=dice.choice(NOUNS), y=dice.choice(NOUNS), g=gibberish)


def may_join(one: str, other: str) -> bool:
    """Say whether two edits make sense in one sentence."""
    return one != other and not any(one in group and other in group for group in _ALIKE)


def _dress(text: str, dice: random.Random) -> str:
    """Add what people put around a request."""
    text = dice.choice(HEADS) + text + dice.choice(TAILS)
    return text[:1].upper() + text[1:] if dice.random() < _CAPITAL_SHARE else text


def _ask_for_nothing(share: float, dice: random.Random) -> str | None:
    """Make up what is to leave the picture as it is, if `share` (0..1) falls so."""
    if share < _BLANK_SHARE:
        return dice.choice(BLANK)
    if share < _BLANK_SHARE + _UNTAUGHT_SHARE:
        return _dress(_untaught(dice), dice)
    if share < _BLANK_SHARE + _UNTAUGHT_SHARE + _UNCHANGED_SHARE:
        return _dress(_phrase("unchanged", dice)[0], dice)
    return None


def instruct(dice: random.Random) -> tuple[str, tuple[Change, ...]]:
    """Make up an instruction and the changes it asks for, in the order they are made.

    About one in seven asks for nothing the model knows: no changes. Grain comes last whatever the
    order of the words, because any other edit would spoil it.
    """
    nothing = _ask_for_nothing(dice.random(), dice)
    if nothing is not None:
        return nothing, ()
    names = list(WORDS)
    weights = [_GRAIN_WEIGHT if name == "grain" else 1.0 for name in names]
    first = second = dice.choices(names, weights)[0]
    text, change = _phrase(first, dice)
    if dice.random() < _SINGLE_SHARE:
        return _dress(text, dice), (change,)
    while not may_join(first, second):
        second = dice.choices(names, weights)[0]
    more, other = _phrase(second, dice)
    join = " " if more.startswith("with ") else dice.choice(JOINS)
    changes = sorted((change, other), key=lambda made: made.name == "grain")
    return _dress(text + join + more, dice), tuple(changes)


def vocabulary() -> Iterator[str]:
    """Give texts that hold every word and sentence part of the training, for the tokenizer."""
    fillers = [word for words in STRENGTHS.values() for group in words.values() for word in group]
    parts = (*OBJECTS, *COLORS, *HEADS, *TAILS, *JOINS, *fillers, *NOUNS, *BLANK)
    sentences = [
        *(one for name in (*WORDS, "unchanged") for kind in templates(name) for one in kind),
        *UNTAUGHT,
    ]
    for text in (*parts, *(re.sub(r"{\w}", "", sentence) for sentence in sentences)):
        yield text
        yield " " + text.strip()
        yield text[:1].upper() + text[1:]
