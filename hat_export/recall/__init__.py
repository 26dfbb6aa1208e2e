"""Does a candidate retrieve what the reference retrieves, and if not, which component lost it?

:mod:`~hat_export.recall.comparison` finds every rank that changed,
:mod:`~hat_export.recall.statistics` says how far the difference can be trusted,
:mod:`~hat_export.recall.budget` judges it, :mod:`~hat_export.recall.attribution` and
:mod:`~hat_export.recall.localize` name the culprit. :mod:`hat_export.parity` runs all of it.
"""
