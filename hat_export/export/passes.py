"""The base of every rewrite of an ONNX graph, which checks each before and after.

A pass is one method, :meth:`Pass.rewrite`: given a model, it returns another and whether anything
changed. It states what it takes (:meth:`Pass.requires`) and what it gives (:meth:`Pass.ensures`);
whoever calls the pass gets both checked, and what holds for all passes besides: the model handed in
stays as it is, inputs and outputs stay, every value is made before it is read and has one name, no
stored tensor is left over, and the report counts what was really done. A report also says what was
looked at and left alone, and why.
"""

from __future__ import annotations

import hashlib
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import onnx

from hat_export.errors import PassError


@dataclass
class Report:
    """What a pass did.

    Attributes:
        name: The pass.
        counts: How often it rewrote what, mostly by the operator that it wrote.
        left: Name of a node that it looked at and left alone to the reason.
        change: By how many nodes of a type the graph grew or (negative) shrank; measured on the
            graphs, not told by the pass.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    left: dict[str, str] = field(default_factory=dict)
    change: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of_built(cls, model: onnx.ModelProto) -> Report:
        """What was written into a graph that no pass has been over."""
        return cls("build", change=_operators(model))


class Result(NamedTuple):
    """What a pass gives.

    Attributes:
        model: The new model; where nothing changed it may be the one handed in.
        modified: Whether anything changed.
        report: What was done.
    """

    model: onnx.ModelProto
    modified: bool
    report: Report


class Pass(ABC):
    """A rewrite of a graph; what it needs besides the model is given to its constructor."""

    #: Operators that the pass writes: of each the graph has as many more as the report counts.
    operators: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """What reports and errors call it."""
        return type(self).__name__

    def requires(self, model: onnx.ModelProto) -> Iterator[str]:
        """What a model lacks that the pass needs; nothing if the pass can be applied.

        Args:
            model: What :meth:`rewrite` would get.
        """
        yield from ()

    @abstractmethod
    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        """Apply the pass; called through the pass itself, which checks it.

        Args:
            model: Must not be changed.
            report: Where counts and reasons go.

        Returns:
            The new model, and whether it differs.
        """

    def ensures(self, model: onnx.ModelProto) -> Iterator[str]:
        """What a result has that it must not have, or the other way round; nothing if it is right.

        Args:
            model: What :meth:`rewrite` gave.
        """
        yield from ()

    def __call__(self, model: onnx.ModelProto) -> Result:
        """Check, apply, check.

        Raises:
            PassError: if the model isn't what the pass takes, or the result not what it promises.
        """
        _demand(
            self.requires(model),
            f"{self.name} can't be applied to the graph {model.graph.name!r}: ",
            "; export the checkpoint again with this version",
        )
        before = _fingerprint(model)
        report = Report(self.name)
        result, modified = self.rewrite(model, report)
        report.change = _operators(result)
        report.change.subtract(_operators(model))
        _demand(
            self._broken(before, model, result, modified, report),
            f"{self.name} broke the graph {model.graph.name!r}: ",
            "; nothing was written. This is a fault of hat-export, please report it",
        )
        return Result(result, modified, report)

    def _broken(
        self,
        before: str,
        model: onnx.ModelProto,
        result: onnx.ModelProto,
        modified: bool,
        report: Report,
    ) -> Iterator[str]:
        if _fingerprint(model) != before:
            yield "it changed the model that it was given"
        if modified != bool(report.counts.total()):
            yield f"it says {'' if modified else 'not '}modified and counts {dict(report.counts)}"
        if not modified and result is not model and _fingerprint(result) != before:
            yield "it says not modified and gives another graph"
        for what in ("input", "output"):
            old, new = (
                [value.SerializeToString() for value in getattr(each.graph, what)]
                for each in (model, result)
            )
            if old != new:
                yield f"its {what}s aren't those of the graph before"
        for operator in self.operators:
            if report.change[operator] != report.counts[operator]:
                yield (
                    f"it counts {report.counts[operator]} {operator}, the graph has "
                    f"{report.change[operator]} more than before"
                )
        if modified:
            yield from faults(result)
        yield from self.ensures(result)


def run_passes(
    passes: Iterable[Pass], model: onnx.ModelProto
) -> tuple[onnx.ModelProto, list[Report]]:
    """Apply passes one after the other.

    Args:
        passes: In this order.
        model: Not changed.

    Returns:
        The last result, and the report of each pass.

    Raises:
        PassError: as :meth:`Pass.__call__`.
    """
    reports = []
    for each in passes:
        model, _, report = each(model)
        reports.append(report)
    return model, reports


def count_operators(operators: Sequence[str], reports: Iterable[Report]) -> int:
    """How many nodes of some types a graph has more, by what the passes over it reported.

    Args:
        operators: The types.
        reports: Of the passes; with that of the build first, it is how many the graph has.
    """
    return sum(report.change[kind] for report in reports for kind in operators)


def older_opset(model: onnx.ModelProto, version: int) -> Iterator[str]:
    """Yields a sentence if the model is of an opset before ``version``."""
    found = next((item.version for item in model.opset_import if not item.domain), 0)
    if found < version:
        yield f"it is of opset {found}, expected {version} or newer"


def unnamed_nodes(model: onnx.ModelProto) -> Iterator[str]:
    """Yields a sentence if nodes have no name, or share one."""
    names = Counter(node.name for node in model.graph.node)
    if "" in names:
        yield f"{names['']} of its nodes have no name"
    yield from (f"{count} nodes are named {name}" for name, count in names.items() if count > 1)


def remaining(model: onnx.ModelProto, operators: Sequence[str]) -> Iterator[str]:
    """Yields a sentence if the model holds operators that it must not hold."""
    names = [node.name for node in model.graph.node if node.op_type in operators]
    if names:
        yield f"{len(names)} {' or '.join(operators)} are left, the first {names[0]}"


def faults(model: onnx.ModelProto) -> Iterator[str]:
    """Yields what makes a graph one that no runtime takes: names, order, left-over tensors."""
    stored = [tensor.name for tensor in model.graph.initializer]
    known = Counter([*stored, *(value.name for value in model.graph.input)])
    read: set[str] = set()
    for node in model.graph.node:
        for value in node.input:
            read.add(value)
            if value and value not in known:
                yield f"{node.name or node.op_type} reads {value} before it is made"
        known.update(value for value in node.output if value)
    yield from (f"{count} values are named {name}" for name, count in known.items() if count > 1)
    yield from (
        f"no node makes the output {value.name}"
        for value in model.graph.output
        if value.name not in known
    )
    unread = [name for name in stored if name not in read]
    if unread:
        yield f"{len(unread)} stored tensors are never read, the first {unread[0]}"
    names = Counter(node.name for node in model.graph.node if node.name)
    yield from (f"{count} nodes are named {name}" for name, count in names.items() if count > 1)


def _demand(unmet: Iterable[str], beginning: str, end: str) -> None:
    sentences = list(unmet)
    if sentences:
        raise PassError(f"{beginning}{'; '.join(sentences[:3])}{end}")


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def _fingerprint(model: onnx.ModelProto) -> str:
    """Of everything in a model; tensors one at a time, so that memory stays bounded."""
    digest = hashlib.sha256()
    graph = model.graph
    for item in (
        *model.opset_import,
        *model.metadata_props,
        *graph.node,
        *graph.input,
        *graph.output,
    ):
        digest.update(item.SerializeToString(deterministic=True))
    for tensor in graph.initializer:
        content = tensor.SerializeToString(deterministic=True)
        digest.update(f"{tensor.name} {len(content)} {zlib.crc32(content)} ".encode())
    return digest.hexdigest()
