"""Attacks the tool at every door and keeps what was found, for the table in ``docs/security.md``.

    python bench/attack                          # every part
    python bench/attack inputs fuzz --seconds 600

A part is a module beside this file with ``run(options)``, which gives the rows of its table. They
go to ``bench/results/attack_PART.jsonl``; ``python bench/tables.py`` writes them into the page.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import results

#: Every part, and the module that runs it.
PARTS = {
    "inputs": "inputs",
    "fuzz": "fuzz",
    "kills": "kills",
    "faults": "faults",
    "sanitizers": "sanitizers",
    "concurrency": "concurrency",
    "reproducible": "reproducible",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="attack", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--count", type=int, default=1000, help="malformed inputs for each door")
    parser.add_argument("--seconds", type=float, default=60, help="time to fuzz each parser")
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn")
    parser.add_argument("--kills", type=int, default=200, help="kills over all commands")
    parser.add_argument("--shapes", type=int, default=1000, help="for each kernel and sanitizer")
    parser.add_argument("--calls", type=int, default=10_000, help="of every verb of a session")
    parser.add_argument("--only", metavar="NAME", help="one door or parser of a part, again")
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"{unknown[0]}: no such part; expected any of {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        began = time.monotonic()
        module = importlib.import_module(PARTS[part])
        rows = module.run(options)
        seconds = time.monotonic() - began
        last = results.latest(results.FOLDER, f"attack_{part}")
        if options.only is not None and last is not None:  # the others' rows are those of before
            columns = 2 if part == "faults" else 1  # that name a row
            merged = {tuple(row.values())[:columns]: row for row in [*last["rows"], *rows]}
            rows = list(merged.values())
            seconds += last["seconds"]
        results.append(results.FOLDER, f"attack_{part}", rows, seconds)
        if part == "inputs" and (doors := module.broken(rows)):
            sys.exit(f"not tried: {', '.join(doors)}")


if __name__ == "__main__":
    main()
