"""Makes the model files that the peers load; each is made once and kept.

Runs as a program, so that what an exporter leaves in memory goes with its process:

    python bench/peers/prepare.py plain image runs/encoders/official
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import hat_export
from hat_export.model.hat import HAT
from hat_export.spec import ModelSpec
from peers.points import INPUTS, Point

CHECKPOINT = "checkpoint"


class Encoder(nn.Module):
    """One side of HAT with nothing of the other, as exporters want it.

    Args:
        hat: The model; its other half is dropped.
        name: ``image`` or ``text``.
    """

    def __init__(self, hat: HAT, name: str) -> None:
        super().__init__()
        for child, _ in list(hat.named_children()):
            side = "text" if "text" in child else "image"
            if side != name:
                delattr(hat, child)
        self.hat = hat
        self.encode = name

    def forward(self, first: Tensor, second: Tensor | None = None) -> tuple[Tensor, ...]:
        """Features of the three levels."""
        if second is None:
            return self.hat.encode_images(first)
        return self.hat.encode_texts(first, second)


def make_torch(encoder: str, folder: Path) -> None:
    """The PyTorch module as it is, pickled whole."""
    checkpoint = (folder / CHECKPOINT).read_text(encoding="utf-8")
    with hat_export.load(checkpoint) as session:
        torch.save(Encoder(session.model.eval(), encoder), target(folder, "torch", encoder))


def make_plain(encoder: str, folder: Path) -> None:
    """What ``torch.onnx.export`` gives when it is asked for dynamic sizes and nothing else."""
    module, spec = read_module(folder, encoder), read_spec(folder)
    point = Point("image", 2) if encoder == "image" else Point("text", 3, 8)
    inputs = tuple(map(torch.from_numpy, point.inputs(spec).values()))
    dims = {0: torch.export.Dim("images", min=1, max=512)}
    if encoder == "text":
        words = torch.export.Dim("words", min=2, max=spec.max_words)
        dims = {0: torch.export.Dim("captions", min=1, max=512), 1: words}
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            dynamic_shapes=tuple(dims for _ in inputs),
            input_names=list(INPUTS[encoder]),
            output_names=[f"{encoder}_level{level}" for level in (1, 2, 3)],
        )
    assert program is not None
    program.save(target(folder, "plain", encoder))


def make_optimized(encoder: str, folder: Path) -> None:
    """The plain export after ``onnxruntime.transformers.optimizer``."""
    from onnxruntime.transformers.optimizer import optimize_model

    spec = read_spec(folder)
    heads, width = (spec.text_heads, spec.text_dim) if encoder == "text" else (0, 0)
    model = optimize_model(
        str(target(folder, "plain", encoder)),
        model_type={"image": "swin", "text": "bert"}[encoder],
        num_heads=heads,
        hidden_size=width,
        use_gpu=False,
    )
    model.save_model_to_file(str(target(folder, "optimized", encoder)))


def make_openvino(encoder: str, folder: Path) -> None:
    """The plain export converted to OpenVINO's format, weights in float32."""
    import openvino

    model = openvino.convert_model(target(folder, "plain", encoder))
    openvino.save_model(model, target(folder, "openvino", encoder), compress_to_fp16=False)


def write_reference(folder: Path, point: Point) -> Path:
    """Float32 features of a point by PyTorch, as an archive beside its inputs."""
    path = folder / "reference" / f"{str(point).replace(':', '-')}.npz"
    inputs = point.inputs(read_spec(folder))
    with torch.inference_mode():
        outputs = read_module(folder, point.encoder)(*map(torch.from_numpy, inputs.values()))
    levels = {f"level{n}": output.numpy() for n, output in enumerate(outputs, start=1)}
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **inputs, **levels)
    return path


#: Endings of the files in each peer's folder.
ENDINGS = {"torch": ".pt", "plain": ".onnx", "optimized": ".onnx", "openvino": ".xml"}

MAKERS: dict[str, Callable[[str, Path], None]] = {
    "torch": make_torch,
    "plain": make_plain,
    "optimized": make_optimized,
    "openvino": make_openvino,
}


def target(folder: Path, kind: str, encoder: str) -> Path:
    """Where a model file of an encoder lies."""
    return folder / kind / f"{encoder}{ENDINGS[kind]}"


def read_spec(folder: Path) -> ModelSpec:
    """The architecture that the folder's files are of."""
    return ModelSpec.parse((folder / "spec.json").read_text(encoding="utf-8"))


def read_module(folder: Path, encoder: str) -> Encoder:
    """The pickled PyTorch module; written by :func:`make_torch`, so it is trusted."""
    module: Encoder = torch.load(target(folder, "torch", encoder), weights_only=False)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=[*MAKERS, "reference"])
    parser.add_argument("what", help="image or text; a point for reference")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    if arguments.kind == "reference":
        write_reference(folder, Point.parse(arguments.what))
        return
    goal = folder / arguments.kind
    goal.mkdir(exist_ok=True)
    try:
        MAKERS[arguments.kind](arguments.what, folder)
    except BaseException:
        for path in goal.glob(f"{arguments.what}.*"):
            path.unlink() if path.is_file() else shutil.rmtree(path)
        raise


if __name__ == "__main__":
    # Pickles name classes by module: this one must be `peers.prepare`, not `__main__`.
    from peers.prepare import main as program

    program()
