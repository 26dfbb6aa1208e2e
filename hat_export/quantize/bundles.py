"""From a float32 bundle and a plan to a quantized bundle, checked against the one it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx

from hat_export.base.atomic import scratch_folder
from hat_export.base.files import check_target, new_folder, sha256_of
from hat_export.base.packages import package_versions
from hat_export.base.progress import SILENT, Progress
from hat_export.bundle.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    TOKENIZER,
    Bundle,
    GraphInfo,
    Manifest,
    QuantizationInfo,
    list_files,
    write_manifest,
)
from hat_export.data.dataset import CaptionDataset
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import InputError, ToleranceError
from hat_export.export.calibration import dataset_feeds
from hat_export.export.graph_file import EXTERNAL_DATA_BYTES, write_graph
from hat_export.export.linear_layers import FuseLinear, SplitLinear
from hat_export.export.observe import Feed
from hat_export.export.passes import Pass, run_passes
from hat_export.quantize.calibration import Observer, observe_ranges
from hat_export.quantize.layers import Layer, find_layers, load_products
from hat_export.quantize.plan import Plan, check_plan
from hat_export.quantize.rewrite import QuantizeLayers
from hat_export.quantize.schemes import SCHEMES, TARGETS, Target
from hat_export.quantize.smoothing import Smooth, Smoothed, find_smoothing
from hat_export.runtime.backends import onnxruntime_backend
from hat_export.runtime.backends.onnxruntime_backend import PACKED_ATTENTION
from hat_export.runtime.self_test import noise_captions, noise_pixels, run_self_test
from hat_export.runtime.session import Session

ENCODERS = ("image", "text")
#: Batches that smoothing looks at; ranges are found on all of the data afterwards.
SMOOTHING_BATCHES = 16
#: Other CPUs round differently at the borders of quantization steps, and each such step moves what
#: follows, in the end by as much as quantization itself did: twice the difference measured.
SELF_TEST_MARGIN = 2.0
#: Float32's own difference between runtimes (:data:`hat_export.bundle.precision.PRECISIONS`).
SELF_TEST_FLOOR = 2e-4


@dataclass
class Statistics:
    """What calibration found in one encoder.

    Attributes:
        observers: By layer name.
        smoothed: What smoothing did.
        model: The float32 graph that ranges belong to: smoothed, or as it was; on disk.
        sha256: Of all inputs.
        items: Number of images or captions.
    """

    observers: Mapping[str, Observer]
    smoothed: Mapping[str, Smoothed]
    model: Path
    sha256: str
    items: int


@dataclass
class Quantizer:
    """A float32 bundle on its way to quantized ones; calibrates once, whatever the plans.

    Args:
        source: The bundle.
        work: Folder for graphs on the way.
        threads: Threads of all runs.
        data: Calibration data; None where no plan needs any.
        progress: Told before each step, and of long loops.
    """

    source: Bundle
    work: Path
    threads: int
    data: CaptionDataset | None = None
    progress: Progress = SILENT
    layers: dict[str, tuple[Layer, ...]] = field(init=False)
    _statistics: dict[tuple[str, bool, bool], Statistics] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_source(self.source)
        self.layers = {
            name: find_layers(load_products(self.source.graph_path(name))) for name in ENCODERS
        }

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """Layers of both encoders."""
        return tuple(layer for name in ENCODERS for layer in self.layers[name])

    def write(
        self, plan: Plan, target: Path, overwrite: bool = False, check: bool = True
    ) -> Bundle:
        """Make the bundle of a plan.

        Args:
            plan: What to do with every layer.
            target: Folder of the bundle; appears only if everything succeeded.
            overwrite: Whether an existing bundle may be replaced.
            check: Whether to compare it with the source and set the self-test's tolerances; for a
                bundle of a search, which is thrown away, the comparison is of recall.

        Raises:
            InputError: if the plan is for another model, or needs data that there is none of.
            ToleranceError: if features are further from float32's than coarseness explains.
            OutputError: if the bundle can't be written.
        """
        check_plan(plan, self.all_layers)
        check_form(self.source, TARGETS[plan.target])
        if plan.calibrated and self.data is None:
            raise InputError(
                "static ranges and smoothing need real images and captions: add --calibration "
                "DATASET, or choose int8-dynamic or a weight-only scheme"
            )
        if check:  # once, before the work
            check_target(target, overwrite)
        graphs = {name: self._graph(name, plan) for name in ENCODERS}
        with new_folder(target, overwrite) as folder:
            infos = dict(self.source.manifest.graphs)
            for name, model in graphs.items():
                infos[name] = self._write_graph(model, folder, name)
            self.source.copy_to(folder, infos["alignment"].file)
            bundle = Bundle(folder, self._manifest(plan, infos, folder))
            if check:
                self.progress.step("comparing with the float32 bundle")
                bundle = self._checked(bundle)
            write_manifest(folder, bundle.manifest)
        return Bundle.read(target, verify=False)

    def statistics(self, name: str, smoothing: bool, correlated: bool, limit: int) -> Statistics:
        """What flows through one encoder, from the data; found once.

        Args:
            name: ``image`` or ``text``.
            smoothing: Whether outliers are moved into weights first.
            correlated: Whether to sum the products of channels too.
            limit: Largest magnitude of a quantized weight.
        """
        key = (name, smoothing, correlated)
        if key not in self._statistics:
            self._statistics[key] = self._calibrate(name, smoothing, correlated, limit)
        return self._statistics[key]

    def _calibrate(self, name: str, smoothing: bool, correlated: bool, limit: int) -> Statistics:
        layers, folder = self.layers[name], self.work / f"{name}-{smoothing}"
        folder.mkdir(parents=True, exist_ok=True)
        smoothed: Mapping[str, Smoothed] = {}
        path = self.source.graph_path(name)
        if smoothing:
            self.progress.step(f"looking for outliers in the {name} encoder")
            first = islice(self._feeds(name), SMOOTHING_BATCHES)
            seen, _, _ = observe_ranges(load_products(path), folder, layers, first, self.threads)
            model = load_products(path)
            found = find_smoothing(model, seen, limit)
            smoothed, model = found.layers, Smooth(found)(model).model
            path = folder / "smoothed.onnx"
            onnx.save_model(model, path, save_as_external_data=True, location="smoothed.onnx.data")
            del model, seen, found
        data = self._data()
        total = len(data.entries) if name == "image" else len(data.captions)
        what = "images" if name == "image" else "captions"
        observers, digest, items = observe_ranges(
            load_products(path),
            folder,
            layers,
            self._feeds(name),
            self.threads,
            correlated,
            lambda done: self.progress.count(f"calibration {what}", done, total),
        )
        (folder / "observed.onnx").unlink()
        (folder / "observed.onnx.data").unlink(missing_ok=True)
        return Statistics(observers, smoothed, path, digest, items)

    def _data(self) -> CaptionDataset:
        if self.data is None:
            raise InputError("no calibration data")
        return self.data

    def _feeds(self, name: str) -> Iterable[Feed]:
        spec = self.source.manifest.spec
        tokenizer = CaptionTokenizer.from_file(self.source.file(TOKENIZER), spec.max_words)
        return dataset_feeds(self._data(), spec, tokenizer)[name]

    def _graph(self, name: str, plan: Plan) -> onnx.ModelProto:
        path, ranges = self.source.graph_path(name), {}
        target = TARGETS[plan.target]
        mine = [layer.name for layer in self.layers[name] if layer.name in plan.layers]
        static = [one for one in mine if SCHEMES[plan.layers[one]].activations == "static"]
        grams: dict[str, np.ndarray] = {}
        if mine and (plan.smooth or plan.compensate or static):
            found = self.statistics(name, plan.smooth, plan.compensate, target.weight_limit)
            path = found.model
            ranges = {one: found.observers[one].range(plan.method) for one in static}
            grams = {
                one: seen.gram for one, seen in found.observers.items() if seen.gram is not None
            }
        if not mine:
            return onnx.load(path)
        passes: list[Pass] = [SplitLinear(), QuantizeLayers(plan, ranges, grams)]
        if self.source.manifest.attention_form == PACKED_ATTENTION:
            # Layers that stay float32 are the fastest as they were; those in int8 as they can be.
            passes.append(FuseLinear(target.int8_linear))
        return run_passes(passes, onnx.load(path))[0]

    def _write_graph(self, model: onnx.ModelProto, folder: Path, name: str) -> GraphInfo:
        before = self.source.manifest.graphs[name]
        return write_graph(
            model,
            folder,
            name,
            before.attention_expected,
            before.attention_fused,  # none of the passes over it touches attention
            EXTERNAL_DATA_BYTES,
            {},
        )

    def _manifest(self, plan: Plan, infos: Mapping[str, GraphInfo], folder: Path) -> Manifest:
        target = TARGETS[plan.target]
        mixed = any(SCHEMES[name].activations in ("dynamic", "static") for name in plan.schemes)
        calibration: dict[str, str | int] = {}
        smoothed: dict[str, float] = {}
        if plan.calibrated:
            calibration = {"data": self._data().name, "method": plan.method}
            for name in ENCODERS:
                found = self._statistics.get((name, plan.smooth, plan.compensate))
                if found is not None:
                    calibration |= {
                        f"{name}_items": found.items,
                        f"{name}_sha256": found.sha256,
                    }
                    smoothed |= {key: one.strength for key, one in found.smoothed.items()}
        return replace(
            self.source.manifest,
            format_version=FORMAT_VERSION,
            graphs=dict(infos),
            verification={},
            tools=package_versions(),
            files=list_files(folder),
            quantization=QuantizationInfo(
                target=plan.target,
                requires=target.requires if mixed else (),
                layers=dict(plan.layers),
                kept=dict(plan.kept),
                smoothed=smoothed,
                calibration=calibration,
                source={
                    "bundle": self.source.path.resolve().name,
                    "manifest_sha256": sha256_of(self.source.path / MANIFEST),
                },
                errors={},
                feature_tolerance=float("inf"),
                score_tolerance=float("inf"),
            ),
        )

    def _checked(self, bundle: Bundle) -> Bundle:
        """The bundle with its measured errors and the tolerances that follow from them."""
        before = bundle.manifest.quantization
        if before is None:
            raise ValueError("a quantized bundle has a description of its quantization")
        # The machine that makes a bundle need not be the one that it is for.
        own = onnxruntime_backend.OnnxRuntimeSession
        runnable = Bundle(
            bundle.path,
            replace(bundle.manifest, quantization=replace(before, requires=())),
        )
        with own(self.source, self.threads) as source, own(runnable, self.threads) as session:
            errors = relative_errors(source, session)
            differences = run_self_test(runnable, session)
        allowed = max(SCHEMES[scheme].largest_error for scheme in before.schemes)
        for what, error in errors.items():
            if what != "scores" and not error <= allowed:
                raise ToleranceError(
                    f"{what} are wrong by {error:.2f} of their own size (root mean square) after "
                    f"quantization; {' and '.join(before.schemes)} explain {allowed:g} at most. "
                    "Nothing was written: keep sensitive layers (--keep, --max-drop), smooth, or "
                    "calibrate on more data"
                )
        features = max(value for name, value in differences.items() if name != "scores")
        quantization = replace(
            before,
            errors=errors,
            feature_tolerance=SELF_TEST_FLOOR + SELF_TEST_MARGIN * features,
            score_tolerance=SELF_TEST_FLOOR + SELF_TEST_MARGIN * differences["scores"],
        )
        return Bundle(bundle.path, replace(bundle.manifest, quantization=quantization))


def check_source(bundle: Bundle) -> None:
    """Refuse a bundle that can't be quantized.

    Raises:
        InputError: if it isn't float32, or is quantized already.
    """
    manifest = bundle.manifest
    if manifest.quantization is not None:
        raise InputError(
            f"{bundle.path}: already quantized ({manifest.quantization.title()}); start from the "
            "float32 bundle"
        )
    if manifest.precision != "fp32":
        raise InputError(
            f"{bundle.path}: holds {manifest.precision} weights; export the checkpoint in fp32 "
            "and quantize that"
        )


def check_form(bundle: Bundle, target: Target) -> None:
    """Refuse a bundle whose operators the target doesn't know.

    Raises:
        InputError: with the remedy.
    """
    if target.standard and bundle.manifest.attention_form == PACKED_ATTENTION:
        raise InputError(
            f"{bundle.path}: written in ONNX Runtime's operators, which {target.name} doesn't "
            "know; export the checkpoint without --target onnxruntime and quantize that"
        )


def relative_errors(reference: Session, candidate: Session) -> dict[str, float]:
    """Root mean square of the differences over that of the values, on made-up inputs.

    Scores have no natural zero: theirs is over the standard deviation of the scores.

    Returns:
        For ``images``, ``texts`` (the worst level each) and ``scores``.
    """
    spec = reference.spec
    pixels = noise_pixels(spec, 4, seed=31)
    ids, mask = noise_captions(spec, 8, spec.max_words, seed=32)
    found: dict[str, float] = {}
    sides = []
    for session in (reference, candidate):
        images, texts = session.encode_images(pixels), session.encode_texts(ids, mask)
        sides.append((images, texts, session.score(images, texts)))
    real = mask.astype(bool)
    (images, texts, scores), (images_after, texts_after, scores_after) = sides
    pairs = {
        "images": [*zip(images.levels, images_after.levels, strict=True)],
        "texts": [
            (one[real], other[real])
            for one, other in zip(texts.levels, texts_after.levels, strict=True)
        ],
    }
    for what, levels in pairs.items():
        found[what] = max(
            float(np.linalg.norm(other - one) / np.linalg.norm(one)) for one, other in levels
        )
    found["scores"] = float(np.std(scores_after - scores) / np.std(scores))
    return found


def quantize_bundle(
    source: Path,
    target: Path,
    make_plan: Callable[[Quantizer], Plan],
    data: CaptionDataset | None,
    threads: int,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Bundle:
    """Quantize a bundle.

    Args:
        source: The float32 bundle.
        target: Folder of the result.
        make_plan: Given what there is to quantize, says how.
        data: Calibration data, where the plan needs it.
        threads: Threads of all runs.
        overwrite: Whether an existing bundle may be replaced.
        progress: Told before each step, and of long loops.

    Raises:
        HatError: as :meth:`Quantizer.write`.
    """
    check_target(target, overwrite)
    bundle = Bundle.read(source)
    with scratch_folder() as work:
        quantizer = Quantizer(bundle, work, threads, data, progress)
        plan = make_plan(quantizer)
        progress.step(f"quantizing: {plan.title()}")
        return quantizer.write(plan, target, overwrite)
