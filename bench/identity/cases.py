"""What is recorded: one table of commands, in the spelling of any checkout."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

CHECKPOINT = "hat-tiny-emojicap"

#: Name of a case and its command. Words that name an earlier case stand for its output, OUT for the
#: case's own. A name after "<" is copied to OUT first, for commands that change what is there. "-"
#: leaves --threads out.
CASES = """
onnx              hat-export onnx hat-tiny-emojicap OUT -q
onnx-decomposed   hat-export onnx hat-tiny-emojicap OUT --attention decomposed -q
onnx-cpu          hat-export onnx hat-tiny-emojicap OUT --target onnxruntime -q
onnx-fp16         hat-export onnx hat-tiny-emojicap OUT --precision fp16 -q
onnx-bf16         hat-export onnx hat-tiny-emojicap OUT --precision bf16 CALIBRATION -q
trt-fp16          hat-export trt hat-tiny-emojicap OUT --fp16 --sm 75 --sm 89 ENGINES -q
trt-bf16          hat-export trt onnx OUT --bf16 --sm 89 CALIBRATION ENGINES -q
trt-fp32          hat-export trt onnx OUT --fp32 --sm 89 ENGINES -q
trt-int8          hat-export trt onnx OUT --int8 --sm 89 CALIBRATION ENGINES -q
trt-fp8           hat-export trt onnx OUT --fp8 --sm 89 CALIBRATION ENGINES -q
q-search          hat-export quantize onnx-cpu OUT --max-drop rsum=20 --objective size \
--search-images 4 --keep vit_model --keep text_transformer --save-plan OUT.plan.json \
--report OUT.report.json AVX2
search-report     hat-bench search onnx-cpu --data emojicap --limit 40 --queries 2 -q REPORT
parity-torch      hat-bench parity hat-tiny-emojicap onnx --folds 2 PARITY
q-dynamic         hat-export quantize onnx-cpu OUT --mode int8-dynamic AVX2
q-dynamic-onnx    hat-export quantize onnx OUT --mode int8-dynamic AVX2
q-dynamic-vnni    hat-export quantize onnx-cpu OUT --mode int8-dynamic --target cpu-vnni QUIET
q-dynamic-arm64   hat-export quantize onnx OUT --mode int8-dynamic --target arm64 QUIET
q-static          hat-export quantize onnx-cpu OUT --mode int8-static AVX2
q-static-arm64    hat-export quantize onnx OUT --mode int8-static --target arm64 QUIET
q-percentile      hat-export quantize onnx-cpu OUT --mode int8-static --method percentile AVX2
q-entropy         hat-export quantize onnx-cpu OUT --mode int8-static --method entropy AVX2
q-mse             hat-export quantize onnx-cpu OUT --mode int8-static --method mse AVX2
q-smooth          hat-export quantize onnx-cpu OUT --mode int8-static --smooth --compensate AVX2
q-weights         hat-export quantize onnx-cpu OUT --mode int8-weights AVX2
q-weights-smooth  hat-export quantize onnx-cpu OUT --mode int8-weights --smooth --compensate AVX2
q-int4            hat-export quantize onnx-cpu OUT --mode int4-weights --keep vit_model.patch AVX2
q-int4-compensate hat-export quantize onnx-cpu OUT --mode int4-weights --compensate AVX2
q-trt-static      hat-export quantize onnx OUT --mode int8-static --target tensorrt QUIET
q-trt-fp8         hat-export quantize onnx OUT --mode fp8 --target tensorrt --method mse QUIET
q-trt-weights     hat-export quantize onnx OUT --mode int8-weights --target tensorrt QUIET
q-trt-int4        hat-export quantize onnx OUT --mode int4-weights --target tensorrt QUIET
q-plan            hat-export quantize onnx-cpu OUT --plan demo_four_times_smaller.json QUIET
parity-int8       hat-bench parity onnx q-weights-smooth --attribution PARITY
parity-fp16       hat-bench parity onnx onnx-fp16 --localize PARITY
parity-trt        hat-bench parity onnx trt-int8 --backend emulation PARITY
index             hat-export index onnx emojicap/images_val.zip OUT -q
index-float32     hat-export index onnx-cpu pictures OUT --storage float32 -q
index-bfloat16    hat-export index onnx pictures OUT --storage bfloat16 -q
index-int8        hat-export index q-dynamic pictures OUT --storage int8 -q
index-captions    hat-export index onnx captions.txt OUT --captions -q
index-added       hat-export index onnx pictures OUT<index -q
index-deleted     - hat-export index-delete OUT<index FIRST SECOND
index-compacted   - hat-export index-delete OUT<index-deleted --compact
search            hat-export search index-added "a red car" --json -k 50 --rescore 60
search-exact      hat-export search index-compacted "a cat's face" --json --exact
search-int8       hat-export search index-int8 "a fruit" --json --exact
search-image      hat-export search index-captions --image picture.png --json
triton            hat-export triton onnx OUT --index index --queue-delay 500
triton-cpu        hat-export triton onnx-cpu OUT --backend python --index index-float32
triton-trt        hat-export triton trt-fp16 OUT --backend tensorrt \
--image-engine trt-fp16/image.engine --text-engine trt-fp16/text.engine
scoring           hat-bench scoring --spec hat-tiny-emojicap/spec.json --images 4 --captions 16 \
--rounds 1 --formula-captions 2 -q REPORT
"""
#: Words that cases have in common. Counts are small: a record takes minutes.
SHORT = {
    "CALIBRATION": "--calibration emojicap --calibration-images 4",
    "QUIET": "CALIBRATION --no-preflight -q",
    "AVX2": "--target cpu-avx2 QUIET",
    "ENGINES": "--max-batch 8 --no-cache REPORT",
    "REPORT": "--report OUT.report.json",
    "PARITY": "--data emojicap --limit 40 --no-cache -q REPORT",
    "FIRST": "images_val.zip/val/fluent-emoji-flat_1f6fb.png",
    "SECOND": "images_val.zip/val/fluent-emoji-flat_1f461.png",
}
#: Options, or options with their value, and what other checkouts call them. The first spelling that
#: a command's --help knows is taken.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "--calibration-images": ("--calibration-image-count", "--image-count"),
    "--search-images": ("--search-image-count",),
    "--images": ("--image-count",),
    "--captions": ("--caption-count",),
    "--formula-captions": ("--formula-caption-count",),
    "--limit": ("--image-count",),
    **{f"--{name}": (f"--precision {name}",) for name in "fp16 bf16 fp32 int8 fp8".split()},
    **{
        f"--mode {name}": (f"--precision {name}",)
        for name in "int8-dynamic int8-static int8-weights int4-weights fp8".split()
    },
}


@dataclass(frozen=True)
class Case:
    """A command of :data:`CASES`, spelled for the program that is recorded.

    Attributes:
        name: Of the case, and of what it writes.
        words: Program, command, arguments.
        copied: The case whose output it starts from; None if it starts from nothing.
    """

    name: str
    words: tuple[str, ...]
    copied: str | None

    @property
    def needs(self) -> frozenset[str]:
        """Names of what must be there before it runs, among other words."""
        paths = {word.split("/")[0] for word in self.words} - {self.name}
        return frozenset(paths | ({self.copied} if self.copied else set()))


def read_cases(threads: int, help_of: Callable[[str, str], str]) -> list[Case]:
    """The table's commands.

    Args:
        threads: For ``--threads``.
        help_of: Gives the help of a program's command.

    Raises:
        SystemExit: if the program knows no spelling of an option.
    """
    cases = []
    for line in CASES.replace("\\\n", "").strip().splitlines():
        name, text = line.split(maxsplit=1)
        counted = not text.startswith("- ")
        text = text.removeprefix("- ")
        for _ in range(3):  # abbreviations hold abbreviations
            text = " ".join(SHORT.get(word, word) for word in text.split())
        copied = re.search(r"OUT<(\S+)", text)
        words = shlex.split(re.sub(r"\bOUT\b(<\S+)?", name, text))
        words += ["--threads", str(threads)] if counted else []
        spelled = spell(words[2:], help_of(words[0], words[1]))
        cases.append(Case(name, (*words[:2], *spelled), copied[1] if copied else None))
    return cases


def choose(cases: Sequence[Case], wanted: Callable[[str], bool]) -> list[Case]:
    """The cases whose names are wanted, and those that they need."""
    names: set[str] = set()
    for case in reversed(cases):
        if case.name in names or wanted(case.name):
            names |= {case.name, *case.needs}
    return [case for case in cases if case.name in names]


def spell(words: Sequence[str], known: str) -> Iterator[str]:
    """Options as the program calls them.

    Args:
        words: What follows the command's name.
        known: The command's help.

    Raises:
        SystemExit: if the help has no spelling of an option.
    """
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if rest and f"{word} {rest[0]}" in SPELLINGS:
            word = f"{word} {rest.pop(0)}"
        if not word.startswith("-"):
            yield word
            continue
        spellings = [one.split() for one in (word, *SPELLINGS.get(word, ()))]
        fitting = next((one for one in spellings if _is_known(known, *one)), None)
        if fitting is None:
            raise SystemExit(f"{word}: no option of the program; add its spelling to SPELLINGS")
        yield from fitting


def _is_known(known: str, option: str, value: str | None = None) -> bool:
    """Whether a help has an option, and among its choices the value."""
    found = re.search(rf"(?<![\w-]){option}(?![\w-])(?:\s+[<\[]([^>\]]*)[>\]])?", known)
    return found is not None and (value is None or value in (found[1] or "").split("|"))
