"""Bundles with quantized encoders: what to quantize how, with which ranges, and what it costs.

:mod:`~hat_export.quantize.schemes` lists number formats and machines,
:mod:`~hat_export.quantize.layers` finds what can be quantized in a graph,
:mod:`~hat_export.quantize.calibration` watches activations,
:mod:`~hat_export.quantize.smoothing` moves outliers from activations into weights,
:mod:`~hat_export.quantize.rewrite` applies a :mod:`~hat_export.quantize.plan` to a graph,
:mod:`~hat_export.quantize.bundles` makes the bundle, :mod:`~hat_export.quantize.search` finds the
plan that a recall budget allows, and :mod:`~hat_export.quantize.preflight` measures beforehand what
the machine gains by it.
"""
