"""Latency of sessions, with confidence intervals.

:mod:`~hat_export.benchmark.latency.cases` makes calls out of sessions,
:mod:`~hat_export.benchmark.latency.measure` times them in turn by :mod:`hat_export.base.timer`,
:mod:`~hat_export.benchmark.latency.run` does so for every target and pass,
:mod:`~hat_export.benchmark.latency.statistics` says how far the times can be trusted,
:mod:`~hat_export.benchmark.latency.targets` and :mod:`~hat_export.benchmark.latency.process` find
size, start and memory, :mod:`~hat_export.benchmark.latency.bounds` what the machine allows.
:mod:`~hat_export.benchmark.latency.record` keeps it all as JSON,
:mod:`~hat_export.benchmark.latency.report` and :mod:`~hat_export.benchmark.latency.figures` show
it, :mod:`~hat_export.benchmark.latency.compare` judges two runs,
:mod:`~hat_export.benchmark.latency.merge` puts several side by side.
"""
