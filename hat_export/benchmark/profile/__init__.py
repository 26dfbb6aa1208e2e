"""Where the time of an encoder goes: the runtime's own profile, mapped back to the model's layers.

:mod:`~hat_export.benchmark.profile.trace` reads ONNX Runtime's profiles,
:mod:`~hat_export.benchmark.profile.report` adds up operators and layers and draws the flame view.
"""
