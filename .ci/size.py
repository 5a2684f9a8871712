"""Print the lines of code of `src` by package, and fail above the limit.

A line of code holds at least one token that is not a comment, docstring or blank. The demo and its
trainer are not counted. `python .ci/size.py`
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

LIMIT = 6400
"""Raise it in a commit of its own that says what the lines are for."""
ROOT = Path(__file__).parents[1] / "src" / "retouch"
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def count_code_lines(source: str) -> int:
    r"""Count the lines that hold code.

    >>> count_code_lines('"Doc."\n\nx = 1  # one\n# two\n')
    1
    """
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> int:
    """Print a line for each package and the sum; return 1 where it is over the limit."""
    packages: Counter[str] = Counter()
    for path in sorted(ROOT.rglob("*.py")):
        package = path.relative_to(ROOT).parts[0]
        packages[package] += count_code_lines(path.read_text(encoding="utf-8"))
    demo = packages.pop("demo")
    for package, lines in packages.most_common():
        print(f"{lines:6} {package}")
    total = sum(packages.values())
    print(f"{total:6} in all, limit {LIMIT} (the demo, not counted: {demo})")
    return int(total > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
