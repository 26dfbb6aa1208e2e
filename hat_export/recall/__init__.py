"""Does a candidate retrieve what the reference retrieves, and if not, which component lost it?

:mod:`~hat_export.recall.embeddings` and :mod:`~hat_export.recall.scores` keep features and scores
in files, :mod:`~hat_export.recall.scorers` checks them against the sessions' own.
:mod:`~hat_export.recall.comparison` finds every rank that changed,
:mod:`~hat_export.recall.statistics` says how far the difference can be trusted,
:mod:`~hat_export.recall.kept` how much of the ranking stays,
:mod:`~hat_export.recall.budget` judges it, :mod:`~hat_export.recall.attribution` names the
component and :mod:`~hat_export.recall.localize` the layer at fault, in graphs that
:mod:`~hat_export.recall.graphs` provides. :mod:`~hat_export.recall.changes`,
:mod:`~hat_export.recall.tables`, :mod:`~hat_export.recall.gallery` and
:mod:`~hat_export.recall.two_reports` show it. :mod:`hat_export.parity` runs all of it.
"""
