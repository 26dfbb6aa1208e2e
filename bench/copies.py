"""Finds code that stands twice: eight or more lines in a row that are the same in two places.

    python bench/copies.py           # exit status 1 if there are copies that ALLOWED doesn't have
    python bench/copies.py FOLDER    # of another checkout

Lines of Python and C++ are compared without indentation. Those of comments, docstrings, imports and
Python's signatures don't count, nor do lines of brackets alone: what is declared alike is no copy.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hat_export", "kernels", "cli", "bench", "demo", "tests")
ENDINGS = (".py", ".cpp", ".h", ".hpp")
#: Lines in a row that make a copy.
LENGTH = 8
#: Pairs of files, in order -> why both have the same lines. At most five.
ALLOWED: dict[tuple[str, str], str] = {
    ("kernels/alignment/product.hpp", "kernels/operators/linear_kernel.hpp"): (
        "the innermost loop of two kernels: its sums stay in registers from a start to an end that "
        "differ, and one of them fetches ahead in its middle"
    ),
    ("kernels/alignment/vector_avx2.hpp", "kernels/alignment/vector_avx512.hpp"): (
        "units of two instruction sets: of an inline function that both include, the linker would "
        "keep one, with the instructions of either"
    ),
}


@dataclass(frozen=True)
class Line:
    """A line that counts: its number in the file, and its text without indentation."""

    number: int
    text: str


@dataclass(frozen=True, order=True)
class Copy:
    """Lines that stand in two places.

    Attributes:
        first: File of one place, and its first line.
        second: The same of the other.
        length: Lines that count.
    """

    first: tuple[str, int]
    second: tuple[str, int]
    length: int

    @property
    def files(self) -> tuple[str, str]:
        """Both files."""
        return self.first[0], self.second[0]


def read_lines(name: str, source: str) -> list[Line]:
    """The lines of a source that count.

    Args:
        name: Of the file; its ending tells the language.
        source: Its text.
    """
    if name.endswith(".py"):
        left_out = _left_out(source)
    else:
        starts = ("//", "#include")
        lines = enumerate(source.splitlines(), start=1)
        left_out = {number for number, line in lines if line.strip().startswith(starts)}
    stripped = enumerate(map(str.strip, source.splitlines()), start=1)
    return [
        Line(number, text)
        for number, text in stripped
        if number not in left_out and any(char.isalnum() for char in text)
    ]


def _left_out(source: str) -> set[int]:
    """Numbers of the lines of a Python source that don't count."""
    left_out = set(_declarations(ast.parse(source)))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            left_out.add(token.start[0])
    return left_out


def _declarations(tree: ast.Module) -> Iterator[int]:
    """Numbers of the lines of imports, signatures and docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from range(node.lineno, node.body[0].lineno)
        elif (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def find_copies(sources: dict[str, str], length: int = LENGTH) -> list[Copy]:
    """Copies within files and between them, each as long as it goes.

    Args:
        sources: Text of each file by its name.
        length: Lines that make a copy.
    """
    files = {name: read_lines(name, text) for name, text in sources.items()}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for name, lines in files.items():
        for start in range(len(lines) - length + 1):
            window = tuple(line.text for line in lines[start : start + length])
            places[window].append((name, start))
    # Two windows are part of one copy if both places are a line further.
    pairs = {
        (one, other)
        for found in places.values()
        for index, one in enumerate(found)
        for other in found[index + 1 :]
        if one[0] != other[0] or other[1] - one[1] >= length
    }
    copies = []
    for (one, i), (other, j) in pairs:
        if ((one, i - 1), (other, j - 1)) in pairs:
            continue
        more = 0
        while ((one, i + more + 1), (other, j + more + 1)) in pairs:
            more += 1
        first, second = files[one][i].number, files[other][j].number
        copies.append(Copy((one, first), (other, second), length + more))
    return sorted(copies)


def main() -> None:
    """Print the copies of a checkout; exit status 1 if there are any that are not allowed."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    paths = sorted(
        path for folder in FOLDERS for path in (root / folder).rglob("*") if path.suffix in ENDINGS
    )
    copies = find_copies(
        {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in paths}
    )
    wrong = [copy for copy in copies if copy.files not in ALLOWED]
    for copy in copies:
        why = ALLOWED.get(copy.files, "NOT ALLOWED")
        places = " and ".join(f"{name}:{line}" for name, line in (copy.first, copy.second))
        print(f"{copy.length} lines: {places}: {why}")
    if unused := [files for files in ALLOWED if files not in {copy.files for copy in copies}]:
        sys.exit(f"error: bench/copies.py allows what is no copy any more: {unused}")
    if wrong:
        sys.exit(f"error: {len(wrong)} copies of {LENGTH} or more lines: give each idea one place")


if __name__ == "__main__":
    main()
