"""Load test: what a session does when requests arrive as MLPerf's LoadGen sends them.

:mod:`~hat_export.load_test.work` says what a request is,
:mod:`~hat_export.load_test.batching` collects waiting requests to batches,
:mod:`~hat_export.load_test.scenarios` runs LoadGen's four scenarios,
:mod:`~hat_export.load_test.summary` reads what LoadGen writes,
:mod:`~hat_export.load_test.report` shows it.
"""
