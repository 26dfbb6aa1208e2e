"""Does a candidate retrieve what the reference retrieves, and if not, which component lost it?

:mod:`~hat_export.parity.embeddings` and :mod:`~hat_export.parity.scores` keep features and scores
in files, :mod:`~hat_export.parity.scorer_check` checks them against the sessions' own.
:mod:`~hat_export.parity.comparison` finds every rank that changed,
:mod:`~hat_export.parity.statistics` says how far the difference can be trusted,
:mod:`~hat_export.parity.top_k_overlap` how much of the ranking stays,
:mod:`~hat_export.parity.budget` judges it, :mod:`~hat_export.parity.attribution` names the
component and :mod:`~hat_export.parity.localize` the layer at fault, in graphs that
:mod:`~hat_export.parity.graphs` provides. :mod:`~hat_export.parity.changed_queries`,
:mod:`~hat_export.parity.tables`, :mod:`~hat_export.parity.gallery` and
:mod:`~hat_export.parity.diff` show it. :mod:`~hat_export.parity.run` runs all of it,
:mod:`~hat_export.parity.outcome` holds what it finds, :mod:`~hat_export.parity.report` tells it.
"""
