"""Parses sentences with the trainer's grammar: can `phrases.draw_instruction` produce a sentence?

Accepts a superset: several strengths in one sentence, any two phrases joined. So it accepts everything
that the grammar produces. Ignores case, and treats "an" as "a", because the grammar turns some into "an".
Templates of random letters are left out: any word could match them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from retouch.demo import lexicon, phrases

_SLOTS: dict[str, Iterable[str]] = {
    "o": lexicon.OBJECTS,
    "k": lexicon.COLORS,
    "x": lexicon.NOUNS,
    "y": lexicon.NOUNS,
    **{slot: sum(words.values(), ()) for slot, words in lexicon.STRENGTHS.items()},
}
Pieces = tuple[tuple[str, ...], ...]


def _normal(text: str) -> str:
    return re.sub(r"\ban\b", "a", text.lower())


def _normals(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple({_normal(text) for text in texts})


def _pieces(template: str) -> Pieces:
    """Split a template into its words and the alternatives of its slots, in order."""
    parts = re.split(r"{(\w)}", template)  # text, slot, text, slot, ... text
    return tuple(
        _normals(_SLOTS[part]) if number % 2 else (_normal(part),)
        for number, part in enumerate(parts)
    )


@cache
def _grammar() -> tuple[list[Pieces], list[Pieces]]:
    names = (*lexicon.LEXICON, "unchanged")
    in_scope = {one for name in names for kind in phrases.templates(name) for one in kind}
    out_of_scope = [one for one in lexicon.OUT_OF_SCOPE if "{g}" not in one]
    return list(map(_pieces, in_scope)), list(map(_pieces, out_of_scope))


def _rests(pieces: Sequence[Sequence[str]], text: str) -> Iterator[str]:
    """Yield what remains of `text` after `pieces`, for every way they match."""
    if not pieces:
        yield text
        return
    for option in pieces[0]:
        if text.startswith(option):
            yield from _rests(pieces[1:], text[len(option) :])


def can_produce(text: str) -> bool:
    in_scope, out_of_scope = _grammar()
    prefixes, suffixes = _normals(lexicon.PREFIXES), _normals(lexicon.SUFFIXES)
    conjunctions = _normals((*lexicon.CONJUNCTIONS, " "))
    begun = set(_rests([prefixes], _normal(text)))
    first = {rest for start in begun for pieces in in_scope for rest in _rests(pieces, start)}
    joined = {rest for start in first for rest in _rests([conjunctions], start)}
    second = {rest for start in joined for pieces in in_scope for rest in _rests(pieces, start)}
    other = {rest for start in begun for pieces in out_of_scope for rest in _rests(pieces, start)}
    return text in lexicon.BLANK or not (first | second | other).isdisjoint(suffixes)
