"""How an export's engines came about, as a report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hat_export.base.machine import environment
from hat_export.bundle.inspect import command_table, engine_commands, engine_table
from hat_export.report.report import Report, Table
from hat_export.tensorrt.engine_export import EngineBuild, EngineExport


def engine_report(export: EngineExport, commands: bool) -> Report:
    """Engines, what they fuse and what not, and the builder's warnings.

    Args:
        export: What was built.
        commands: Whether to add the table of commands that repeat the builds; they are long.
    """
    manifest = export.bundle.manifest
    builds = {build.graph: build for build in export.builds}
    engines = manifest.engines
    rows = tuple(
        (
            name,
            f"{build.bytes / 1e6:.1f}",
            "from the cache" if build.cached else f"{build.built.seconds:.1f}",
            str(len(build.built.layers)),
            _memory(build),
        )
        for name, build in builds.items()
    )
    apart = tuple(
        (name, layer) for name, engine in engines.items() for layer in engine.attention_apart
    )
    kept = tuple(
        (name, node, reason)
        for name, graph in manifest.graphs.items()
        for node, reason in graph.kept_fp32.items()
    )
    warnings = tuple(
        (name, str(count), text)
        for name, build in builds.items()
        for text, count in build.built.warnings.items()
    )
    tables = (
        engine_table(export.bundle),
        Table("Builds", ("engine", "MB", "seconds", "kernels", "peak memory so far"), rows),
        Table(
            "Attention that is not one kernel",
            ("engine", "layer"),
            apart,
            "Named by the node of the ONNX graph.",
        ),
        Table("Kept in fp32", ("graph", "node", "reason"), kept),
        Table("Builder's warnings", ("engine", "times", "warning"), warnings),
        *([command_table(export.bundle)] if commands else []),
    )
    first = next(iter(engines.values()))
    summary = [
        f"{export.bundle.path}: {manifest.precision} engines of {first.library} {first.version}.",
        *(
            f"  {name}: {engine.attention_fused} of {engine.attention_expected} attention fused"
            for name, engine in engines.items()
            if engine.attention_expected
        ),
    ]
    if not first.device:
        summary.append("Built without a GPU: speed and results on one are not measured.")
    data: dict[str, Any] = {
        "engines": {name: asdict(engine) for name, engine in engines.items()},
        "builds": [
            {
                "graph": build.graph,
                "bytes": build.bytes,
                "cached": build.cached,
                "seconds": build.built.seconds,
                "kernels": len(build.built.layers),
                "peak_memory": build.peak_memory,
                "warnings": dict(build.built.warnings),
            }
            for build in export.builds
        ],
        "commands": engine_commands(export.bundle),
        "environment": environment(),
    }
    title = f"TensorRT engines: {export.bundle.path.name}"
    return Report("engines", title, None, tuple(summary), tables, data)


def _memory(build: EngineBuild) -> str:
    return "unknown" if build.peak_memory is None else f"{build.peak_memory / 1e9:.2f} GB"
