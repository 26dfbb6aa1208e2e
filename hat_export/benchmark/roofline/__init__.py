"""The least time that a call can take on this machine, and what keeps it from taking less.

:mod:`~hat_export.benchmark.roofline.products` lists the matrix products of an encoder,
:mod:`~hat_export.benchmark.roofline.libraries` computes them by every BLAS at hand,
:mod:`~hat_export.benchmark.roofline.machine` measures products and memory bandwidth in a process of
its own, :mod:`~hat_export.benchmark.roofline.bound` puts both together, with a sentence of advice.
"""
