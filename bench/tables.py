"""Writes the figures in README and docs from the results files, so that none is typed by hand.

A place for figures lies between ``<!-- figures: PART -->`` and ``<!-- end of figures -->``.

    python bench/tables.py           # write
    python bench/tables.py --check   # exit status 1 if a file says something else
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import results  # noqa: E402
from rendering import attack, headline, model, peers, serving  # noqa: E402
from rendering.markdown import Entry, machine  # noqa: E402

#: Files that hold figures.
FILES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("benchmarks", "capacity", "deploy", "quantization", "security")
    ),
)
PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
#: The place whose figures are taken from several parts.
HEADLINE = "headline"


def _with_machine(render: Callable[[attack.Rows], str]) -> Callable[[Entry], str]:
    return lambda entry: f"{render(entry['rows'])}\n\n{machine(entry)}"


#: Part -> what is said of its last measurement.
RENDERERS: dict[str, Callable[[Entry], str]] = {
    "attack_inputs": attack.inputs,
    "attack_fuzz": attack.inputs,
    "attack_kills": _with_machine(attack.kills),
    "attack_faults": _with_machine(attack.faults),
    "attack_sanitizers": _with_machine(attack.sanitizers),
    "attack_concurrency": _with_machine(attack.concurrency),
    "attack_reproducible": _with_machine(attack.reproducible),
    "demo": model.latency,
    "official": model.latency,
    "scoring": model.scoring,
    "recall": model.recall,
    "search": model.search,
    "full": model.full,
    "large": model.large,
    "load": serving.load,
    "peers": peers.encoders,
    "reproducibility": model.reproducibility,
    "capacity": serving.capacity,
    "runtime": serving.runtime,
    "serving": serving.serving,
    "quantization": peers.quantization,
    "quantization_official": peers.quantization,
}


def rendered(part: str, folder: Path) -> str:
    """What the files say of a part."""
    if part == HEADLINE:
        return headline.headline(lambda name: results.latest(folder, name))
    entry = results.latest(folder, part)
    if entry is None:
        is_attack = part.startswith("attack_")
        command = f"attack {part.removeprefix('attack_')}" if is_attack else f"figures.py {part}"
        return f"Not measured yet: `python bench/{command}` does it."
    return RENDERERS[part](entry)


def filled(text: str, folder: Path) -> str:
    """A text with its figures as the results files have them."""

    def place(found: re.Match[str]) -> str:
        if found[2] not in (HEADLINE, *RENDERERS):
            expected = ", ".join((HEADLINE, *RENDERERS))
            raise SystemExit(f"figures: {found[2]}: expected one of {expected}")
        return f"{found[1]}{rendered(found[2], folder)}\n{found[3]}"

    return PLACE.sub(place, text)


def stale(folder: Path = results.FOLDER) -> list[Path]:
    """Files that say something else than the results."""
    return [path for path in FILES if filled(_text(path), folder) != _text(path)]


def write(folder: Path = results.FOLDER) -> None:
    """Write the figures into every file."""
    for path in stale(folder):
        path.write_text(filled(_text(path), folder), encoding="utf-8")
        print(f"figures written into {path.name}", flush=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only look")
    if not parser.parse_args().check:
        write()
    elif files := stale():
        names = ", ".join(path.name for path in files)
        sys.exit(f"{names}: figures differ from bench/results; run python bench/tables.py")


if __name__ == "__main__":
    main()
