"""The model repository for Triton Inference Server, as it is written."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from hat_export.bundle.bundle import Bundle
from hat_export.cli.export import app
from hat_export.errors import InputError, OutputError
from hat_export.runtime.backends.opening import open_bundle
from hat_export.serving.repository import ServingOptions, write_repository
from picture_samples import pictures, write_folder

model_config = pytest.importorskip(
    "tritonclient.grpc.model_config_pb2", reason="tritonclient isn't installed"
)


def read_config(folder: Path) -> Any:
    from google.protobuf import text_format

    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config.ModelConfig())


def test_an_onnx_repository_is_complete(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    target = tmp_path / "models"
    options = ServingOptions(max_batch=16, queue_delay=500, instances=2, threads=3, gpu=True)
    names = write_repository(bundle, target, options)
    assert names == ["hat_image", "hat_text", "hat_alignment", "hat_score"]
    assert sorted(path.name for path in target.iterdir()) == sorted(names)
    image = read_config(target / "hat_image")
    assert (image.backend, image.max_batch_size) == ("onnxruntime", 16)
    assert image.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(g.count, g.kind) for g in image.instance_group] == [
        (2, image.instance_group[0].KIND_GPU)
    ]
    assert list(image.input[0].dims) == [3, 64, 64]
    assert image.version_policy.latest.num_versions == 1
    assert image.parameters["intra_op_thread_count"].string_value == "3"
    assert [one.name for one in image.output] == ["image_level1", "image_level2", "image_level3"]
    for graph in ("image", "text", "alignment"):
        copied = (target / f"hat_{graph}" / "1" / "model.onnx").read_bytes()
        assert copied == bundle.graph_path(graph).read_bytes()
    alignment = read_config(target / "hat_alignment")
    assert alignment.max_batch_size == 0
    assert [list(one.dims) for one in alignment.output] == [[-1, -1]]
    score = read_config(target / "hat_score")
    assert [step.model_name for step in score.ensemble_scheduling.step] == names[:3]
    # Every tensor that a step takes is an input of the ensemble or comes out of a step before.
    known = {one.name for one in score.input}
    for step in score.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= known
        known |= set(step.output_map.values())
    assert {one.name for one in score.output} <= known


def test_the_warm_up_is_the_self_test(tiny_bundle: Path, tmp_path: Path) -> None:
    write_repository(Bundle.read(tiny_bundle), tmp_path / "models", ServingOptions())
    stored = load_file(tiny_bundle / "self_test.safetensors")
    pixels, ids = stored["pixel_values"], stored["input_ids"]
    for name, tensor, values in (
        ("hat_image", "pixel_values", pixels[0]),
        ("hat_text", "input_ids", ids[0]),
    ):
        (warmup,) = read_config(tmp_path / "models" / name).model_warmup
        entry = warmup.inputs[tensor]
        assert list(entry.dims) == list(values.shape)
        data = (tmp_path / "models" / name / "warmup" / entry.input_data_file).read_bytes()
        assert data == values.tobytes()


def test_tensorrt_engines_become_plans(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("image", "text"):
        (tmp_path / f"{name}.plan").write_bytes(name.encode())
    arguments = ["triton", str(tiny_bundle), str(tmp_path / "models"), "--backend", "tensorrt"]
    arguments += ["--image-engine", str(tmp_path / "image.plan")]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, InputError)
    assert not (tmp_path / "models").exists()
    arguments += ["--text-engine", str(tmp_path / "text.plan"), "--version", "3"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (tmp_path / "models" / "hat_text" / "3" / "model.plan").read_bytes() == b"text"
    text = read_config(tmp_path / "models" / "hat_text")
    assert text.platform == "tensorrt_plan"
    assert text.instance_group[0].kind == text.instance_group[0].KIND_GPU


def test_what_does_not_fit_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    with pytest.raises(InputError, match="expected one of"):
        write_repository(bundle, tmp_path / "m", ServingOptions(backend="torch"))
    with pytest.raises(InputError, match="only with it"):
        write_repository(bundle, tmp_path / "m", ServingOptions(engines={"image": tiny_bundle}))
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputError, match="exists"):
        write_repository(bundle, tmp_path / "there", ServingOptions())


class _Request(dict[str, np.ndarray]):
    """What the server hands to a Python model."""


@pytest.fixture
def server_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that Triton's stub provides, as far as the models use it."""

    class Tensor:
        def __init__(self, name: str, values: np.ndarray) -> None:
            self.name, self.values = name, values

        def as_numpy(self) -> np.ndarray:
            return self.values

    class Response:
        def __init__(self, output_tensors: Any = (), error: Any = None) -> None:
            self.tensors = {one.name: one.values for one in output_tensors}
            self.error = error

    def get_input(request: _Request, name: str) -> Tensor | None:
        return Tensor(name, request[name]) if name in request else None

    module = types.ModuleType("triton_python_backend_utils")
    vars(module).update(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=str,
        get_input_tensor_by_name=get_input,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)


@pytest.mark.usefixtures("server_module")
def test_a_wrong_request_spoils_no_other(tiny_bundle: Path) -> None:
    """A batch of the server's holds requests of strangers."""
    from hat_export.serving.python_models import ImageModel

    model = ImageModel()
    parameters = {"bundle": {"string_value": str(tiny_bundle)}, "threads": {"string_value": "1"}}
    model.initialize({"model_config": json.dumps({"parameters": parameters})})
    good = np.random.default_rng(0).standard_normal((3, 3, 64, 64), np.float32)
    bad = np.zeros((1, 3, 64, 64), np.float64)
    requests = [_Request(pixel_values=good[:1]), _Request(pixel_values=bad)]
    requests.append(_Request(pixel_values=good[1:]))
    first, second, third = model.execute(requests)
    assert "float64" in second.error
    with open_bundle(tiny_bundle, threads=1, verify=False) as session:
        expected = session.encode_images(good).levels
    for level, values in enumerate(expected, start=1):
        name = f"image_level{level}"
        assert np.allclose(first.tensors[name], values[:1], atol=1e-5)
        assert np.allclose(third.tensors[name], values[1:], atol=1e-5)
    model.finalize()


def test_a_search_model_needs_an_index_of_the_same_model(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", pictures(3))
    index = tmp_path / "i.hatidx"
    CliRunner().invoke(app, ["index", str(tiny_bundle), str(folder), str(index), "-q"])
    bundle = Bundle.read(tiny_bundle)
    options = ServingOptions(index=index, bundle_at=Path("/in/server"), index_at=Path("/index"))
    assert "hat_search" in write_repository(bundle, tmp_path / "m", options)
    config = read_config(tmp_path / "m" / "hat_search")
    assert config.parameters["index"].string_value == "/index"
    assert config.parameters["bundle"].string_value == "/in/server"
    assert (tmp_path / "m" / "hat_search" / "1" / "model.py").is_file()
    text = (tmp_path / "captions.txt").write_text("a dog\n")
    assert text
    captions = tmp_path / "c.hatidx"
    CliRunner().invoke(
        app,
        ["index", str(tiny_bundle), str(tmp_path / "captions.txt"), str(captions), "--captions"],
    )
    with pytest.raises(InputError, match="expected one of images"):
        write_repository(bundle, tmp_path / "n", ServingOptions(index=captions))
