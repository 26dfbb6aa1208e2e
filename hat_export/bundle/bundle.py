"""The bundle: a folder with everything that running a model needs, and proof that it is intact."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hat_export.base.arrays import read_arrays, write_arrays
from hat_export.base.files import sha256_of
from hat_export.bundle.engines import EngineInfo
from hat_export.bundle.graph_check import check_graph
from hat_export.bundle.precision import PRECISIONS
from hat_export.errors import BundleError, SpecError
from hat_export.spec import LEVELS, ModelSpec

FORMAT = "hat-export bundle"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SELF_TEST = "self_test.safetensors"
PROJECTIONS = "projections.safetensors"
#: Format version -> the ending of its files of arrays; bundles of all of them open.
ARRAY_ENDINGS = {1: ".npz", FORMAT_VERSION: ".safetensors"}
GRAPHS = ("image", "text", "alignment")
#: Outputs of the graphs: features, and the reduced form of images at levels 1 and 2.
IMAGE_OUTPUTS = [f"image_level{level}" for level in range(1, LEVELS + 1)]
REDUCED_OUTPUTS = ["image_stage1", "image_stage2", "image_level3"]
TEXT_OUTPUTS = [f"text_level{level}" for level in range(1, LEVELS + 1)]

#: What every graph takes, and what it gives at least.
GRAPH_INPUTS = {
    "image": {"pixel_values"},
    "text": {"input_ids", "attention_mask"},
    "alignment": {*IMAGE_OUTPUTS, *TEXT_OUTPUTS, "attention_mask"},
}
GRAPH_OUTPUTS = {"image": set(IMAGE_OUTPUTS), "text": set(TEXT_OUTPUTS), "alignment": {"scores"}}

#: The signature of the manifest, if the bundle is signed (:mod:`hat_export.bundle.signature`).
SIGNATURE = "manifest.json.minisig"
#: Element types of inputs and outputs.
DTYPES = ("float32", "int64")
LARGEST_SIZE = (1 << 31) - 1
#: Names that lead nowhere else on any system and need no quoting in a message.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

#: A manifest is a few kilobytes; anything far beyond is not one.
MAX_MANIFEST_BYTES = 4 << 20


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output.

    Attributes:
        name: Name in the graph.
        dtype: numpy dtype name.
        shape: Sizes; a string names a dynamic dimension.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    """One graph of a bundle.

    Attributes:
        file: File name inside the bundle.
        inputs: In graph order.
        outputs: In graph order.
        nodes: Number of nodes.
        attention_expected: Attention layers of the model in this graph.
        attention_fused: How many of them are one fused operator.
        kept_fp32: Nodes that compute in float32 in a graph of lower precision, with the reason.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    attention_expected: int
    attention_fused: int
    kept_fp32: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QuantizationInfo:
    """What was quantized in a bundle, how, and what that did to its results.

    Attributes:
        target: Kind of machine that it is for (:mod:`hat_export.quantize.schemes`).
        requires: CPU features of which a machine needs one to compute rightly; none: no need.
        layers: Layer name to scheme.
        kept: Layers left in float32, with the reason.
        smoothed: Layers whose outliers were moved into the weights, with the strength.
        calibration: Data on which ranges were found: its name, counts, SHA-256, method; empty
            without.
        source: The bundle that was quantized: SHA-256 of its manifest.
        errors: Relative errors (root mean square) of features and scores against that bundle.
        feature_tolerance: Largest difference of a feature in the self-test.
        score_tolerance: Largest difference of a score in the self-test.
    """

    target: str
    requires: tuple[str, ...]
    layers: Mapping[str, str]
    kept: Mapping[str, str]
    smoothed: Mapping[str, float]
    calibration: Mapping[str, Any]
    source: Mapping[str, str]
    errors: Mapping[str, float]
    feature_tolerance: float
    score_tolerance: float

    @property
    def schemes(self) -> tuple[str, ...]:
        """Schemes in use."""
        return tuple(sorted(set(self.layers.values())))

    def title(self) -> str:
        """In a few words, as reports name it."""
        return f"{' + '.join(self.schemes)} for {self.target}"


@dataclass(frozen=True)
class FileInfo:
    """Size and hash of one file.

    Attributes:
        bytes: Size.
        sha256: Hex digest.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself; see ``docs/bundle.md`` for the file format.

    Attributes:
        spec: The architecture.
        precision: Precision of weights and arithmetic, e.g. ``fp32``.
        opset: ONNX opset of the graphs.
        attention_form: How attention is written (:mod:`hat_export.export.attention`).
        graphs: ``image``, ``text`` and ``alignment``.
        checkpoint: Where the weights come from: file name, hash, format.
        verification: What the export compared with PyTorch, and the differences found.
        tools: Versions of the software that made the bundle.
        files: Every other file in the folder.
        engines: TensorRT engines by graph name; empty in a bundle without.
        quantization: What was quantized; None if nothing was.
        format_version: Of the folder that it was read from.
    """

    spec: ModelSpec
    precision: str
    opset: int
    attention_form: str
    graphs: Mapping[str, GraphInfo]
    checkpoint: Mapping[str, Any]
    verification: Mapping[str, Any]
    tools: Mapping[str, str]
    files: Mapping[str, FileInfo]
    engines: Mapping[str, EngineInfo] = field(default_factory=dict)
    quantization: QuantizationInfo | None = None
    format_version: int = FORMAT_VERSION

    def arrays_name(self, name: str) -> str:
        """What :data:`SELF_TEST` or :data:`PROJECTIONS` is called in this version."""
        return _arrays_name(name, self.format_version)

    def to_json(self) -> dict[str, Any]:
        """The content of ``manifest.json``; the same bundle gives the same bytes."""
        engines = {name: asdict(engine) for name, engine in self.engines.items()}
        quantization = {"quantization": asdict(self.quantization)} if self.quantization else {}
        return {
            "format": FORMAT,
            "format_version": self.format_version,
            "spec": self.spec.to_json(),
            "precision": self.precision,
            "opset": self.opset,
            "attention_form": self.attention_form,
            "graphs": {name: asdict(graph) for name, graph in self.graphs.items()},
            "checkpoint": dict(self.checkpoint),
            "verification": dict(self.verification),
            "tools": dict(self.tools),
            **quantization,
            "files": {name: asdict(info) for name, info in sorted(self.files.items())},
            **({"engines": engines} if engines else {}),
        }


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read.

    Attributes:
        path: The folder.
        manifest: Its manifest.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, path: Path | str, verify: bool = True) -> Bundle:
        """Read a bundle's manifest and check every file against it.

        Args:
            path: The folder.
            verify: Whether to hash the files; sizes are checked in any case.

        Raises:
            BundleError: naming the file that is missing, damaged or of an unknown format.
        """
        folder = Path(path)
        bundle = cls(folder, read_manifest(folder))
        for name, info in bundle.manifest.files.items():
            _check_file(folder / name, info, verify)
        for name in GRAPHS:
            bundle._check_graph(name)
        return bundle

    def _check_graph(self, name: str) -> None:
        path, files = self.graph_path(name), self.manifest.files
        weights = f"{path.name}.data"
        try:
            check_graph(path, {weights: files[weights].bytes} if weights in files else {})
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: not a graph of a bundle ({error}); export again") from None

    def file(self, name: str) -> Path:
        """Path of a file that the manifest lists."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: the manifest lists no file {name!r}")
        return self.path / name

    def arrays(self, name: str) -> Path:
        """Path of the self-test or the projections: :data:`SELF_TEST`, :data:`PROJECTIONS`."""
        return self.file(self.manifest.arrays_name(name))

    def copy_to(self, folder: Path, *files: str) -> None:
        """Copy what every form of a model has in common, in today's format, into a new bundle.

        Args:
            folder: Of the new bundle.
            files: Further files to copy as they are.
        """
        for name in (TOKENIZER, *files):
            shutil.copyfile(self.file(name), folder / name)
        for name in (SELF_TEST, PROJECTIONS):
            if self.manifest.format_version == FORMAT_VERSION:
                shutil.copyfile(self.arrays(name), folder / name)
            else:
                write_arrays(folder / name, read_arrays(self.arrays(name)))

    def graph_path(self, name: str) -> Path:
        """Path of the image, text or alignment graph."""
        return self.file(self.manifest.graphs[name].file)

    def graph_sha256(self, name: str) -> str:
        """Hash of a graph and its external data, made of the manifest's hashes of both."""
        file = self.manifest.graphs[name].file
        joined = hashlib.sha256()
        for part in (file, f"{file}.data"):
            if part in self.manifest.files:
                joined.update(self.manifest.files[part].sha256.encode())
        return joined.hexdigest()


def is_bundle(path: Path) -> bool:
    """Whether a path looks like a bundle: a folder with a manifest."""
    return (path / MANIFEST).is_file()


def list_files(folder: Path) -> dict[str, FileInfo]:
    """Size and hash of every file in a folder but the manifest."""
    return {
        path.name: FileInfo(path.stat().st_size, sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.name not in (MANIFEST, SIGNATURE)
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``; last, since it vouches for everything else."""
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Parse and check ``manifest.json``.

    Raises:
        BundleError: if it is missing, unreadable, of another version, or not as expected.
    """
    path = folder / MANIFEST
    if not folder.exists():
        raise BundleError(f"{folder}: no such bundle")
    if not path.is_file():
        raise BundleError(
            f"{folder}: no {MANIFEST} here; expected a bundle as `hat-export onnx` writes it"
        )
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes is too large for a manifest")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: damaged, not readable as JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{path}: not the manifest of a {FORMAT}")
    version = content.get("format_version")
    if type(version) is not int or version not in ARRAY_ENDINGS:
        known = ", ".join(map(str, ARRAY_ENDINGS))
        raise BundleError(
            f"{path}: format version {version}; this version reads {known}: "
            "export the checkpoint again, or install the hat-export that wrote it"
        )
    try:
        return _parse(content, str(path))
    except SpecError as error:
        raise BundleError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(
            f"{path}: damaged manifest ({type(error).__name__}: {error}); export again"
        ) from None


def _arrays_name(name: str, version: int) -> str:
    return Path(name).stem + ARRAY_ENDINGS[version]


def _parse(content: Mapping[str, Any], source: str) -> Manifest:
    if content["precision"] not in PRECISIONS:
        raise BundleError(
            f"{source}: precision {content['precision']!r}; this version knows "
            f"{', '.join(PRECISIONS)}: install the hat-export that wrote it"
        )
    files = {}
    for name, info in content["files"].items():
        if not _FILE_NAME.fullmatch(name) or name in (MANIFEST, SIGNATURE):
            raise BundleError(f"{source}: file name {name!r} leads out of the bundle")
        files[name] = FileInfo(int(info["bytes"]), str(info["sha256"]))
    graphs = {name: _parse_graph(content["graphs"][name]) for name in GRAPHS}
    for name, graph in graphs.items():
        inputs, outputs = (
            {tensor.name for tensor in some} for some in (graph.inputs, graph.outputs)
        )
        if inputs != GRAPH_INPUTS[name] or not GRAPH_OUTPUTS[name] <= outputs:
            raise ValueError(f"inputs or outputs of the {name} graph have other names")
    engines = {
        name: EngineInfo.from_json(content["engines"][name])
        for name in GRAPHS
        if name in content.get("engines", {})
    }
    for name, engine in engines.items():
        dims = {d for tensor in graphs[name].inputs for d in tensor.shape if isinstance(d, str)}
        if any(not dims <= set(profile) for profile in engine.profiles):
            raise ValueError(
                f"a profile of the {name} engine lacks one of {', '.join(sorted(dims))}"
            )
    version = content["format_version"]
    arrays = [_arrays_name(name, version) for name in (SELF_TEST, PROJECTIONS)]
    needed = [TOKENIZER, *arrays, *(graph.file for graph in graphs.values())]
    needed += [engine.file for engine in engines.values()]
    missing = [name for name in needed if name not in files]
    if missing:
        raise BundleError(f"{source}: lists no file {missing[0]!r}; export again")
    tools = {str(name): str(version) for name, version in content["tools"].items()}
    return Manifest(
        spec=ModelSpec.from_json(content["spec"], source),
        precision=str(content["precision"]),
        opset=int(content["opset"]),
        attention_form=str(content["attention_form"]),
        graphs=graphs,
        checkpoint=_parse_checkpoint(content["checkpoint"]),
        verification=_parse_verification(content["verification"]),
        tools=tools,
        files=files,
        engines=engines,
        quantization=_parse_quantization(content.get("quantization")),
        format_version=version,
    )


def _parse_checkpoint(content: Mapping[str, Any]) -> dict[str, Any]:
    checkpoint = dict(content)
    if not isinstance(checkpoint["sha256"], str):
        raise TypeError("the checkpoint's sha256 is no text")
    return checkpoint


def _parse_verification(content: Mapping[str, Any]) -> dict[str, Any]:
    for found in content.values():
        numbers = found["largest_difference"], found["tolerance"]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise TypeError("a difference that is no number")
        list(map(float, numbers))  # an integer may be too large to be shown
        list(found["runs"])
    return dict(content)


def _parse_quantization(content: Mapping[str, Any] | None) -> QuantizationInfo | None:
    if content is None:
        return None

    def texts(key: str) -> dict[str, str]:
        return {str(name): str(value) for name, value in content[key].items()}

    def numbers(key: str) -> dict[str, float]:
        return {str(name): float(value) for name, value in content[key].items()}

    return QuantizationInfo(
        target=str(content["target"]),
        requires=tuple(map(str, content["requires"])),
        layers=texts("layers"),
        kept=texts("kept"),
        smoothed=numbers("smoothed"),
        calibration=dict(content["calibration"]),
        source=texts("source"),
        errors=numbers("errors"),
        feature_tolerance=float(content["feature_tolerance"]),
        score_tolerance=float(content["score_tolerance"]),
    )


def _parse_graph(content: Mapping[str, Any]) -> GraphInfo:
    def tensors(key: str) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(str(item["name"]), _element_type(item["dtype"]), _shape(item["shape"]))
            for item in content[key]
        )

    return GraphInfo(
        file=str(content["file"]),
        inputs=tensors("inputs"),
        outputs=tensors("outputs"),
        nodes=int(content["nodes"]),
        attention_expected=int(content["attention_expected"]),
        attention_fused=int(content["attention_fused"]),
        kept_fp32={str(k): str(v) for k, v in content.get("kept_fp32", {}).items()},
    )


def _element_type(value: object) -> str:
    if value not in DTYPES:
        raise ValueError(f"element type {value!r}; expected one of {', '.join(DTYPES)}")
    return str(value)


def _shape(value: Sequence[object]) -> tuple[int | str, ...]:
    sizes: list[int | str] = []
    for size in value:
        if isinstance(size, bool) or not isinstance(size, (int, str)):
            raise TypeError(f"size {size!r}")
        if isinstance(size, int) and not 0 <= size <= LARGEST_SIZE:
            raise ValueError(f"size {size}")
        sizes.append(size)
    return tuple(sizes)


def _check_file(path: Path, info: FileInfo, verify: bool) -> None:
    try:
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: missing from the bundle; export again")
        size = path.stat().st_size
        if size != info.bytes:
            raise BundleError(
                f"{path}: {size} bytes, the manifest says {info.bytes}; the file is damaged or "
                "incomplete: copy the bundle again or export again"
            )
        if verify and sha256_of(path) != info.sha256:
            raise BundleError(
                f"{path}: its SHA-256 differs from the manifest's, the file is damaged or was "
                "changed: copy the bundle again or export again"
            )
    except OSError as error:
        raise BundleError(f"{path}: can't be read ({error.strerror})") from None
