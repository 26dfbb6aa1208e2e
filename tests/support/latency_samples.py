"""Made-up latency runs for tests: known medians, noise and passes."""

from __future__ import annotations

import numpy as np

from hat_export.benchmark.latency.measure import Pass
from hat_export.benchmark.latency.record import Measured, Run

ENVIRONMENT = {"machine": {"cpu": "x", "load_average": 1.0}, "versions": {"numpy": "2"}}


def made_up_case(
    milliseconds: float,
    target: str = "a",
    component: str = "images",
    size: str = "1",
    passes: int = 3,
    rounds: int = 12,
    seed: int = 0,
    machine: float = 1.0,
    noise: float = 0.01,
    stable: bool = True,
) -> Measured:
    """A case whose passes and rounds scatter; ``machine`` slows it and its anchor alike."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(passes):
        level = milliseconds / 1e3 * machine * float(np.exp(random.normal(0, noise)))
        calls = level * np.exp(random.normal(0, noise, (rounds, 3)))
        anchor = 2e-3 * machine * np.exp(random.normal(0, noise / 3, rounds))
        made.append(
            Pass(
                tuple(tuple(map(float, row)) for row in calls),
                tuple((0.0,) * 3 for _ in calls),
                tuple(map(float, anchor)),
                6,
                stable,
                0.01,
            )
        )
    return Measured(target, component, size, 2, 1, tuple(made))


def made_up_run(*cases: Measured) -> Run:
    """A run of some cases."""
    names = dict.fromkeys(case.target for case in cases)
    targets = tuple({"name": name, "bytes": 5_000_000, "starts": []} for name in names)
    return Run(cases, targets, {"passes": 3}, ENVIRONMENT)
