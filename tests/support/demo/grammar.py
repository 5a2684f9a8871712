"""The trainer's grammar, read backwards: whether `phrases.instruct` can say a sentence.

Allows several strengths in one sentence and any two phrases side by side, so never says no to what the
grammar makes. Capitals do not count, nor does "an" against "a", because the grammar makes "an" of some.
Sentences of random letters are left out: any words could be those.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from retouch.demo import phrases, words

_SLOTS: dict[str, Iterable[str]] = {
    "o": words.OBJECTS,
    "k": words.COLORS,
    "x": words.NOUNS,
    "y": words.NOUNS,
    **{slot: sum(ways.values(), ()) for slot, ways in words.STRENGTHS.items()},
}
Pieces = tuple[tuple[str, ...], ...]


def _normal(text: str) -> str:
    return re.sub(r"\ban\b", "a", text.lower())


def _normals(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple({_normal(text) for text in texts})


def _pieces(template: str) -> Pieces:
    """Cut a template into what may stand one after the other: its words, or what fills a slot."""
    parts = re.split(r"{(\w)}", template)  # text, slot, text, slot, ... text
    return tuple(
        _normals(_SLOTS[part]) if at % 2 else (_normal(part),) for at, part in enumerate(parts)
    )


@cache
def _grammar() -> tuple[list[Pieces], list[Pieces]]:
    names = (*words.WORDS, "unchanged")
    asked = {one for name in names for kind in phrases.templates(name) for one in kind}
    untaught = [one for one in words.UNTAUGHT if "{g}" not in one]
    return list(map(_pieces, asked)), list(map(_pieces, untaught))


def _rests(pieces: Sequence[Sequence[str]], text: str) -> Iterator[str]:
    """Give what is left of `text` after `pieces`, in every way they fit."""
    if not pieces:
        yield text
        return
    for option in pieces[0]:
        if text.startswith(option):
            yield from _rests(pieces[1:], text[len(option) :])


def can_say(text: str) -> bool:
    asked, untaught = _grammar()
    heads, tails = _normals(words.HEADS), _normals(words.TAILS)
    joins = _normals((*words.JOINS, " "))
    begun = set(_rests([heads], _normal(text)))
    first = {rest for start in begun for pieces in asked for rest in _rests(pieces, start)}
    joined = {rest for start in first for rest in _rests([joins], start)}
    second = {rest for start in joined for pieces in asked for rest in _rests(pieces, start)}
    other = {rest for start in begun for pieces in untaught for rest in _rests(pieces, start)}
    return text in words.BLANK or not (first | second | other).isdisjoint(tails)
