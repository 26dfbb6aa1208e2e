"""What a bundle holds, as a report."""

from __future__ import annotations

from hat_export.bundle.bundle import Bundle, QuantizationInfo, TensorSpec
from hat_export.bundle.engines import Profile, target_names
from hat_export.bundle.replay import replay_commands
from hat_export.report.report import Report, Table


def bundle_report(bundle: Bundle, verified: bool) -> Report:
    """Graphs, files, origin and verification of a bundle.

    Args:
        bundle: A bundle whose files have been checked.
        verified: Whether hashes were among the checks.
    """
    manifest = bundle.manifest
    spec = manifest.spec
    total = sum(info.bytes for info in manifest.files.values())
    checked = "hashes" if verified else "sizes only, hashes not checked"
    quantized = manifest.quantization
    precision = quantized.title() if quantized else manifest.precision
    summary = (
        f"{spec.name}, {precision}, opset {manifest.opset}, {total / 1e6:.1f} MB, format "
        f"version {manifest.format_version}; intact ({checked}).",
    )
    graphs = tuple(
        (
            name,
            graph.file,
            str(graph.nodes),
            f"{graph.attention_fused} of {graph.attention_expected}",
            _signature(graph.inputs),
            _signature(graph.outputs),
        )
        for name, graph in manifest.graphs.items()
    )
    columns = ("graph", "file", "nodes", "attention fused", "inputs", "outputs")
    kept = tuple(
        (name, node, reason)
        for name, graph in manifest.graphs.items()
        for node, reason in graph.kept_fp32.items()
    )
    files = tuple(
        (name, f"{info.bytes:,}", info.sha256[:16]) for name, info in manifest.files.items()
    )
    facts = [(key, _text(value)) for key, value in spec.to_json().items()]
    origin = [(f"checkpoint {key}", _text(value)) for key, value in manifest.checkpoint.items()]
    checks = [
        (
            f"{what} against PyTorch",
            f"largest difference {found['largest_difference']:.2g}, "
            f"tolerance {found['tolerance']:g}, {len(found['runs'])} runs",
        )
        for what, found in manifest.verification.items()
    ]
    tools = [(f"made with {name}", version) for name, version in manifest.tools.items()]
    tables = (
        *(_quantization_tables(quantized) if quantized else ()),
        Table("Model", ("field", "value"), tuple(facts)),
        *([Table("Kept in fp32", ("graph", "node", "reason"), kept)] if kept else []),
        *([engine_table(bundle), command_table(bundle)] if manifest.engines else []),
        Table("Origin and verification", ("what", "value"), tuple(origin + checks + tools)),
        Table("Files", ("file", "bytes", "SHA-256"), files),
        Table("Graphs", columns, graphs),
    )
    return Report("bundle", str(bundle.path), None, summary, tables, manifest.to_json())


def engine_table(bundle: Bundle) -> Table:
    """The engines of a bundle: what they are for, and what they fuse."""
    rows = tuple(
        (
            name,
            f"{engine.library} {engine.version}",
            "the alignment plugin"
            if engine.form == "plugin"
            else bundle.manifest.graphs[name].file,
            target_names(engine.targets) + (f" on {engine.device}" if engine.device else ""),
            f"{engine.attention_fused} of {engine.attention_expected}"
            if engine.attention_expected
            else "no attention",
            "\n".join(_ranges(profile) for profile in engine.profiles),
        )
        for name, engine in bundle.manifest.engines.items()
    )
    columns = ("engine", "library", "built from", "for", "attention fused", "sizes")
    return Table("TensorRT engines", columns, rows)


def engine_commands(bundle: Bundle) -> dict[str, dict[str, str]]:
    """Per engine, the commands by which NVIDIA's own tools repeat its build and check it.

    None for an engine with the alignment plugin: those tools build from ONNX graphs.
    """
    graphs = bundle.manifest.graphs
    return {
        name: replay_commands(
            bundle.path,
            graphs[name].file,
            {tensor.name: tensor.shape for tensor in graphs[name].inputs},
            engine,
        )
        for name, engine in bundle.manifest.engines.items()
        if engine.form == "graph"
    }


def command_table(bundle: Bundle) -> Table:
    """:func:`engine_commands` as a table."""
    rows = tuple(
        (name, what, command)
        for name, commands in engine_commands(bundle).items()
        for what, command in commands.items()
    )
    return Table("The same with NVIDIA's tools", ("engine", "what", "command"), rows)


def _ranges(profile: Profile) -> str:
    return ", ".join(
        f"{name} {sizes.smallest}..{sizes.largest} (tuned for {sizes.best})"
        for name, sizes in profile.items()
    )


def _quantization_tables(quantized: QuantizationInfo) -> tuple[Table, ...]:
    """How the layers are stored and computed, and why some are not quantized."""
    facts = [
        ("target", quantized.target),
        ("needs one of", ", ".join(quantized.requires) or "nothing in particular"),
        *(
            (f"layers in {scheme}", str(list(quantized.layers.values()).count(scheme)))
            for scheme in quantized.schemes
        ),
        ("layers in fp32", str(len(quantized.kept))),
        ("layers smoothed", str(len(quantized.smoothed))),
        *((f"calibration {key}", _text(value)) for key, value in quantized.calibration.items()),
        *((f"quantized from: {key}", value) for key, value in quantized.source.items()),
        *((f"relative error of {key}", f"{value:.2g}") for key, value in quantized.errors.items()),
    ]
    kept = tuple(quantized.kept.items())
    return (
        Table("Quantization", ("what", "value"), tuple(facts)),
        Table("Layers kept in fp32", ("layer", "reason"), kept),
    )


def _signature(tensors: tuple[TensorSpec, ...]) -> str:
    return "\n".join(f"{t.name} {t.dtype} [{', '.join(map(str, t.shape))}]" for t in tensors)


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
