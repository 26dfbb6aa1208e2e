"""Load: what a session does when requests arrive as MLPerf's LoadGen sends them.

:mod:`~hat_export.loadgen.work` says what a request is, :mod:`~hat_export.loadgen.batching` collects
waiting requests to batches, :mod:`~hat_export.loadgen.scenarios` runs LoadGen's four scenarios,
:mod:`~hat_export.loadgen.summary` reads what LoadGen writes, :mod:`~hat_export.loadgen.report` shows it.
"""
