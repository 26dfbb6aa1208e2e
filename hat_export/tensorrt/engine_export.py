"""From a checkpoint or a bundle to a bundle with TensorRT engines."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hat_export.base.atomic import partial_folder
from hat_export.base.files import check_target, new_folder
from hat_export.base.machine import default_threads, peak_memory
from hat_export.base.progress import SILENT, Progress
from hat_export.bundle.bundle import (
    GRAPHS,
    TOKENIZER,
    Bundle,
    is_bundle,
    list_files,
    read_manifest,
    write_manifest,
)
from hat_export.bundle.engines import EngineInfo, Profile, Range
from hat_export.bundle.precision import PRECISIONS
from hat_export.data.dataset import CaptionDataset
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import BundleError, EngineError, FusionError, InputError, ToleranceError
from hat_export.export.calibration import dataset_feeds, noise_feeds
from hat_export.export.observe import Feed
from hat_export.runtime.backends import BACKENDS
from hat_export.runtime.backends.alignment_inputs import plugin_inputs, plugin_profile
from hat_export.runtime.backends.onnxruntime_backend import OnnxRuntimeSession
from hat_export.runtime.self_test import run_self_test, self_test_inputs
from hat_export.runtime.session import Session
from hat_export.runtime.trt_library import TensorRT
from hat_export.spec import ModelSpec
from hat_export.tensorrt.alignment_network import PluginRequest, check_plugin
from hat_export.tensorrt.build import BuiltEngine, EngineRequest, build_engine
from hat_export.tensorrt.cache import EngineCache
from hat_export.tensorrt.fusion import attention_apart, attention_nodes
from hat_export.tensorrt.lower import check_source, lower_bundle
from hat_export.tensorrt.quantize import QUANTIZED_FORMATS
from hat_export.tensorrt.request import TURING, ProfileRequest

#: Largest side of a block of images x captions that the alignment engine takes: at the official
#: size its products are 784 regions x 32 words x 64 x 64 x 4 bytes = 411 MB.
ALIGNMENT_BLOCK = 64

#: Largest difference of a score from the native kernel's on the same features. In float32 it is
#: 2e-5; where products give float16, dots are off by 2^-11 of themselves, and a cosine is a mean of
#: many.
ALIGNMENT_TOLERANCE = 5e-3


@dataclass(frozen=True)
class EngineBuild:
    """How one engine came about, for the report.

    Attributes:
        graph: ``image``, ``text`` or ``alignment``.
        built: What the build gave.
        cached: Whether it came out of the cache.
        bytes: Its size.
        peak_memory: Largest memory of the process so far, in bytes; None where unknown.
    """

    graph: str
    built: BuiltEngine
    cached: bool
    bytes: int
    peak_memory: int | None


@dataclass(frozen=True)
class EngineExport:
    """An export with its builds.

    Attributes:
        bundle: The bundle with the engines.
        builds: One per engine.
    """

    bundle: Bundle
    builds: tuple[EngineBuild, ...]


def export_engines(
    source: Path,
    target: Path,
    library: TensorRT,
    precision: str,
    profiles: Sequence[ProfileRequest],
    targets: Sequence[int] = (),
    require_fused: bool = False,
    alignment: str = "graph",
    calibration: CaptionDataset | None = None,
    spec: ModelSpec | None = None,
    vocabulary: Path | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> EngineExport:
    """Build the image, text and alignment engines of a model.

    The graphs that are built are kept in the bundle. Before anything is built they run on the CPU
    with the roundings of their precision and have to pass the bundle's self-test.

    Args:
        source: A checkpoint as for :func:`hat_export.load`, or a bundle.
        target: Folder of the new bundle; appears only if everything succeeded.
        library: What builds.
        precision: A name in :data:`hat_export.bundle.precision.PRECISIONS`, for the encoders.
        profiles: Sizes to take; the first profile that fits is used at run time.
        targets: From :func:`choose_targets`.
        require_fused: Whether every attention layer must be one fused kernel of its engine.
        alignment: One of :data:`hat_export.bundle.engines.FORMS`: what the alignment engine is
            built from.
        calibration: Images and captions on which a lower precision looks for ranges; needed for
            int8 and fp8, else made-up ones by default.
        spec: Architecture, where a checkpoint doesn't tell it.
        vocabulary: ``vocab.txt``, where it isn't beside a checkpoint.
        cache: Folder of engines that were built before; None for none.
        overwrite: Whether an existing bundle may be replaced.
        threads: Threads for the comparison; default: one per core.
        progress: Told before each step, and the percent of a build that is done.

    Raises:
        EngineError: if TensorRT can't build an engine; its log is kept beside the target.
        FusionError: if an attention layer is not fused although that was required.
        InputError: if the source can't be had in the precision, or that needs calibration data.
        ToleranceError: if the graphs differ from PyTorch by more than the precision explains.
        OutputError: if the bundle can't be written.
    """
    check_target(target, overwrite)
    threads = threads or default_threads()
    if precision in QUANTIZED_FORMATS and calibration is None and not _is_in(source, precision):
        raise InputError(
            f"--precision {precision} needs --calibration: it finds the ranges of activations on "
            "real images and captions"
        )
    with ExitStack() as stack:
        bundle = _onnx_bundle(source, target, spec, vocabulary, threads, progress, stack)
        check_source(bundle, precision)
        if alignment == "plugin":
            check_plugin(library, bundle.manifest.spec)
        ranges = [profile.resolve(bundle.manifest.spec) for profile in profiles]
        engine_cache = EngineCache(cache, library) if cache else None
        folder = stack.enter_context(new_folder(target, overwrite))
        manifest = lower_bundle(
            bundle,
            folder,
            precision,
            partial(_feeds, bundle, calibration),
            fp16_alignment=TURING in targets and bool(library.targets),
            threads=threads,
            progress=progress,
        )
        progress.step("running the graphs on the CPU with the roundings of their precision")
        lowered = Bundle.read(folder, verify=False)  # hashed a moment ago
        found = {f"features in {precision}": _self_test(lowered, threads)}
        engines, builds = {}, []
        for name in GRAPHS:
            form = alignment if name == "alignment" else "graph"
            request = _request(lowered, name, form, ranges, targets)
            build = _build(lowered, target, library, name, request, engine_cache, progress)
            builds.append(build)
            engines[name] = _describe(lowered, library, name, request, build.built)
            if require_fused:
                _check_fused(name, engines[name], build.built)
        manifest = replace(
            manifest,
            verification={**manifest.verification, **found},
            engines=engines,
            tools={**manifest.tools, library.name: library.version},
            files=list_files(folder),
        )
        write_manifest(folder, manifest)
    return EngineExport(Bundle.read(target, verify=False), tuple(builds))


def _onnx_bundle(
    source: Path,
    target: Path,
    spec: ModelSpec | None,
    vocabulary: Path | None,
    threads: int,
    progress: Progress,
    stack: ExitStack,
) -> Bundle:
    """The source as a bundle: itself, or a temporary export of the checkpoint in fp32."""
    if is_bundle(source):
        if spec is not None or vocabulary is not None:
            raise InputError(
                f"{source}: a bundle carries its architecture and vocabulary; leave --spec and "
                "--vocabulary out"
            )
        return Bundle.read(source)
    from hat_export.export.onnx_export import export_onnx

    work = stack.enter_context(partial_folder(_parent(target), f"{target.name}.onnx"))
    return export_onnx(
        source, work / "bundle", spec, vocabulary, threads=threads, progress=progress
    )


def _is_in(source: Path, precision: str) -> bool:
    """Whether the source is a bundle whose graphs are in the precision already."""
    return is_bundle(source) and read_manifest(source).precision == precision


def _parent(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def _feeds(bundle: Bundle, calibration: CaptionDataset | None) -> Mapping[str, Iterable[Feed]]:
    spec = bundle.manifest.spec
    if calibration is None:
        return noise_feeds(spec)
    tokenizer = CaptionTokenizer.from_file(bundle.file(TOKENIZER), spec.max_words)
    return dataset_feeds(calibration, spec, tokenizer)


def _self_test(bundle: Bundle, threads: int) -> dict[str, Any]:
    """Compare the graphs with PyTorch, as far as fixed inputs tell.

    Returns:
        An entry of the manifest's ``verification``.

    Raises:
        ToleranceError: if they differ by more than their precision explains.
    """
    precision = PRECISIONS[bundle.manifest.precision]
    name = "onnxruntime" if precision.name == "fp32" else "emulation"
    try:
        with BACKENDS[name].open(bundle, threads) as session:
            differences = run_self_test(bundle, session)
            _check_alignment(session)
    except BundleError as error:
        raise ToleranceError(f"{error}. Nothing was written") from None
    features = [value for output, value in differences.items() if output != "scores"]
    return {
        "largest_difference": max(features),
        "tolerance": precision.feature_tolerance,
        "runs": [{"output": output, "difference": value} for output, value in differences.items()],
    }


def _check_alignment(session: Session) -> None:
    """Compare the alignment graph with the native kernel on features of the model's own.

    Raises:
        ToleranceError: if they differ.
    """
    assert isinstance(session, OnnxRuntimeSession)
    inputs = self_test_inputs(session.spec)
    images = session.encode_images(inputs["pixel_values"])
    texts = session.encode_texts(inputs["input_ids"], inputs["attention_mask"])
    difference = float(
        np.abs(session.score_with_graph(images, texts) - session.score(images, texts)).max()
    )
    if not difference <= ALIGNMENT_TOLERANCE:  # also true for NaN
        raise ToleranceError(
            f"alignment graph: scores differ by {difference:.3g} from the native kernel's "
            f"(tolerance {ALIGNMENT_TOLERANCE:g}). Nothing was written"
        )


def _build(
    bundle: Bundle,
    target: Path,
    library: TensorRT,
    name: str,
    request: EngineRequest,
    cache: EngineCache | None,
    progress: Progress,
) -> EngineBuild:
    """Build one engine into the bundle's folder, or take it from the cache."""
    engine, log = (bundle.path / file for file in _file_names(name))
    key = ""
    if cache:
        key = cache.key(request, bundle.graph_sha256(name), bundle.manifest.precision)
        found = cache.find(key)
        if found:
            progress.step(f"the {name} engine was built before")
            shutil.copyfile(found.engine, engine)
            shutil.copyfile(found.log, log)
            return _summary(name, engine, found.built, cached=True)
    # Beside the bundle, so that a failed build leaves its log; nothing else stays.
    written = target.with_name(f"{target.name}.{log.name}")
    timing_cache = cache.timing_cache if cache else None
    try:
        built = build_engine(
            library,
            request,
            engine,
            written,
            timing_cache,
            progress,
            f"building the {name} engine with {library}, percent",
        )
        shutil.move(written, log)
    except EngineError:
        raise
    except BaseException:
        written.unlink(missing_ok=True)
        raise
    if cache:
        cache.store(key, engine, log, built)
    return _summary(name, engine, built, cached=False)


def _summary(name: str, engine: Path, built: BuiltEngine, cached: bool) -> EngineBuild:
    return EngineBuild(name, built, cached, engine.stat().st_size, peak_memory())


def _file_names(name: str) -> tuple[str, str]:
    return f"{name}.engine", f"{name}.build.log"


def _request(
    bundle: Bundle, name: str, form: str, profiles: Sequence[Profile], targets: Sequence[int]
) -> EngineRequest:
    manifest = bundle.manifest
    inputs, plugin = manifest.graphs[name].inputs, None
    if name == "alignment":
        profiles = [_within_block(profile) for profile in profiles]
    if form == "plugin":
        longest = max(profile["words"].largest for profile in profiles)
        plugin = PluginRequest(manifest.spec, manifest.precision, longest)
        inputs = plugin_inputs(manifest.spec)
        profiles = [plugin_profile(profile) for profile in profiles]
    dynamic = {dim for tensor in inputs for dim in tensor.shape if isinstance(dim, str)}
    return EngineRequest(
        graph=bundle.graph_path(name),
        inputs=inputs,
        profiles=tuple(
            {dim: sizes for dim, sizes in profile.items() if dim in dynamic} for profile in profiles
        ),
        targets=tuple(targets),
        tf32=manifest.precision != "fp32",
        plugin=plugin,
    )


def _within_block(profile: Profile) -> Profile:
    def cut(sizes: Range) -> Range:
        return Range(*(min(size, ALIGNMENT_BLOCK) for size in sizes))

    return {name: sizes if name == "words" else cut(sizes) for name, sizes in profile.items()}


def _describe(
    bundle: Bundle,
    library: TensorRT,
    name: str,
    request: EngineRequest,
    built: BuiltEngine,
) -> EngineInfo:
    info = bundle.manifest.graphs[name]
    nodes: tuple[str, ...] = ()
    if info.attention_expected:
        nodes = attention_nodes(onnx.load(request.graph, load_external_data=False))
    apart = attention_apart(nodes, built.layers, len(request.profiles))
    engine, log = _file_names(name)
    return EngineInfo(
        file=engine,
        log=log,
        library=library.name,
        version=library.version,
        targets=built.targets,
        device=built.device,
        tf32=request.tf32,
        profiles=request.profiles,
        attention_expected=info.attention_expected,
        attention_fused=len(nodes) - len(apart),
        attention_apart=apart,
        graph_sha256=bundle.graph_sha256(name),
        form="graph" if request.plugin is None else "plugin",
    )


def _check_fused(name: str, info: EngineInfo, built: BuiltEngine) -> None:
    """Compare the count of fused kernels with the architecture's attention layers.

    Raises:
        FusionError: if they differ; names the first layers that aren't fused.
    """
    if info.attention_fused == info.attention_expected:
        return
    shown = ", ".join(info.attention_apart[:3])
    more = len(info.attention_apart) - 3
    raise FusionError(
        f"{name} engine: {info.attention_fused} of {info.attention_expected} attention layers are "
        f"one kernel of {info.library} {info.version}; not fused: {shown}"
        + (f" and {more} more" if more > 0 else "")
        + ". TensorRT fuses attention in fp16 and bf16 only. Nothing was written"
    )
