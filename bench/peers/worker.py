"""One peer in a process of its own, which lives through the run and works when it is told to.

Reads one JSON object a line from standard input and answers with one on standard output. A process
of its own gives each peer a clean peak memory and start time, and keeps libraries with thread pools
or OpenMP runtimes of their own apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hat_export.base.machine import peak_memory
from hat_export.base.timer import Timer
from hat_export.benchmark.roofline.libraries import LIBRARIES, exact_product
from hat_export.benchmark.roofline.products import Product
from peers.points import INPUTS

Call = Callable[[], Any]


class Peer:
    """An encoder by one implementation.

    Args:
        model: File to load.
        threads: Threads that it may use.
    """

    #: Imported before the clock starts.
    modules: tuple[str, ...] = ()

    def __init__(self, model: Path, threads: int) -> None:
        self.model = model
        self.threads = threads

    def load(self, inputs: dict[str, np.ndarray]) -> None:
        """Make everything ready for inputs of these sizes."""
        raise NotImplementedError

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Features of the three levels."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What else the table says of this peer."""
        return {}


class TorchEager(Peer):
    """PyTorch as it is."""

    modules = ("torch", "peers.prepare")

    def load(self, inputs: dict[str, np.ndarray]) -> None:
        import torch

        torch.set_num_threads(self.threads)
        self.module: Any = torch.load(self.model, weights_only=False)

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        import torch

        with torch.inference_mode():
            outputs = self.module(*map(torch.from_numpy, inputs.values()))
        return [output.numpy() for output in outputs]


class TorchCompile(TorchEager):
    """``torch.compile``, one program for each size."""

    def load(self, inputs: dict[str, np.ndarray]) -> None:
        import torch

        super().load(inputs)
        self.module = torch.compile(self.module, dynamic=False)


class OnnxRuntime(Peer):
    """An ONNX file in ONNX Runtime on the CPU, set up as hat-export's own backend does it."""

    modules = ("onnxruntime",)

    def load(self, inputs: dict[str, np.ndarray]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.register(options)
        self.session: Any = onnxruntime.InferenceSession(
            str(self.model), options, providers=["CPUExecutionProvider"]
        )
        names = {output.name for output in self.session.get_outputs()}
        encoder = "image" if "pixel_values" in inputs else "text"
        self.outputs = [f"{encoder}_level{level}" for level in (1, 2, 3)]
        if not names.issuperset(self.outputs):
            raise ValueError(f"{self.model} gives {sorted(names)}, not {self.outputs}")

    def register(self, options: Any) -> None:
        """Make operators known that the model needs."""

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session.run(self.outputs, inputs)
        return outputs

    def facts(self) -> dict[str, Any]:
        import onnx

        return {"nodes": len(onnx.load(self.model, load_external_data=False).graph.node)}


class HatExport(OnnxRuntime):
    """A graph of ``hat-export onnx --target onnxruntime``."""

    def register(self, options: Any) -> None:
        from hat_export.kernels import operators

        options.register_custom_ops_library(str(operators.library_path()))


class OpenVino(Peer):
    """OpenVINO for one request at a time.

    Attributes:
        precision: What it may compute in; empty leaves that to OpenVINO.
        static: Whether the sizes of the inputs are fixed when the model is compiled.
    """

    modules = ("openvino",)
    precision = "f32"
    static = False

    def load(self, inputs: dict[str, np.ndarray]) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(self.model)
        if self.static:
            model.reshape({name: list(value.shape) for name, value in inputs.items()})
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        if self.precision:
            settings["INFERENCE_PRECISION_HINT"] = self.precision
        self.compiled: Any = core.compile_model(model, "CPU", settings)
        self.request: Any = self.compiled.create_infer_request()

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        results = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        return [results[output] for output in self.compiled.outputs]

    def facts(self) -> dict[str, Any]:
        hint = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        nodes = len(self.compiled.get_runtime_model().get_ops())
        return {"nodes": nodes, "precision": {"f32": "float32", "bf16": "bfloat16"}.get(hint, hint)}


class OpenVinoStatic(OpenVino):
    """OpenVINO with fixed sizes: faster, and one compiled model for each size."""

    static = True


class OpenVinoDefault(OpenVino):
    """OpenVINO in the precision that it chooses for the machine."""

    precision = ""


PEERS: dict[str, type[Peer]] = {
    "torch": TorchEager,
    "compile": TorchCompile,
    "onnxruntime": OnnxRuntime,
    "hat-export": HatExport,
    "openvino": OpenVino,
    "openvino-static": OpenVinoStatic,
    "openvino-default": OpenVinoDefault,
}


class Worker:
    """Answers requests; the last point or product that was prepared is the one that runs.

    Args:
        name: Of :data:`PEERS` or :data:`LIBRARIES`.
        model: File of a peer; None for a library.
        threads: Threads to use.
    """

    def __init__(self, name: str, model: Path | None, threads: int) -> None:
        self.name, self.model, self.threads = name, model, threads
        self.call: Call | None = None

    def prepare(self, reference: str) -> dict[str, Any]:
        """Load the peer for a point, run it once, compare it with the reference."""
        assert self.model is not None
        peer = PEERS[self.name](self.model, self.threads)
        with np.load(reference) as stored:
            arrays = {name: stored[name] for name in stored.files}
        inputs = {
            k: v for names in INPUTS.values() for k in names if (v := arrays.get(k)) is not None
        }
        for module in peer.modules:
            __import__(module)
        started = time.perf_counter()
        peer.load(inputs)
        outputs = peer.run(inputs)
        seconds = time.perf_counter() - started
        differences, errors = [], []
        for level, output in enumerate(outputs, start=1):
            wanted = arrays[f"level{level}"]
            if output.shape != wanted.shape:
                raise ValueError(f"level {level} has shape {output.shape}, not {wanted.shape}")
            gap = np.asarray(output, np.float64) - wanted
            differences.append(float(np.abs(gap).max()))
            errors.append(float(np.sqrt(np.square(gap).mean() / np.square(wanted).mean())))
        del outputs, arrays
        self.peer, self.call = peer, lambda: peer.run(inputs)
        found = {
            "start_seconds": seconds,
            "largest_difference": max(differences),
            "relative_error": max(errors),
            "finite": bool(np.isfinite(differences).all()),
        }
        if not found["finite"]:
            found |= {"largest_difference": None, "relative_error": None}
        return found

    def product(self, batch: int, rows: int, inner: int, columns: int) -> dict[str, Any]:
        """Make a product ready."""
        product = Product(batch, rows, inner, columns)
        self.call = exact_product(self.name, product, self.threads)
        return {"flops": product.flops}

    def time(self, calls: int, warm_up: int) -> dict[str, Any]:
        """Seconds of each of some calls."""
        assert self.call is not None
        found = Timer().repeat(self.call, calls, warm_up=warm_up)
        return {"seconds": [call.own for call in found], "peak_bytes": peak_memory()}

    def facts(self) -> dict[str, Any]:
        """What the peer tells of itself; asked last, since it may take memory."""
        return self.peer.facts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*PEERS, *LIBRARIES])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    # Answers go to the real standard output; what libraries print goes to the log.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        worker = Worker(arguments.name, arguments.model, arguments.threads)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(worker, request.pop("do"))(**request)
            except Exception as error:  # any failure of a peer is a line in the table
                import traceback

                traceback.print_exc()
                first = (str(error).strip().splitlines() or [""])[0]
                answer = {"error": f"{type(error).__name__}: {first}"[:300]}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
