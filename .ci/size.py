"""Print the size of `src` by package, and fail above the limits.

A line of code holds at least one token that is not a comment, docstring or blank. The demo and its
trainer are not counted. `python .ci/size.py`
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LIMIT = 18432
"""Lines of code. Raise it in a commit of its own that says what the lines are for."""
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_LONG_FUNCTIONS = 5
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


def find_long_functions(source: str) -> Iterator[tuple[str, int]]:
    r"""Yield name and length of each function over `MAX_FUNCTION_LINES`, docstring included.

    >>> list(find_long_functions("def f():\n" + "    x = 1\n" * 40))
    [('f', 41)]
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield node.name, length


def main() -> int:
    """Print a line for each package and each thing too long; return 1 where a limit is broken."""
    packages: Counter[str] = Counter()
    long_files, long_functions = [], []
    for path in sorted(ROOT.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT)
        packages[name.parts[0]] += count_code_lines(source)
        if (length := len(source.splitlines())) > MAX_FILE_LINES:
            long_files.append(f"{length:6} {name}")
        long_functions += [f"{n:6} {name}: {f}" for f, n in find_long_functions(source)]
    demo = packages.pop("demo")
    total = sum(packages.values())
    print("Lines of code")
    for package, lines in packages.most_common():
        print(f"{lines:6} {package}")
    print(f"{total:6} in all, limit {LIMIT} (the demo, not counted: {demo})")
    print(
        f"Functions over {MAX_FUNCTION_LINES} lines: {len(long_functions)} of {MAX_LONG_FUNCTIONS}"
    )
    print(*long_functions, sep="\n")
    print(f"Files over {MAX_FILE_LINES} lines: {len(long_files)} of 0")
    print(*long_files, sep="\n")
    return int(total > LIMIT or len(long_functions) > MAX_LONG_FUNCTIONS or bool(long_files))


if __name__ == "__main__":
    sys.exit(main())
