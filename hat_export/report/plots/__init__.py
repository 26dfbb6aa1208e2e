"""Plots as inline SVG: no script, no file from elsewhere, light and dark by the page's colours.

A plot is a string that goes into a report's page (:class:`hat_export.report.report.Figure`).
Colours are the page's CSS variables, so that they follow the reader's theme; every text is escaped;
every mark carries its value as a ``<title>``, which browsers show under the pointer and screen
readers read.
"""
