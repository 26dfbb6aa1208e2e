"""Intervals and verdicts against what is known: quantiles of tables, error rates of simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hat_export.benchmark.latency.compare import (
    Change,
    compare_runs,
    comparison_report,
    passes_wanted,
)
from hat_export.benchmark.latency.statistics import (
    Passes,
    Sides,
    block_length,
    draw,
    median_interval,
    paired_ratio,
    quantiles,
    ratios_of_runs,
    student_quantile,
)
from hat_export.errors import InputError
from latency_samples import made_up_case, made_up_run


def test_quantiles() -> None:
    found = quantiles([index / 1000 for index in range(1, 102)])
    assert found["p50_ms"] == pytest.approx(51)
    assert found["p90_ms"] == pytest.approx(91)
    assert found["p95_ms"] == pytest.approx(96)
    assert found["p99_ms"] == pytest.approx(100)
    assert (found["min_ms"], found["max_ms"]) == pytest.approx((1, 101))
    assert found["mean_ms"] == pytest.approx(51)
    assert found["cv"] == pytest.approx(math.sqrt((101**2 - 1) / 12) / 51)


def test_rounds_are_drawn_in_blocks_that_stay_in_their_pass() -> None:
    drawn = draw([9, 16, 16], 50)
    length = block_length(16)
    assert length == 4
    assert drawn.min() >= 0
    assert drawn.max() < 41
    limits = ((0, 9), (9, 25), (25, 41))
    for row in drawn:
        for block in row.reshape(-1, length):
            first, last = next(pair for pair in limits if pair[0] <= block[0] < pair[1])
            steps = (block - first - (block[0] - first)) % (last - first)
            assert steps.tolist() == list(range(length))


def test_intervals_of_medians_hold_the_truth_as_often_as_they_say() -> None:
    """Of 300 made-up runs; a bootstrap of only five passes is known to be a bit narrow."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        passes = 10 * np.exp(random.normal(0, 0.02, (5, 1)) + random.normal(0, 0.02, (5, 20)))
        interval = median_interval(passes.tolist())
        held += interval.low <= 10 <= interval.high
    assert 240 <= held <= 297


def test_common_noise_cancels_in_a_ratio_of_one_run() -> None:
    random = np.random.default_rng(2)
    weather = np.exp(random.normal(0, 0.3, (3, 20)))
    first = (2 * weather * np.exp(random.normal(0, 0.005, (3, 20)))).tolist()
    second = (1 * weather * np.exp(random.normal(0, 0.005, (3, 20)))).tolist()
    ratio = paired_ratio(first, second)
    assert ratio.low < 2 < ratio.high or abs(ratio.value - 2) < 0.02
    assert ratio.high / ratio.low < 1.2
    alone = median_interval(first)
    assert alone.high / alone.low > 1.1


@pytest.mark.parametrize(
    ("share", "degrees", "expected"),
    [
        (0.975, 8, 2.306),
        (0.975, 12, 2.179),
        (0.975, 30, 2.042),
        (0.995, 10, 3.169),
        (0.9995, 12, 4.318),
        (0.5, 9, 0.0),
    ],
)
def test_student_quantiles_as_in_tables(share: float, degrees: int, expected: float) -> None:
    assert student_quantile(share, degrees) == pytest.approx(expected, rel=5e-3, abs=1e-9)


def sides(random, change: float, follows: float, machine: float, passes: int = 3) -> Sides:
    """A case whose target follows its anchor's unrest by a share, on a machine that changes."""
    made = []
    for shift, level in ((0.0, 0.0), (change, machine)):
        anchor = level + random.normal(0, 0.03, passes)
        target = shift + level + follows * (anchor - level) + random.normal(0, 0.02, passes)
        made.append(Passes(tuple(target), tuple(anchor)))
    return Sides(*made)


@pytest.mark.parametrize(
    ("follows", "machine"), [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.3), (1.0, -0.2)]
)
def test_ratios_of_runs_hold_the_truth_as_often_as_they_say(follows: float, machine: float) -> None:
    """8 cases of 3 passes a run, 300 pairs of runs: all eight intervals at once, 95 %."""
    random = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        cases = [sides(random, 0.1, follows, machine) for _ in range(8)]
        found = ratios_of_runs(cases, 1 - 0.05 / 8)
        held += all(ratio.low <= math.exp(0.1) <= ratio.high for ratio in found)
    assert held >= 0.93 * 300


def test_an_unrestful_anchor_adds_little_noise() -> None:
    random = np.random.default_rng(4)
    cases = [
        Sides(
            *(
                Passes(tuple(random.normal(0, 0.01, 3)), tuple(random.normal(0, 0.2, 3)))
                for _ in range(2)
            )
        )
        for _ in range(8)
    ]
    assert all(ratio.high / ratio.low < 1.12 for ratio in ratios_of_runs(cases, 0.95))


def test_a_restless_case_does_not_hide_behind_quiet_ones() -> None:
    still = (0.0, 0.0, 0.0)
    calm = Passes((0.0, 0.001, -0.001), still)
    quiet = [Sides(calm, calm) for _ in range(9)]
    restless = Sides(Passes((0.0, 0.3, -0.3), still), Passes((0.2, 0.5, -0.1), still))
    ratio = ratios_of_runs([*quiet, restless], 0.95)[-1]
    assert ratio.low < 1 < ratio.high


COMPONENTS = ("preprocessing", "images", "texts", "scores", "end to end")


def run(seed: int, factor: float = 1.0, machine: float = 1.0, slowed: str = "texts"):
    return made_up_run(
        *(
            made_up_case(
                10 * (factor if name == slowed else 1.0),
                component=name,
                seed=100 * seed + place,
                machine=machine,
            )
            for place, name in enumerate(COMPONENTS)
        )
    )


def test_equals_are_not_called_different_even_on_a_slower_machine() -> None:
    false_alarms = 0
    for seed in range(100):
        changes = compare_runs(run(2 * seed), run(2 * seed + 1, machine=1.4))
        false_alarms += any(change.verdict != "no difference" for change in changes)
    assert false_alarms <= 5


def test_a_slowdown_is_found_in_its_case_alone() -> None:
    old, new = run(1), run(2, factor=1.1)
    changes = compare_runs(old, new)
    verdicts = {change.case.component: change.verdict for change in changes}
    assert verdicts == dict.fromkeys(COMPONENTS, "no difference") | {"texts": "slower"}
    slower = next(change for change in changes if change.verdict == "slower")
    assert slower.ratio.low < 1.1 < slower.ratio.high
    report = comparison_report(old, new, changes, ("old", "new"), 0.02)
    assert report.passed is False
    assert report.summary[0] == "1 of 5 cases slower, 0 faster, 4 without a difference."
    back = compare_runs(new, old)
    assert [change.verdict for change in back].count("faster") == 1
    assert comparison_report(new, old, back, ("new", "old"), 0.02).passed is True


def test_a_change_within_the_margin_is_of_no_interest() -> None:
    old = made_up_run(made_up_case(10, noise=1e-4))
    new = made_up_run(made_up_case(10.3, noise=1e-4, seed=1))
    assert compare_runs(old, new)[0].verdict == "slower"
    assert compare_runs(old, new, margin=0.05)[0].verdict == "no difference"


def test_the_passes_that_are_advised_find_a_slowdown_of_a_tenth() -> None:
    def pair(passes: int, seed: int) -> list[Change]:
        old, new = (
            made_up_run(made_up_case(at, noise=0.05, passes=passes, seed=seed + place))
            for place, at in enumerate((10, 11))
        )
        return compare_runs(old, new)

    wanted = [passes_wanted(pair(4, 2 * seed), 0.02) for seed in range(50)]
    usual = sorted(count for count in wanted if count)[25]
    assert usual > 4
    found = sum(pair(usual, 1000 + 2 * seed)[0].verdict == "slower" for seed in range(100))
    assert 80 <= found < 100
    assert sum(pair(4, 1000 + 2 * seed)[0].verdict == "slower" for seed in range(100)) < 60


def test_a_comparison_says_how_many_passes_it_wants() -> None:
    old, new = (made_up_run(made_up_case(10, noise=0.05, seed=seed)) for seed in range(2))
    changes = compare_runs(old, new)
    report = comparison_report(old, new, changes, ("old", "new"), 0.02)
    wanted = passes_wanted(changes, 0.02)
    assert f"it takes about --passes {wanted} in both runs" in report.summary[1]
    assert report.data["passes_wanted"] == wanted
    quiet = [made_up_run(made_up_case(10, noise=1e-3, seed=seed)) for seed in range(2)]
    calm = comparison_report(*quiet, compare_runs(*quiet), ("old", "new"), 0.02)
    assert calm.summary[1].startswith("At this noise a slowdown of 10% in any case would be found")
    assert passes_wanted(changes, 0.1) is None
    assert len(comparison_report(old, new, changes, ("old", "new"), 0.1).summary) == 1


def test_other_names_belong_together_only_if_they_are_alone() -> None:
    one, other = made_up_run(made_up_case(10)), made_up_run(made_up_case(10, "b"))
    assert len(compare_runs(one, other)) == 1
    two = made_up_run(made_up_case(10, "b"), made_up_case(10, "c"))
    with pytest.raises(InputError, match="no case in common"):
        compare_runs(one, two)
    assert len(compare_runs(one, two, pairs=[("a", "c")])) == 1


def test_what_can_not_be_compared_is_an_error() -> None:
    one = made_up_run(made_up_case(10))
    with pytest.raises(InputError, match="no case in common"):
        compare_runs(one, made_up_run(made_up_case(10, size="8")))
    single = made_up_run(made_up_case(10, passes=1))
    with pytest.raises(InputError, match="one pass only"):
        compare_runs(single, single)


def test_the_cause_may_lie_in_the_versions() -> None:
    old, new = made_up_run(made_up_case(10)), made_up_run(made_up_case(10, seed=1))
    other = type(new)(new.timings, new.targets, new.settings, {"versions": {"numpy": "3"}})
    report = comparison_report(old, other, compare_runs(old, other), ("o", "n"), 0.02)
    assert "The versions differ: numpy 2 -> 3." in report.summary
