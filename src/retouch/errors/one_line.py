"""Messages that quote what a file or a stranger wrote."""


def one_line(text: str, *, max_characters: int = 360) -> str:
    r"""Return a text without line breaks and other characters that are not printable, cut to a length.

    >>> one_line("no layer for the key a\n\x1b[2Jb"), one_line("abcdef", max_characters=3)
    ('no layer for the key a??[2Jb', 'abc…')
    """
    line = "".join(one if one.isprintable() else "?" for one in text[: max_characters + 1])
    return line if len(line) <= max_characters else f"{line[:max_characters]}…"
