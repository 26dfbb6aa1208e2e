"""README's three figures: the project beside its strongest rival, each at its best size."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from rendering.markdown import Entry, machine, table
from rendering.model import ranks

#: An encoder's point in words.
ENCODERS = {"image": "image encoder, batch {}", "text": "text encoder, {} words"}
#: Rivals that compute in another precision than float32.
OTHER_PRECISIONS = ("OpenVINO, precision of its choice",)
#: A rival whose name only the row above it in the whole table explains.
NAMES = {
    "the same + onnxruntime.transformers.optimizer": (
        "torch.onnx.export + ONNX Runtime's transformers.optimizer"
    )
}
OURS = "hat-export"


class Duel(NamedTuple):
    """Milliseconds of ours and of a rival's at the same task."""

    task: str
    ours: float
    theirs: float
    rival: str

    @property
    def factor(self) -> float:
        """How many times faster ours is."""
        return self.theirs / self.ours


def headline(latest: Callable[[str], Entry | None]) -> str:
    """The table, and what its rows were measured on.

    Args:
        latest: The last measurement of a part by its name; None where there is none.
    """
    rows: list[tuple[str, ...]] = []
    measured: dict[str, list[str]] = {}
    for name, (part, find) in PARTS.items():
        entry = latest(part)
        if entry is None:
            rows.append((f"{name}: not measured yet: `python bench/figures.py {part}`", "", "", ""))
            continue
        duel = find(entry)
        times = (f"{value:.3g} ms" for value in (duel.ours, duel.theirs))
        faster = f"{duel.factor:.{0 if duel.factor >= 10 else 1}f} times faster"
        rows.append((duel.task, *times, f"{faster} than {NAMES.get(duel.rival, duel.rival)}"))
        measured.setdefault(machine(entry), []).append(name)
    where = [f"{', '.join(names)}: {used}" for used, names in measured.items()]
    if recall := latest("recall"):
        where += ["", f"Recall of the demo model beside PyTorch's: {ranks(recall)}"]
    return "\n".join([table(("", OURS, "the rival", ""), rows), "", *where])


def _score(entry: Entry) -> Duel:
    row = next(row for row in entry["rows"] if row["level"] == "all")
    rival = "the published formula in PyTorch"
    return Duel("score of an image with a caption", row["kernel_ms"], row["formula_ms"], rival)


def _encoder(entry: Entry) -> Duel:
    rows = [
        (re.sub(r"(?<=\d)x(?=\d)", " x ", row["point"]), row["peer"], row["median_ms"])
        for row in entry["rows"]
        if row["median_ms"] and row["peer"] not in OTHER_PRECISIONS
    ]
    return _best(rows, "float32")


def _int8_encoder(entry: Entry) -> Duel:
    rows = [
        (point.replace(" ", ":", 1), row["variant"], ms)
        for row in entry["rows"]
        if not row["variant"].startswith(("float32", "hat-export int4"))
        for point, ms in row.get("ms", {}).items()
    ]
    return _best(rows, "int8")


def _best(rows: list[tuple[str, str, float]], precision: str) -> Duel:
    """The point at which our fastest is the most ahead of the fastest of the others.

    Args:
        rows: Point, name, milliseconds.
        precision: Of all of them.
    """
    duels = []
    for point in dict.fromkeys(point for point, _, _ in rows):
        times = [(ms, name) for at, name, ms in rows if at == point]
        ours, _ = min(time for time in times if time[1].startswith(OURS))
        theirs, rival = min(time for time in times if not time[1].startswith(OURS))
        encoder, _, size = point.partition(":")
        duels.append(Duel(f"{precision} {ENCODERS[encoder].format(size)}", ours, theirs, rival))
    return max(duels, key=lambda duel: duel.factor)


#: What a row is called -> the part that it is taken from, and how.
PARTS: dict[str, tuple[str, Callable[[Entry], Duel]]] = {
    "Score": ("scoring", _score),
    "float32 encoder": ("peers", _encoder),
    "int8 encoder": ("quantization_official", _int8_encoder),
}
