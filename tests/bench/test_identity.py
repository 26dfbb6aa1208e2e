"""``bench/identity``: what it calls equal, and that it finds small differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from places import BENCH, on_path

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def identity() -> Iterator[SimpleNamespace]:
    with on_path(BENCH / "identity"):
        import cases
        import comparison
        import forms

        yield SimpleNamespace(cases=cases, comparison=comparison, forms=forms)


def graph(prefix: str = "", backwards: bool = False, axis: int = 1, weight: float = 2.0) -> Any:
    """``softmax(x * weight) + softmax(x)``, with names and orders as asked for."""
    make, name = onnx.helper.make_node, lambda text: prefix + text
    nodes = [
        make("Mul", ["x", name("weight")], [name("scaled")], name=name("Mul")),
        make("Softmax", [name("scaled")], [name("one")], axis=axis),
        make("Softmax", ["x"], [name("two")], axis=1),
        make("Add", [name("one"), name("two")], ["y"]),
    ]
    weights = [
        onnx.numpy_helper.from_array(np.array(value, np.float32), name(key))
        for key, value in {"weight": [weight], "other": [3.0]}.items()
    ]
    if backwards:
        nodes = [nodes[2], nodes[0], nodes[1], nodes[3]]
        weights.reverse()
    x, y = (
        onnx.helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, ["images", 3])
        for key in "xy"
    )
    made = onnx.helper.make_graph(nodes, name("graph"), [x], [y], weights)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 23)])


def crossed() -> Any:
    """The same nodes, wired otherwise: ``softmax(x * weight) + softmax(x * weight)``."""
    made = graph()
    made.graph.node[2].input[0] = "scaled"
    return made


def test_names_and_order_do_not_matter_to_a_graph_s_form(identity: SimpleNamespace) -> None:
    form = identity.forms.canonical_form
    assert form(graph()) == form(graph("other.", backwards=True))


@pytest.mark.parametrize(
    "changed",
    [
        lambda: graph(weight=np.nextafter(np.float32(2), np.float32(3))),
        lambda: graph(axis=-1),
        crossed,
    ],
    ids=["weight", "attribute", "wiring"],
)
def test_a_graph_s_form_tells_small_changes(
    changed: Callable[[], Any], identity: SimpleNamespace
) -> None:
    assert identity.forms.canonical_form(graph()) != identity.forms.canonical_form(changed())


def test_options_are_spelled_as_the_program_knows_them(identity: SimpleNamespace) -> None:
    spell = identity.cases.spell
    old = "  --fp16   Half precision.\n  --mode <int8-dynamic|fp8>  How.\n  --limit <int>  Images."
    new = "  --precision [fp16|int8-dynamic]  What for.\n  --image-count <int>  Images."
    words = ["data", "--fp16", "--mode", "int8-dynamic", "--limit", "4"]
    assert list(spell(words, old)) == words
    assert list(spell(words, new)) == (
        "data --precision fp16 --precision int8-dynamic --image-count 4".split()
    )
    with pytest.raises(SystemExit, match="--mode fp8: no option"):
        list(spell(["--mode", "fp8"], new))


def record(**items: dict[str, Any]) -> dict[str, Any]:
    named = {f"case/{name}": item for name, item in items.items()}
    named["case/exit-status"] = {"bytes": "0"}
    return {"machine": {}, "versions": {}, "stripped": {}, "threads 1": {"items": named}}


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({"bytes": "a"}, {"bytes": "a"}, "equal"),
        ({"bytes": "a"}, {"bytes": "b"}, "differs"),
        ({"bytes": "a", "form": "f"}, {"bytes": "b", "form": "f"}, "equal form"),
        (
            {"bytes": "a", "form": "f", "results": "r"},
            {"bytes": "b", "form": "f", "results": "s"},
            "differs",
        ),
        (
            {"bytes": "a", "form": "f", "results": "r"},
            {"bytes": "b", "form": "g", "results": "r"},
            "differs",
        ),
        ({"bytes": "a"}, None, "missing"),
        (None, {"bytes": "a"}, "new"),
    ],
)
def test_verdicts(
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    verdict: str,
    identity: SimpleNamespace,
) -> None:
    compare, totals = identity.comparison.compare, identity.comparison.totals
    sides = [record(**({} if item is None else {"file": item})) for item in (before, after)]
    rows, _ = compare(*sides, [])
    assert [row.verdict for row in rows] == ["equal", verdict]
    assert rows[1].unexplained == (verdict in ("differs", "missing"))
    rows, warnings = compare(*sides, ["# why", "case/f* a reason", "nothing/* another"])
    assert not rows[1].unexplained
    assert "0 differences without a reason" in totals(rows)
    assert "no difference needs the reason of nothing/*" in warnings


def test_arrays_may_become_safetensors(identity: SimpleNamespace) -> None:
    arrays = {"form": {"level1": "h"}, "results": "r"}
    old = record(**{"projections.npz": {"bytes": "a", **arrays}})
    new = record(**{"projections.safetensors": {"bytes": "b", **arrays}})
    rows, _ = identity.comparison.compare(old, new, [])
    assert [(row.verdict, row.what) for row in rows] == [
        ("equal", ""),
        ("equal form", "now projections.safetensors"),
    ]


def test_a_case_that_was_not_recorded_is_told(identity: SimpleNamespace) -> None:
    old, new = record(file={"bytes": "a"}), record(file={"bytes": "a"})
    old["threads 1"]["items"]["other/file"] = {"bytes": "a"}
    rows, warnings = identity.comparison.compare(old, new, [])
    assert {row.verdict for row in rows} == {"equal"}
    assert warnings == ["threads 1: only one record has other"]
