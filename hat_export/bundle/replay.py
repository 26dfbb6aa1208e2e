"""The commands by which NVIDIA's own tools repeat a build, load the engine and compare it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from hat_export.bundle.engines import EngineInfo, Shape, shape_range

#: What a bundle's tensors are called -> their sizes; a string names a dynamic dimension.
Inputs = Mapping[str, tuple[int | str, ...]]

_TOOLS = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
_POSITIONS = ("min", "opt", "max")


def replay_commands(folder: Path, graph: str, inputs: Inputs, engine: EngineInfo) -> dict[str, str]:
    """Shell commands for one engine of a bundle.

    Args:
        folder: The bundle.
        graph: File name of the ONNX graph.
        inputs: The graph's inputs.
        engine: What the manifest says of the engine.

    Returns:
        ``build``, ``time`` (trtexec, or tensorrt_rtx, which is its name in TensorRT-RTX) and
        ``compare`` (polygraphy, TensorRT beside ONNX Runtime) to a command each.
    """
    return {
        "build": _join(_build(folder, graph, inputs, engine)),
        "time": _join(_time(folder, inputs, engine)),
        "compare": _compare(folder, graph, inputs, engine),
    }


def _build(folder: Path, graph: str, inputs: Inputs, engine: EngineInfo) -> list[str]:
    words = [
        _TOOLS[engine.library],
        f"--onnx={folder / graph}",
        f"--saveEngine={Path(graph).stem}.engine",
        "--profilingVerbosity=detailed",
        "--verbose",
        "--skipInference",
    ]
    if engine.library == "tensorrt-rtx":
        words += [f"--computeCapabilities={','.join(map(str, engine.targets))}"]
    else:
        if engine.version.startswith("10."):
            words.append("--stronglyTyped")  # from 11 on there is nothing else
        if len(engine.targets) > 1:
            words.append("--hardwareCompatibilityLevel=ampere+")
    if not engine.tf32:
        words.append("--noTF32")
    for number, profile in enumerate(engine.profiles):
        if len(engine.profiles) > 1:
            words.append(f"--profile={number}")
        for position, name in enumerate(_POSITIONS):
            shapes = {
                tensor: shape_range(shape, profile)[position] for tensor, shape in inputs.items()
            }
            words.append(f"--{name}Shapes={_shapes(shapes)}")
    return words


def _time(folder: Path, inputs: Inputs, engine: EngineInfo) -> list[str]:
    best = {name: shape_range(shape, engine.profiles[0])[1] for name, shape in inputs.items()}
    return [
        _TOOLS[engine.library],
        f"--loadEngine={folder / engine.file}",
        f"--shapes={_shapes(best)}",
    ]


def _compare(folder: Path, graph: str, inputs: Inputs, engine: EngineInfo) -> str:
    words = ["polygraphy", "run", str(folder / graph), "--trt", "--onnxrt"]
    if engine.version.startswith("10."):
        words.append("--strongly-typed")
    if engine.tf32 and engine.library == "tensorrt":
        words.append("--tf32")
    for profile in engine.profiles:
        for position, name in enumerate(_POSITIONS):
            words.append(f"--trt-{name}-shapes")
            words += [
                f"{tensor}:{_list(shape_range(shape, profile)[position])}"
                for tensor, shape in inputs.items()
            ]
    words.append("--input-shapes")
    words += [
        f"{tensor}:{_list(shape_range(shape, engine.profiles[0])[1])}"
        for tensor, shape in inputs.items()
    ]
    prefix = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if engine.library == "tensorrt-rtx" else ""
    return prefix + _join(words)


def _shapes(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _list(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"


def _join(words: list[str]) -> str:
    return shlex.join(words)
