"""Latency of sessions, measured so that an engineer would sign the figures.

:mod:`~hat_export.latency.cases` makes calls out of sessions, :mod:`~hat_export.latency.measure`
times them in turn, :mod:`~hat_export.latency.statistics` says how far the times can be trusted,
:mod:`~hat_export.latency.process` measures start and memory in processes of their own,
:mod:`~hat_export.latency.record` keeps it all as JSON, :mod:`~hat_export.latency.report` shows it,
:mod:`~hat_export.latency.compare` judges two runs.
"""
