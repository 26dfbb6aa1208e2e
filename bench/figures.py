"""Measures the project's published figures, part by part, and writes README's and docs' tables.

    python bench/figures.py                     # all of our own; what make bench does
    python bench/figures.py scoring load        # some parts
    python bench/figures.py reproducibility     # error rates of hat-bench compare
    python bench/figures.py peers quantization quantization_official    # beside other tools
    python bench/figures.py --list              # what there is, and how long it takes

Each part is one function here and one results file in ``bench/results``, to which a line with
machine and versions is added. A part that fails, takes too long or finds no time left is reported
and leaves its figures as they were; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import own_parts  # noqa: E402
import peer_parts  # noqa: E402
import results  # noqa: E402
import tables  # noqa: E402
from workbench import Bench, PartError, Rows  # noqa: E402


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        measure: Gives its rows.
        minutes: About how long it takes on two cores, models included.
        usual: Whether it runs where no part is named.
    """

    measure: Callable[[Bench], Rows]
    minutes: float
    usual: bool = True


#: In the order in which they run: if the time is too short, the last ones stay as they were.
PARTS = {
    "demo": Part(own_parts.demo, 3),
    "load": Part(own_parts.load, 1),
    "scoring": Part(own_parts.scoring, 2),
    "recall": Part(own_parts.recall, 0.5),
    "search": Part(own_parts.search, 1.5),
    "official": Part(own_parts.official, 11),
    "full": Part(own_parts.full, 9),
    "large": Part(own_parts.large, 2),
    "capacity": Part(own_parts.capacity, 1),
    "runtime": Part(own_parts.runtime, 1.5),
    "serving": Part(own_parts.serving, 1),
    # Long: so many passes that a tenth can be told on a noisy machine.
    "reproducibility": Part(own_parts.reproducibility, 45, False),
    # Beside other tools, which take most of the time and are installed for it, half a GB.
    "peers": Part(peer_parts.peers, 20, False),
    "quantization": Part(peer_parts.quantization, 8, False),
    "quantization_official": Part(peer_parts.quantization_official, 9, False),
}

#: Limit of a run of all usual parts.
MINUTES = 38.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = "default: all but reproducibility and those beside other tools"
    parser.add_argument("parts", nargs="*", metavar="PART", help=everything)
    parser.add_argument("--list", action="store_true", help="show the parts and end")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="models and reports")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the rows")
    limit = f"no part goes on longer [{MINUTES:g}, or half as long again as the parts named take]"
    parser.add_argument("--minutes", type=float, help=limit)
    parser.add_argument("--quick", action="store_true", help="try everything on few samples")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]}: expected some of {', '.join(PARTS)}")
    if arguments.list:
        for name, part in PARTS.items():
            what = (part.measure.__doc__ or "").splitlines()[0]
            print(f"{name:22} {part.minutes:4.1f} min  {what}")
        return
    if arguments.quick and arguments.results == results.FOLDER:
        arguments.results = arguments.out / "results"  # few samples are no figures to publish
    chosen = arguments.parts or [name for name, part in PARTS.items() if part.usual]
    if arguments.minutes is None:
        arguments.minutes = max(MINUTES, 1.5 * sum(PARTS[part].minutes for part in arguments.parts))
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    failed = measure(chosen, arguments)
    if arguments.results == results.FOLDER:
        tables.write(arguments.results)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def measure(chosen: list[str], arguments: argparse.Namespace) -> list[str]:
    """Run some parts and add their rows; the names of those that could not be measured."""
    begun = time.monotonic()
    bench = Bench(arguments.out.resolve(), arguments.quick, begun + 60 * arguments.minutes)
    failed = []
    for name in chosen:
        started = time.monotonic()
        bench.beside = {}
        print(f"{name} (about {PARTS[name].minutes:g} min)", flush=True)
        try:
            rows = PARTS[name].measure(bench)
        except PartError as error:
            print(f"  not measured: {error}", flush=True)
            failed.append(name)
            continue
        seconds = time.monotonic() - started
        path = results.append(arguments.results, name, rows, seconds, bench.beside)
        print(f"  {seconds:.0f} s, {len(rows)} rows added to {path}", flush=True)
    print(
        f"{len(chosen) - len(failed)} parts in {(time.monotonic() - begun) / 60:.1f} min",
        flush=True,
    )
    return failed


if __name__ == "__main__":
    main()
