"""Does a changed hat-export still write what it wrote? Records of its outputs, and a comparison.

    python bench/identity record old.json --program OLD_CHECKOUT/.venv/bin
    python bench/identity record new.json --program .venv/bin
    python bench/identity compare old.json new.json --expected reasons.txt

A record is made by command lines and files, on the demo model and its data, so that the same
script records any checkout; onnx, onnxruntime and numpy are those of the environment that runs it.
It holds every file of every case in ``cases.py``, with one thread and with two, as ``forms.py``
describes it, and hashes of features and scores by the public Python interface.

A comparison passes what is equal in bytes, and what is equal in form and results. Any other
difference ends it with exit status 1, unless a line of ``--expected`` gives its reason: a pattern
of items and, after a space, the reason.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from pathlib import Path

from comparison import compare, merge, table, totals
from recording import alone, record


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(prog="bench/identity", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("record", help="run every case and describe what it writes")
    command.add_argument("out", type=Path, metavar="OUT.json")
    command.add_argument(
        "--program",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="holds hat-export, hat-bench and python of the checkout that is recorded",
    )
    command.add_argument("--only", default="*", metavar="PATTERN", help="cases, such as 'q-*'")
    command.add_argument("--threads", type=int, action="append", help="repeatable; default: 1, 2")
    command.add_argument("--jobs", type=int, default=2, help="commands at the same time")
    command = commands.add_parser("compare", help="status 1 on differences without a reason")
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    command.add_argument("--expected", type=Path, help="lines: pattern of items, space, reason")
    command.add_argument("--all", action="store_true", help="a row for every item")
    options = parser.parse_args()
    if options.command == "record":
        begun = time.perf_counter()
        with alone():
            found = record(
                options.program.absolute(),
                lambda name: fnmatch.fnmatch(name, options.only),
                options.threads or (1, 2),
                options.jobs,
            )
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{options.out}: {time.perf_counter() - begun:.0f} s")
        return
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    expected = options.expected.read_text().splitlines() if options.expected else []
    rows, warnings = compare(old, new, expected)
    print(table(merge(rows, options.all)))
    print(f"\n{totals(rows)}")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    sys.exit(any(row.unexplained for row in rows))


if __name__ == "__main__":
    main()
