"""Copies of code are found whatever their indentation; declarations are none."""

from __future__ import annotations

import pytest

from places import BENCH, on_path

with on_path(BENCH):
    import copies

BODY = [f"value = compute({number}, value)" for number in range(10)]


def function(name: str, body: list[str], comment: str = "") -> str:
    return "\n".join([f"def {name}(value):", *(f"    {comment}{line}" for line in body)]) + "\n"


def nested(name: str, body: list[str]) -> str:
    lines = [f'def {name}(value):\n    """Docstring."""', "    if value:"]
    for index, line in enumerate(body):
        lines += [f"        {line}", "", f"        # comment {index}"]
    return "\n".join(lines) + "\n"


def test_a_copy_is_found_as_long_as_it_goes() -> None:
    sources = {
        "a.py": "first = 1\n\n\n" + function("one", [*BODY, "other = 1"]),
        "b.py": nested("two", [*BODY, "other = 2"]),
        "c.py": function("three", BODY[:7]),
    }
    (found,) = copies.find_copies(sources)
    assert (found.first, found.second, found.length) == (("a.py", 5), ("b.py", 4), 10)
    assert found.files == ("a.py", "b.py")


def test_seven_lines_are_none() -> None:
    sources = {"a.py": function("one", BODY[:7]), "b.py": function("two", BODY[:7])}
    assert copies.find_copies(sources) == []
    assert len(copies.find_copies(sources, length=7)) == 1


def test_a_copy_within_a_file_is_found() -> None:
    text = function("one", BODY[:8]) + function("two", BODY[:8])
    (found,) = copies.find_copies({"a.py": text})
    assert (found.first, found.second, found.length) == (("a.py", 2), ("a.py", 11), 8)


def test_a_repeated_line_is_no_copy_of_itself() -> None:
    assert copies.find_copies({"a.py": "x += 1\n" * 15}) == []


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"import module{number}\n" for number in range(9)),
        "from module import (\n" + "".join(f"    name{n},\n" for n in range(9)) + ")\n",
        "def call(\n"
        + "".join(f"    name{n}: int,\n" for n in range(9))
        + ") -> None:\n    pass\n",
        '"""\n' + "".join(f"Line {number}.\n" for number in range(9)) + '"""\n',
        "".join(f"# Line {number}.\n" for number in range(9)),
        "x = [\n" + "    [\n    ],\n" * 9 + "]\n",
    ],
    ids=["imports", "names", "signature", "docstring", "comments", "brackets"],
)
def test_what_is_declared_alike_is_no_copy(text: str) -> None:
    assert copies.find_copies({"a.py": text, "b.py": text}) == []


def test_cpp_is_read_without_includes_and_comments() -> None:
    body = "\n".join(f"    value = compute({number}, value);" for number in range(8))
    heads = "".join(f"#include <header{number}>\n// comment\n" for number in range(8))
    sources = {
        "a.cpp": f"{heads}void one() {{\n{body}\n}}\n",
        "b.hpp": f"void two() {{\n{body}\n}}\n",
    }
    (found,) = copies.find_copies(sources)
    assert (found.first, found.second, found.length) == (("a.cpp", 18), ("b.hpp", 2), 8)


def test_few_copies_are_allowed_each_for_a_reason() -> None:
    assert len(copies.ALLOWED) <= 5
    assert all(why for why in copies.ALLOWED.values())
