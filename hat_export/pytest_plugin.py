"""A pytest fixture with which users gate their own tests on recall.

pytest finds it wherever hat-export is installed:

    def test_the_export_retrieves_the_same(assert_parity):
        outcome = hat_export.check_parity("hat.ckpt", "bundle/", "dataset_flickr30k.json")
        assert_parity(outcome, report="parity.html")
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hat_export.parity.outcome import ParityOutcome


def fail_without_parity(
    outcome: ParityOutcome, report: Path | str | None = None, allow_undecided: bool = False
) -> None:
    """Fail the test unless the candidate is shown to keep the budget.

    Args:
        outcome: From :func:`hat_export.check_parity`.
        report: Where to write the report, ``.json``, ``.md`` or ``.html``; whatever the verdict.
        allow_undecided: Whether a budget that too few queries can decide on is let pass.
    """
    __tracebackhide__ = True
    from hat_export.parity.budget import Verdict
    from hat_export.parity.report import parity_report
    from hat_export.report.report import write_report

    result = parity_report(outcome)
    if report is not None:
        write_report(result, Path(report))
    if not outcome.passed and not (allow_undecided and outcome.verdict is Verdict.undecided):
        pytest.fail("\n".join(result.summary), pytrace=False)


@pytest.fixture(scope="session")
def assert_parity() -> Callable[..., None]:
    """:func:`fail_without_parity`, to be called in a test."""
    return fail_without_parity
