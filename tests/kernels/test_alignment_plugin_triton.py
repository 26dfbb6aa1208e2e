"""The TensorRT plugin of the alignment: its kernel for real, its descriptors against a stub."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from triton.backends.nvidia.compiler import get_ptxas

from hat_export.errors import BackendUnavailableError, EngineError
from hat_export.kernels.alignment_plugin_triton import (
    PluginKernel,
    compile_plugin_kernel,
    without_hidden_parameters,
)
from hat_export.runtime.trt_library import TensorRT
from hat_export.tensorrt.alignment_plugin import (
    PLUGIN_ID,
    LevelShape,
    add_alignment,
    plugin_module,
    register_alignment_plugin,
)
from tensorrt_plugin_sources import Expression, ExpressionBuilder, real_plugin_module

LAMBDA = 9.0
TRT = SimpleNamespace(float16="half", bfloat16="bf16", float32="float")


@dataclass(frozen=True)
class Size:
    """A symbolic size with a value to check expressions by."""

    value: int

    def __mul__(self, other: Size) -> Size:
        return Size(self.value * other.value)


@dataclass
class TensorDesc:
    shape_expr: tuple[Size, ...]
    dtype: str = "float"
    shape: tuple[int, ...] = ()


class AutoTuneCombination:
    def __init__(self) -> None:
        self.types: dict[int, str] = {}

    def pos(self, positions: list[int], types: str) -> None:
        for position in positions:
            self.types[position] = types


@dataclass
class PluginStub:
    """``tensorrt.plugin`` as far as a registration goes; checks what the real one checks."""

    TensorDesc: Any = TensorDesc
    AutoTuneCombination: Any = AutoTuneCombination
    KernelLaunchParams: Any = SimpleNamespace
    op: Any = field(default_factory=SimpleNamespace)
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    attributes: list[str] = field(default_factory=list)

    def register(self, plugin_id: str, lazy_register: bool) -> Callable[..., Any]:
        assert plugin_id == PLUGIN_ID
        assert lazy_register

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(function)
            kinds = [parameter.annotation for parameter in signature.parameters.values()]
            tensors = kinds.index(next(kind for kind in kinds if kind is not TensorDesc))
            # Tensors come first, then attributes of plain types, all with hints that are types.
            assert all(kind is TensorDesc for kind in kinds[:tensors])
            assert all(kind in (int, float, str, bool, bytes) for kind in kinds[tensors:])
            assert signature.return_annotation is TensorDesc
            self.attributes = list(signature.parameters)[tensors:]
            self.functions["register"] = function
            return function

        return decorate

    def _keep(self, kind: str, ending: list[str]) -> Callable[[str], Callable[..., Any]]:
        def accept(plugin_id: str) -> Callable[..., Any]:
            def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
                described = list(inspect.signature(self.functions["register"]).parameters)
                names = list(inspect.signature(function).parameters)
                hinted = [name for name in function.__annotations__ if name != "return"]
                assert not hinted, "every hint has to be one of TensorRT's own types"
                tensors = described[: len(described) - len(self.attributes)]
                assert names[: len(tensors)] == tensors
                assert names[-len(ending) :] == ending
                assert set(names[len(tensors) : -len(ending)]) <= set(self.attributes)
                self.functions[kind] = function
                return function

            return decorate

        return accept

    @property
    def autotune(self) -> Callable[[str], Callable[..., Any]]:
        return self._keep("autotune", ["outputs"])

    @property
    def aot_impl(self) -> Callable[[str], Callable[..., Any]]:
        return self._keep("aot_impl", ["outputs", "tactic"])

    @staticmethod
    def from_shape_expr(shape: tuple[Size, ...], dtype: str) -> TensorDesc:
        return TensorDesc(shape, dtype)

    @staticmethod
    def cdiv(size: Size, step: int) -> Size:
        return Size(-(-size.value // step))

    @staticmethod
    def SymInt32(size: Size) -> Size:  # noqa: N802 (the library's name)
        return size

    @staticmethod
    def SymIntExprs(length: int) -> list[Any]:  # noqa: N802 (the library's name)
        return [None] * length


def tensors(images: int, captions: int, regions: int, width: int) -> list[TensorDesc]:
    def make(*shape: int, dtype: str = "half") -> TensorDesc:
        fixed = tuple(size if place else -1 for place, size in enumerate(shape))
        return TensorDesc(tuple(map(Size, shape)), dtype, fixed)

    return [
        make(images, regions, width),
        make(images, regions, dtype="float"),
        make(99, width),
        make(captions, 30, 30, dtype="float"),
        make(captions + 1, dtype="int64"),
        make(captions, dtype="int32"),
    ]


@pytest.fixture(scope="module")
def plugin() -> PluginStub:
    stub = PluginStub()
    register_alignment_plugin(TRT, stub, capability=80)
    return stub


def test_the_output_is_images_by_captions(plugin: PluginStub) -> None:
    output = plugin.functions["register"](*tensors(5, 7, 196, 512), slot=32, softmax_lambda=LAMBDA)
    assert output == TensorDesc((Size(5), Size(7)), "float")


def test_regions_and_words_may_be_in_any_float_type_the_rest_is_fixed(plugin: PluginStub) -> None:
    (combination,) = plugin.functions["autotune"](*tensors(5, 7, 196, 512), outputs=[])
    assert combination.types == {
        **dict.fromkeys((0, 2), "FP16|BF16|FP32"),
        **dict.fromkeys((1, 3, 6), "FP32"),
        4: "INT64",
        5: "INT32",
    }


def test_the_kernel_is_compiled_with_its_launch_and_sizes(plugin: PluginStub) -> None:
    name, ptx, launch, sizes = plugin.functions["aot_impl"](
        *tensors(5, 7, 196, 512), slot=32, softmax_lambda=LAMBDA, outputs=[], tactic=0
    )
    assert f".entry {name}(" in ptx
    # Two captions a program: ceil(7 / 2) of them for each of 5 images.
    assert launch.grid_x == Size(5 * 4)
    assert launch.block_x == 256
    assert 0 < launch.shared_mem <= 99 * 1024
    assert [size.value for size in sizes] == [5, 7, 196, 512, 30]


@pytest.fixture(scope="module")
def kernel() -> PluginKernel:
    return compile_plugin_kernel(80, "fp16", 512, 196, 32, LAMBDA)


def test_parameters_are_inputs_then_sizes_then_the_output(kernel: PluginKernel) -> None:
    entry = re.search(r"\.visible \.entry \w+\((.*?)\)", kernel.ptx, re.DOTALL)
    assert entry is not None
    kinds = re.findall(r"\.param \.(u\d+)", entry[1])
    assert kinds == ["u64"] * 6 + ["u32"] * 5 + ["u64"]


def test_the_code_without_hidden_parameters_still_assembles(
    kernel: PluginKernel, tmp_path: Path
) -> None:
    (tmp_path / "kernel.ptx").write_text(kernel.ptx)
    assembled = tmp_path / "kernel.cubin"
    subprocess.run(
        [get_ptxas(80).path, "--gpu-name=sm_80", tmp_path / "kernel.ptx", "-o", assembled],
        check=True,
        capture_output=True,
    )
    assert assembled.stat().st_size > 1000


def test_scratch_memory_in_use_is_an_error() -> None:
    ptx = (
        ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n"
        "{ ld.param.u64 %rd1, [k_param_1]; }"
    )
    with pytest.raises(EngineError, match=r"scratch memory \(k_param_1\)"):
        without_hidden_parameters(ptx, 1)
    with pytest.raises(EngineError, match="has 2 parameters; expected 3"):
        without_hidden_parameters(ptx, 3)
    assert without_hidden_parameters(ptx, 2) == ptx


def test_a_layer_is_added_ahead_of_time(plugin: PluginStub) -> None:
    made = {}

    def add_plugin(created: Any, aot: bool) -> Any:
        made["created"], made["aot"] = created, aot
        return SimpleNamespace(get_output=lambda index: f"output {index}")

    plugin.op = SimpleNamespace(
        hat_export=SimpleNamespace(alignment_i2t=lambda *inputs, **attributes: (inputs, attributes))
    )
    output = add_alignment(
        plugin, SimpleNamespace(add_plugin=add_plugin), list("abcdef"), LevelShape(49, 768, 32, 9)
    )
    assert output == "output 0"
    assert made["aot"] is True
    assert made["created"] == (tuple("abcdef"), {"slot": 32, "softmax_lambda": 9.0})


def test_a_library_without_such_plugins_is_refused() -> None:
    module = ModuleType("json")  # a package that has no "plugin" inside
    module.__dict__["__version__"] = "1.7"
    with pytest.raises(BackendUnavailableError, match="needs full TensorRT"):
        plugin_module(TensorRT("tensorrt-rtx", module))


def test_the_sources_of_the_real_library_accept_and_call_it() -> None:
    """TensorRT's own checks of hints, types and results, and the sizes that a launch gets."""
    with suppress(ModuleNotFoundError), real_plugin_module() as (trt, real):
        register_alignment_plugin(trt, real, capability=80)
        register_alignment_plugin(trt, real, capability=80)  # a second build in one process
        definition = real.op.hat_export.alignment_i2t
        (combination,) = definition.autotune_func(*[None] * 6, None)
        types = [[kind.name for kind in found.types] for found in combination._get_combinations()]
        assert [kinds[0] for kinds in types] == ["HALF", "BF16", "FLOAT"]
        assert all(kinds[0] == kinds[2] for kinds in types)
        assert {tuple(kinds[1:2] + kinds[3:]) for kinds in types} == {
            ("FLOAT", "FLOAT", "INT64", "INT32", "FLOAT")
        }
        inputs = [
            described(real, trt.float16, -1, 5, 196, 512),
            described(real, trt.float32, -1, 5, 196),
            described(real, trt.float16, -1, 99, 512),
            described(real, trt.float32, -1, 7, 30, 30),
            described(real, trt.int64, -1, 8),
            described(real, trt.int32, -1, 7),
        ]
        output = definition.register_func(*inputs, slot=32, softmax_lambda=LAMBDA)
        assert output.dtype == trt.float32
        assert [size.constant_value() for size in output.shape_expr] == [5, 7]
        name, ptx, launch, sizes = definition.aot_impl_func(
            *inputs, 32, LAMBDA, outputs=(output,), tactic=0
        )
        assert f".entry {name}(" in ptx
        assert launch.grid_x._int_expr.value == 5 * 4
        assert launch.block_x._int_expr.value == 256
        assert [size._int_expr.value for size in sizes] == [5, 7, 196, 512, 30]
        return
    pytest.skip("tensorrt-cu13-bindings isn't installed: pip install tensorrt-cu13-bindings")


def described(real: Any, dtype: Any, dynamic: int, *sizes: int) -> Any:
    """A real ``TensorDesc`` whose first size varies; its sizes as expressions are known."""
    internal = sys.modules["tensorrt.plugin._tensor"]
    internal.SymIntExpr._exprBuilder = ExpressionBuilder()
    made = real.TensorDesc()
    made.dtype = dtype
    made.shape_expr = real.ShapeExprs.from_tuple([real.ShapeExpr(Expression(n)) for n in sizes])
    made.shape = real.Shape((dynamic, *sizes[1:]))
    return made


INTERPRETED = """
import math, sys, torch
from hat_export.kernels import alignment_torch
from hat_export.kernels.alignment_triton import constants
from hat_export.kernels.alignment_triton_tables import slot_for, tile_for
from hat_export.kernels.alignment_plugin_triton import alignment_plugin_kernel
torch.manual_seed(0)
regions, lengths = torch.randn(3, 70, 24), torch.tensor([5, 16, 1])
captions = alignment_torch.prepare_captions(torch.randn(3, 16, 24), lengths, torch.float32)
norms = alignment_torch.region_norms(regions)
expected = alignment_torch.score(regions, norms, captions, 9.0)
slot = slot_for(16)
tile = tile_for(80, "fp32", 24, 70, slot)
scores = torch.full((3, 3), 77.0)
grid = (3 * -(-3 // tile.captions),)
alignment_plugin_kernel[grid](
    regions, norms, captions.words, captions.factor, captions.caption_start,
    torch.arange(3, dtype=torch.int32), 3, 3, 70, 24, captions.factor.shape[1], scores,
    logit_scale=9.0 * math.log2(math.e),
    **constants(tile, slot, 70, offset=False, add=False),
)
sys.exit(not torch.equal(scores, expected))
"""


def test_its_scores_are_those_of_the_kernel_that_it_wraps() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
