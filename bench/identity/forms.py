"""What a file is, in three parts: its bytes, its form and its results.

| | graphs | JSON | arrays | builder's logs | others |
| --- | --- | --- | --- | --- | --- |
| bytes | SHA-256 | SHA-256 | SHA-256 | SHA-256 | SHA-256 |
| form | operators, attributes, wiring and weights, without inner names and order | without the keys
that are stripped | arrays by name | list of layers | |
| results | of a run at each batch | values without keys | arrays without names | | |
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

BATCHES = (1, 2, 3, 17)
WORDS = 12
#: Word pieces of made-up captions are below this; the demo model knows 4,699.
WORD_PIECES = 4000

#: JSON keys that hold dates, durations, memory, the machine, or hashes and sizes of files that have
#: items of their own; patterns.
STRIPPED = (
    *("*seconds", "*_ms", "*_memory*", "environment", "preflight", "load_average"),
    *("tools", "files", "manifest_sha256"),
)
#: Further ones of a case: sentences and choices that follow from durations, sizes of engines.
STRIPPED_OF = {
    "scoring": ("summary", "best_product", "gflops", "share_of_product", "factor"),
    "search-report": ("summary",),
    "q-search": ("summary", "pareto"),
    **{f"trt-{precision}": ("bytes",) for precision in ("fp16", "bf16", "fp32", "int8", "fp8")},
}
#: Numbers in a list of layers that differ from build to build: of tensors, layers and events.
BUILDER_NUMBERS = re.compile(r"mye\d+|[_.]\d+|Id: \d+")


@dataclass(frozen=True)
class Runner:
    """How graphs are run.

    Attributes:
        threads: Of ONNX Runtime.
        library: The program's own operators; None if it has none.
    """

    threads: int
    library: Path | None


def describe(path: Path, case: str, runner: Runner) -> dict[str, Any]:
    """Bytes, form and results of a file, as far as it has them; and a summary to show differences.

    Args:
        path: The file.
        case: Name of the case that wrote it.
        runner: For graphs.
    """
    content = path.read_bytes()
    found: dict[str, Any] = {"bytes": digest(content)}
    if path.suffix == ".onnx":
        model = onnx.load(path)
        operators = Counter(node.op_type for node in model.graph.node)
        found["form"] = canonical_form(model)
        found["results"] = run_graph(path, runner)
        found["summary"] = {**operators, "weights": len(model.graph.initializer)}
    elif path.suffix == ".json" and path.name != "tokenizer.json":
        kept = strip(json.loads(content), (*STRIPPED, *STRIPPED_OF.get(case, ())))
        values = dict(leaves(kept))
        found["form"] = digest(json.dumps(kept, sort_keys=True))
        found["results"] = digest(sorted(map(str, values.values())))
        found["summary"] = values
    elif path.suffix in (".npz", ".safetensors"):
        arrays = {name: tensor_hash(array) for name, array in read_arrays(path).items()}
        found["form"], found["results"] = arrays, digest(sorted(arrays.values()))
    elif path.name.endswith(".build.log"):
        layers = content.decode().partition("Layers:")[2].splitlines()
        found["form"] = digest(sorted(BUILDER_NUMBERS.sub("", layer) for layer in layers))
    return found


def canonical_form(model: onnx.ModelProto) -> str:
    """Hash of a graph without inner names and the order of nodes and weights.

    Every tensor is the hash of how it is computed: of its content for a weight, of its name, type
    and shape for an input, of operator, attributes and inputs for the others. The form is the
    sorted list of all nodes and weights, outputs with name, type and shape, and operator sets.

    Args:
        model: The graph, external data included.

    Raises:
        ValueError: on functions, sparse weights and graphs in graphs.
    """
    if model.functions or model.graph.sparse_initializer:
        raise ValueError("no canonical form of functions and sparse weights")
    values = {"": ""}
    parts: list[str] = []
    for tensor in model.graph.initializer:
        values[tensor.name] = tensor_hash(numpy_helper.to_array(tensor), tensor.data_type)
        parts.append(values[tensor.name])
    for value in model.graph.input:
        values[value.name] = digest(_declared(value))
    for node in model.graph.node:
        attributes = sorted((one.name, _attribute(one)) for one in node.attribute)
        inputs = [values[name] for name in node.input]
        parts.append(digest([node.domain, node.op_type, attributes, inputs, len(node.output)]))
        values |= {name: digest([parts[-1], n]) for n, name in enumerate(node.output) if name}
    parts += [digest([_declared(value), values[value.name]]) for value in model.graph.output]
    parts += [digest([opset.domain, opset.version]) for opset in model.opset_import]
    return digest(sorted(parts))


def _attribute(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return tensor_hash(numpy_helper.to_array(value), value.data_type)
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise ValueError("no canonical form of graphs in graphs")
    return repr(list(value) if attribute.ints or attribute.floats else value)


def _declared(value: onnx.ValueInfoProto) -> list[Any]:
    kind = value.type.tensor_type
    return [value.name, kind.elem_type, [one.dim_param or one.dim_value for one in kind.shape.dim]]


def run_graph(path: Path, runner: Runner) -> dict[str, str]:
    """Hash of a graph's outputs at each batch; where ONNX Runtime can't, its exception's name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = runner.threads, 1
    options.log_severity_level = 4
    if runner.library is not None:
        options.register_custom_ops_library(str(runner.library))
    found = {}
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        names = sorted(value.name for value in session.get_outputs())
        for batch in BATCHES:
            feeds = {one.name: feed(one.name, one.shape, batch) for one in session.get_inputs()}
            outputs = session.run(names, feeds)
            found[str(batch)] = digest([*zip(names, map(tensor_hash, outputs), strict=True)])
    except Exception as error:  # the library's exceptions share no base but Exception
        found["not run"] = type(error).__name__
    return found


def feed(name: str, shape: Sequence[int | str], batch: int) -> np.ndarray:
    """A fixed input, the same for every graph that has one of that name.

    Args:
        name: Of the input.
        shape: Sizes; ``words`` is :data:`WORDS`, another name the batch.
        batch: Images and captions.

    Returns:
        int64 for captions, which are of 2 to :data:`WORDS` words, and float32 for the others.
    """
    known = {"words": WORDS}
    sizes = [size if isinstance(size, int) else known.get(size, batch) for size in shape]
    random = np.random.default_rng([batch, zlib.crc32(name.encode())])
    if name not in ("input_ids", "attention_mask"):
        return random.standard_normal(sizes, np.float32)
    lengths = np.random.default_rng(batch).integers(2, WORDS + 1, (batch, 1))
    mask = (np.arange(WORDS) < lengths).astype(np.int64)
    return mask if name == "attention_mask" else mask * random.integers(1, WORD_PIECES, sizes)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz or .safetensors file."""
    if path.suffix == ".npz":
        with np.load(path) as opened:
            return {name: opened[name] for name in opened.files}
    from safetensors.numpy import load_file

    return load_file(path)


def strip(value: Any, patterns: Sequence[str]) -> Any:
    """JSON without the keys that fit one of the patterns."""
    if isinstance(value, list):
        return [strip(one, patterns) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: strip(one, patterns)
        for key, one in value.items()
        if not any(fnmatch.fnmatch(key, pattern) for pattern in patterns)
    }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text of JSON, with the keys that lead to it."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in pairs:
            yield from leaves(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def digest(value: Any) -> str:
    """SHA-256 of bytes, or of how Python writes a value."""
    content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(content).hexdigest()


def tensor_hash(array: np.ndarray, kind: int = 0) -> str:
    """SHA-256 of type, shape and content; ``kind`` is ONNX's type, which may have no numpy type."""
    return digest([kind, str(array.dtype), array.shape, digest(array.tobytes())])
