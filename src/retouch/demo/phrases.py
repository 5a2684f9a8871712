"""The training instructions, drawn from a grammar over the lexicon.

The model never trains on the wordings it is tested on (`tests/bench/wordings.json`): a test checks that
the grammar cannot produce them.
"""

import random
import re
from collections.abc import Iterator
from functools import cache

from retouch.demo.edits import PLAIN, SLIGHT, STRONG, Change
from retouch.demo.lexicon import (
    BLANK,
    COLORS,
    CONJUNCTIONS,
    LEXICON,
    NOUNS,
    OBJECTS,
    OUT_OF_SCOPE,
    PREFIXES,
    STRENGTHS,
    SUFFIXES,
    UNCHANGED,
    Entry,
)

_BLANK_SHARE, _OUT_OF_SCOPE_SHARE, _UNCHANGED_SHARE = 0.03, 0.07, 0.04
_SINGLE_SHARE, _CAPITAL_SHARE = 0.7, 0.3
_AMOUNTS = {PLAIN: 5, SLIGHT: 3, STRONG: 3}
_GRAIN_WEIGHT = 1.5  # the hardest edit is drawn more often
_EXCLUSIVE = (  # at most one of each group in an instruction: two would undo or hide each other
    {"warmer", "cooler", "red", "green", "blue", "purple", "black_and_white", "sepia"},
    {"black_and_white", "sepia", "more_saturation", "less_saturation", "invert"},
    {"brighter", "darker"},
    {"more_contrast", "less_contrast"},
    {"blur", "sharpen"},
)


def _expand(entry: Entry) -> Iterator[tuple[str, ...]]:
    """Yield the templates of one edit, a tuple for each kind of sentence."""
    objects = ("{o}", "{o}", "{k}") if entry.colors else ("{o}",)
    yield entry.verbs
    yield tuple(
        form.format(x=x, o=o)
        for x in entry.adjectives
        for o in objects
        for form in ("make {o} {{c}}{x}", "make {o} {{c}}{x}", "{{c}}{x}", "I want {o} {{c}}{x}")
    )
    yield tuple(
        form.format(x=x)
        for x in entry.adjectives
        for form in (
            "make {{o}} look {{c}}{x}",
            "let {{o}} be {{c}}{x}",
            "{{o}} should be {{c}}{x}",
        )
    )
    yield tuple(f"make {{o}} {{s}}{x}" for x in entry.states) + tuple(
        f"make {{o}} look {{s}}{x}" for x in entry.states if "look" not in x and x != "pop"
    )
    yield tuple(
        form.format(x=x)
        for x in entry.looks
        for form in (
            *("give {{o}} a {{a}}{x} look", "give {{o}} a {{a}}{x} feel", "a {{a}}{x} look"),
            *("apply a {{a}}{x} effect", "apply a {{a}}{x} filter", "a {{a}}{x} effect on {{o}}"),
        )
    )
    yield tuple(
        form.format(x=x)
        for x in entry.things
        for form in (
            *("add {{n}}{x}", "add {{n}}{x}", "add {{n}}{x} to {{o}}", "give {{o}} {{n}}{x}"),
            *("{{v}}add {x}{{e}}", "{{v}}add {x} to {{o}}{{e}}"),
        )
    )


@cache
def templates(name: str) -> tuple[tuple[str, ...], ...]:
    """List the templates for the edit `name`, a tuple for each kind of sentence.

    >>> "make {o} {c}warmer" in templates("warmer")[1]
    True
    """
    if name == "unchanged":
        return (UNCHANGED,)
    return tuple(kind for kind in _expand(LEXICON[name]) if kind)


def _fill(template: str, amount: float, rng: random.Random) -> tuple[str, float]:
    """Fill the slots; a template without a slot for the strength gets the plain amount."""
    slots = [slot for slot in re.findall(r"{(\w)}", template) if slot in STRENGTHS]
    amount = amount if slots else PLAIN
    chosen = rng.choice(slots) if slots else ""
    filled = {
        slot: rng.choice(words[amount if slot == chosen else PLAIN])
        for slot, words in STRENGTHS.items()
    }
    text = template.format(o=rng.choice(OBJECTS), k=rng.choice(COLORS), **filled)
    return re.sub(r"\ba (?=[aeio]\w|un)", "an ", text), amount


def _phrase(name: str, rng: random.Random) -> tuple[str, Change]:
    kind = rng.choice(templates(name))
    amount = rng.choices(list(_AMOUNTS), list(_AMOUNTS.values()))[0]
    text, amount = _fill(rng.choice(kind), amount, rng)
    return text, Change(name, amount)


def _out_of_scope(rng: random.Random) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    gibberish = "".join(rng.choices(letters, k=rng.randint(2, 8)))
    return rng.choice(OUT_OF_SCOPE).format(x=rng.choice(NOUNS), y=rng.choice(NOUNS), g=gibberish)


def are_compatible(one: str, other: str) -> bool:
    """Return whether two edits make sense in one instruction."""
    return one != other and not any(one in group and other in group for group in _EXCLUSIVE)


def frame(text: str, rng: random.Random) -> str:
    """Add a prefix and a suffix such as "please", and sometimes a capital."""
    text = rng.choice(PREFIXES) + text + rng.choice(SUFFIXES)
    return text[:1].upper() + text[1:] if rng.random() < _CAPITAL_SHARE else text


def _draw_no_edit(share: float, rng: random.Random) -> str | None:
    """Draw an instruction that leaves the picture unchanged, if `share` (0..1) falls in its range."""
    if share < _BLANK_SHARE:
        return rng.choice(BLANK)
    if share < _BLANK_SHARE + _OUT_OF_SCOPE_SHARE:
        return frame(_out_of_scope(rng), rng)
    if share < _BLANK_SHARE + _OUT_OF_SCOPE_SHARE + _UNCHANGED_SHARE:
        return frame(_phrase("unchanged", rng)[0], rng)
    return None


def draw_instruction(rng: random.Random) -> tuple[str, tuple[Change, ...]]:
    """Draw an instruction, and the changes it asks for in the order of application.

    About one in seven has no changes: it is blank, out of scope, or asks for no edit. Grain always
    comes last, whatever the order of the words, because another edit would distort it.
    """
    no_edit = _draw_no_edit(rng.random(), rng)
    if no_edit is not None:
        return no_edit, ()
    names = list(LEXICON)
    weights = [_GRAIN_WEIGHT if name == "grain" else 1.0 for name in names]
    first = second = rng.choices(names, weights)[0]
    text, change = _phrase(first, rng)
    if rng.random() < _SINGLE_SHARE:
        return frame(text, rng), (change,)
    while not are_compatible(first, second):
        second = rng.choices(names, weights)[0]
    more, other = _phrase(second, rng)
    conjunction = " " if more.startswith("with ") else rng.choice(CONJUNCTIONS)
    changes = sorted((change, other), key=lambda one: one.name == "grain")
    return frame(text + conjunction + more, rng), tuple(changes)


def vocabulary() -> Iterator[str]:
    """Yield texts that together hold every word of the training instructions, for the tokenizer."""
    fillers = [word for words in STRENGTHS.values() for group in words.values() for word in group]
    around = (*OBJECTS, *COLORS, *PREFIXES, *SUFFIXES, *CONJUNCTIONS)
    fragments = (*around, *fillers, *NOUNS, *BLANK)
    sentences = [
        *(one for name in (*LEXICON, "unchanged") for kind in templates(name) for one in kind),
        *OUT_OF_SCOPE,
    ]
    for text in (*fragments, *(re.sub(r"{\w}", "", sentence) for sentence in sentences)):
        yield text
        yield " " + text.strip()
        yield text[:1].upper() + text[1:]
