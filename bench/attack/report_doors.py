"""JSON that commands read back: plans and reports."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import samples
from doors import Door
from mutations import mutate_json


class PlanDoor(Door):
    name = "quantization plan"
    attack = "faults in the JSON"

    def prepare(self, work: Path) -> None:
        from hat_export.quantize.layers import find_layers, load_products

        self.bundle = work / samples.BUNDLE
        self.plan = json.loads((work / samples.PLAN).read_text())
        self.layers = [
            layer
            for name in ("image.onnx", "text.onnx")
            for layer in find_layers(load_products(self.bundle / name))
        ]

    def make(self, rng: Random, folder: Path) -> str:
        name, content = mutate_json(rng, self.plan)
        (folder / "plan.json").write_bytes(content)
        return name

    def open(self, folder: Path) -> None:
        from hat_export.quantize.plan import check_plan, read_plan

        plan = read_plan(folder / "plan.json")
        check_plan(plan, self.layers)
        plan.title()
        for name in plan.layers:
            plan.scheme_of(name)

    def command(self, folder: Path) -> list[str]:
        plan = ["--plan", str(folder / "plan.json"), "--no-preflight"]
        return ["hat-export", "quantize", str(self.bundle), str(folder / "out"), *plan]


class StateDoor(Door):
    name = "state of a quantization search"
    attack = "faults in the JSON"
    IDENTITY: ClassVar[dict[str, Any]] = {"source": "0" * 64, "images": 64, "keep": ["a"]}

    def prepare(self, work: Path) -> None:
        from hat_export.parity.statistics import RECALLS
        from hat_export.quantize.search_state import new_state

        self.bundle, self.data = work / samples.BUNDLE, work / samples.DATA
        delta = {"reference": 50.0, "candidate": 49.5, "low": -1.0, "high": 0.5, "spread": 0.1}
        delta |= dict.fromkeys(("lost", "gained", "p_value", "by_ties"))
        entry = {"name": "a", "plan": json.loads((work / samples.PLAN).read_text())}
        entry |= {"predicted": 0.1, "measured": 0.1, "bytes": 1000, "seconds": 0.1}
        entry |= {"deltas": dict.fromkeys((*RECALLS, "rsum"), delta), "verdict": "passed"}
        measured = {"noise": {"block": {"int8-weights": 0.1}}, "tried": [entry, entry]}
        self.state = new_state(self.IDENTITY) | measured

    def make(self, rng: Random, folder: Path) -> str:
        name, content = mutate_json(rng, self.state)
        (folder / "state.json").write_bytes(content)
        return name

    def open(self, folder: Path) -> None:
        from hat_export.quantize.search_state import read_state, restored

        for entry in read_state(folder / "state.json", self.IDENTITY)["tried"]:
            assert restored(entry["deltas"])["rsum"].candidate - entry["seconds"] < 1e308

    def command(self, folder: Path) -> list[str]:
        search = ["--max-drop", "rsum=5", "--calibration", str(self.data), "--split", "test"]
        state = ["--state", str(folder / "state.json"), "--no-preflight"]
        paths = [str(self.bundle), str(folder / "out")]
        return ["hat-export", "quantize", *paths, *search, *state]


class _ReportDoor(Door):
    attack = "faults in parity and latency reports"

    def prepare(self, work: Path) -> None:
        self.work = work
        self.reports = {
            name: json.loads((work / name).read_text())
            for name in (samples.PARITY, samples.LATENCY)
        }

    def make(self, rng: Random, folder: Path) -> str:
        kind = rng.choice(list(self.reports))
        name, content = mutate_json(rng, self.reports[kind])
        (folder / kind).write_bytes(content)
        return f"{kind.removesuffix('.json')}: {name}"


class CompareDoor(_ReportDoor):
    name = "report, compared"

    def open(self, folder: Path) -> None:
        from hat_export.benchmark.compare import compare_reports

        path = next(folder.glob("*.json"))
        for old, new in ((self.work / path.name, path), (path, path)):
            report = compare_reports(old, new, 0.02)
            report.to_html(), report.to_markdown(), report.to_json()

    def command(self, folder: Path) -> list[str]:
        path = next(folder.glob("*.json"))
        return ["hat-bench", "compare", str(self.work / path.name), str(path)]


class MergeDoor(_ReportDoor):
    name = "report, merged"

    def open(self, folder: Path) -> None:
        from hat_export.benchmark.latency.merge import merged_report

        path = next(folder.glob("*.json"))
        report = merged_report([self.work / samples.LATENCY, path])
        report.to_html(), report.to_markdown(), report.to_json()

    def command(self, folder: Path) -> list[str]:
        path = next(folder.glob("*.json"))
        page = ["--report", str(folder / "page.html")]
        return ["hat-bench", "report", str(self.work / samples.LATENCY), str(path), *page]
