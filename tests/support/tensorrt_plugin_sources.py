"""The Python sources of the real ``tensorrt.plugin``, run on a stub of TensorRT's native module.

The package ``tensorrt-cu13-bindings`` has them, and a native module that doesn't load without
TensorRT's libraries. What checks a plugin's functions and calls them is in Python, and runs here.
"""

from __future__ import annotations

import enum
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "tensorrt_bindings"


class DataType(enum.Enum):
    """As in TensorRT."""

    FLOAT = "float"
    HALF = "half"
    BF16 = "bf16"
    INT32 = "int32"
    INT64 = "int64"


class Expression:
    """A symbolic size that knows its value: ``IDimensionExpr``."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        """Whether the value is known when building."""
        return True

    def get_constant_value(self) -> int:
        """The value."""
        return self.value


class ExpressionBuilder:
    """``IExprBuilder``: computes at once."""

    def constant(self, value: int) -> Expression:
        """A number as an expression."""
        return Expression(value)

    def operation(self, op: str, first: Expression, second: Expression) -> Expression:
        """One operation."""
        a, b = first.value, second.value
        return Expression({"PROD": a * b, "CEIL_DIV": -(-a // b), "SUM": a + b}[op])


class Dims(tuple[int, ...]):
    """As in TensorRT."""

    MAX_DIMS = 8

    def __new__(cls, values: Any = ()) -> Dims:
        return super().__new__(cls, () if isinstance(values, int) else values)


class _Names(type):
    """Any name is there and stands for itself: enumerations."""

    def __getattr__(cls, name: str) -> str:
        return name


class DimensionOperation(metaclass=_Names):
    """As in TensorRT."""


class Logger(metaclass=_Names):
    """As in TensorRT."""

    def log(self, severity: str, message: str) -> None:
        """One message."""


class TensorRtModule(ModuleType):
    """``tensorrt`` as far as its plugin package needs it; what isn't here is an empty class."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.DataType = DataType
        self.float32, self.float16, self.bfloat16 = DataType.FLOAT, DataType.HALF, DataType.BF16
        self.int32, self.int64 = DataType.INT32, DataType.INT64
        self.Dims, self.Logger = Dims, Logger
        self.DimensionOperation = DimensionOperation
        self.IDimensionExpr = Expression
        self.__version__ = "11.4.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Names(name, (), {})
        setattr(self, name, made)
        return made


@contextmanager
def real_plugin_module() -> Iterator[tuple[TensorRtModule, Any]]:
    """The stub of ``tensorrt``, and the real ``tensorrt.plugin`` on it.

    Raises:
        ModuleNotFoundError: if the package isn't installed.
    """
    found = importlib.util.find_spec(NAME)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(NAME)
    before = dict(sys.modules)
    module = TensorRtModule()
    folder = Path(found.origin).parent / "plugin"
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    sys.modules |= {"tensorrt": module, "tensorrt.plugin": plugin}
    try:
        spec.loader.exec_module(plugin)
        yield module, plugin
    finally:
        for name in set(sys.modules) - set(before):
            if name.split(".")[0] == "tensorrt":
                del sys.modules[name]
