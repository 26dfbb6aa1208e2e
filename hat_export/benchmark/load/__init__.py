"""Load test: what a session does when requests arrive as MLPerf's LoadGen sends them.

:mod:`~hat_export.benchmark.load.work` says what a request is,
:mod:`~hat_export.benchmark.load.batching` collects waiting requests to batches,
:mod:`~hat_export.benchmark.load.scenarios` runs LoadGen's four scenarios,
:mod:`~hat_export.benchmark.load.summary` reads what LoadGen writes,
:mod:`~hat_export.benchmark.load.report` shows it.
"""
