"""The alignment engine with the plugin, from the command to a session's scores, on stub libraries.

The network that is built is recorded and computed with numpy; only the plugin's kernel is replaced
by the formula (tests/kernels/test_alignment_plugin_triton.py compares the kernel itself).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import hat_export
import hat_export.runtime.backends.tensorrt_backend as backend
import hat_export.runtime.trt_library as library_module
import hat_export.tensorrt.alignment_network as network_module
import hat_export.tensorrt.build as build_module
import hat_export.tensorrt.cache as cache_module
import hat_export.tensorrt.request as request_module
from cuda_stub import GPU, PROFILES, CudaStub, tensorrt_stub, with_engines
from hat_export.bundle.bundle import Bundle, list_files, write_manifest
from hat_export.bundle.engines import Range
from hat_export.bundle.inspect import bundle_report, engine_commands
from hat_export.errors import BackendUnavailableError, EngineError, InputError
from hat_export.runtime.backends.alignment_inputs import (
    pack_captions,
    plugin_inputs,
    plugin_profile,
)
from hat_export.runtime.backends.cuda import Cuda
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.runtime.trt_library import Gpu, TensorRT
from hat_export.spec import COSINE_FLOOR, LEAKY_SLOPE, NORM_EPSILON
from hat_export.tensorrt.alignment_network import PluginRequest, check_plugin, fill_network
from hat_export.tensorrt.engine_export import export_engines
from hat_export.tensorrt.request import ProfileRequest
from tensorrt_stub import TensorRtStub

Values = Mapping[str, np.ndarray]


@dataclass
class Tensor:
    """A tensor of a network: how to compute it from the inputs."""

    compute: Callable[[Values], np.ndarray]
    name: str = ""


class Network:
    """``INetworkDefinition`` as far as the alignment needs it, on numpy."""

    def __init__(self) -> None:
        self.num_layers = 0
        self.inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.outputs: list[Tensor] = []
        self.casts: list[str] = []

    def add_input(self, name: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
        self.inputs[name] = (dtype, shape)
        return Tensor(lambda values: values[name])

    def _layer(self, compute: Callable[[Values], np.ndarray]) -> Any:
        return SimpleNamespace(get_output=lambda index: Tensor(compute))

    def add_cast(self, tensor: Tensor, dtype: str) -> Any:
        self.casts.append(dtype)
        return self._layer(lambda values: tensor.compute(values).astype(dtype).astype("float32"))

    def add_elementwise(self, first: Tensor, second: Tensor, operation: str) -> Any:
        run = {"PROD": np.multiply, "SUM": np.add}[operation]
        return self._layer(lambda values: run(first.compute(values), second.compute(values)))

    def add_reduce(self, tensor: Tensor, operation: str, axes: int, keep_dims: bool) -> Any:
        assert (operation, axes, keep_dims) == ("SUM", 4, False)
        return self._layer(lambda values: tensor.compute(values).sum(2))

    def add_unary(self, tensor: Tensor, operation: str) -> Any:
        assert operation == "SQRT"
        return self._layer(lambda values: np.sqrt(tensor.compute(values)))

    def add_plugin(self, made: tuple[tuple[Tensor, ...], dict[str, Any]], aot: bool) -> Any:
        assert aot
        tensors, attributes = made
        return self._layer(
            lambda values: plugin_scores(
                *(tensor.compute(values) for tensor in tensors), **attributes
            )
        )

    def mark_output(self, tensor: Tensor) -> None:
        self.outputs.append(tensor)


def plugin_scores(
    regions: np.ndarray,
    norms: np.ndarray,
    rows: np.ndarray,
    factor: np.ndarray,
    starts: np.ndarray,
    order: np.ndarray,
    slot: int,
    softmax_lambda: float,
) -> np.ndarray:
    """What the kernel computes of the plugin's inputs, pair by pair."""
    scores = np.empty((len(regions), len(order)), np.float32)
    for place, caption in enumerate(order):
        words = rows[starts[caption] : starts[caption + 1]]
        assert len(words) <= slot
        triangle = factor[caption][:, : len(words)]
        assert not factor[caption][:, len(words) :].any()
        for image, (features, sizes) in enumerate(zip(regions, norms, strict=True)):
            dots = features @ words.T
            leaky = np.where(dots > 0, dots, LEAKY_SLOPE * dots)
            logits = softmax_lambda * leaky / (np.linalg.norm(leaky, axis=0) + NORM_EPSILON)
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            attended = np.linalg.norm(weights @ triangle.T, axis=1)
            cosine = (weights * dots).sum(1) / np.maximum(attended * sizes, COSINE_FLOOR)
            scores[image, place] = cosine.mean()
    return scores


def library() -> TensorRT:
    """Full TensorRT as far as a network of the alignment needs it."""
    kinds = ("float32", "float16", "bfloat16", "int32", "int64")
    module = SimpleNamespace(
        __name__="stub",
        __version__="11.4.0",
        ElementWiseOperation=SimpleNamespace(PROD="PROD", SUM="SUM"),
        ReduceOperation=SimpleNamespace(SUM="SUM"),
        UnaryOperation=SimpleNamespace(SQRT="SQRT"),
        **{kind: kind for kind in kinds},
    )
    return TensorRT("tensorrt", module)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Installs a stub of ``tensorrt.plugin``; gives the capabilities it is registered for."""
    capabilities: list[int] = []
    made = SimpleNamespace(
        aot_impl=None,
        op=SimpleNamespace(
            hat_export=SimpleNamespace(
                alignment_i2t=lambda *tensors, **attributes: (tensors, attributes)
            )
        ),
    )
    monkeypatch.setattr(network_module, "plugin_module", lambda found: made)
    monkeypatch.setattr(
        network_module,
        "register_alignment_plugin",
        lambda trt, module, capability: capabilities.append(capability),
    )
    return capabilities


class NetworkSession:
    """A recorded network with the interface of ONNX Runtime's session."""

    def __init__(self, network: Network, bundle: Bundle) -> None:
        self._network = network
        self._inputs = plugin_inputs(bundle.manifest.spec)
        self._outputs = bundle.manifest.graphs["alignment"].outputs

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=t.name, shape=t.shape, type=t.dtype) for t in self._inputs]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=t.name, shape=t.shape, type=t.dtype) for t in self._outputs]

    def run(self, outputs: None, feed: Values) -> list[np.ndarray]:
        return [self._network.outputs[0].compute(feed)]


def with_plugin(folder: Path) -> Bundle:
    """A bundle whose alignment engine is the plugin's."""
    bundle = with_engines(folder)
    engines = dict(bundle.manifest.engines)
    profiles = tuple(plugin_profile(profile) for profile in PROFILES)
    engines["alignment"] = replace(engines["alignment"], form="plugin", profiles=profiles)
    write_manifest(folder, replace(bundle.manifest, engines=engines, files=list_files(folder)))
    return Bundle.read(folder)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_network_takes_features_in_the_type_of_the_encoders(
    precision: str, plugin: list[int], tiny_bundle: Path
) -> None:
    spec = Bundle.read(tiny_bundle, verify=False).manifest.spec
    network = Network()
    fill_network(library(), network, PluginRequest(spec, precision, 32), 89)
    assert plugin == [89]
    kind = {"fp16": "float16", "bf16": "bfloat16"}.get(precision)
    assert network.casts == ([kind] * 6 if kind else [])
    assert network.inputs["image_level2"] == ("float32", (-1, spec.level_regions[1], spec.dim))
    assert network.inputs["caption_order"] == ("int32", (-1,))
    assert [tensor.name for tensor in network.outputs] == ["scores"]


def test_a_session_scores_with_it_as_with_the_graph(
    bundle_copy: Path, plugin: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_plugin(bundle_copy)
    assert bundle.manifest.engines["alignment"].form == "plugin"
    network = Network()
    fill_network(library(), network, PluginRequest(bundle.manifest.spec, "fp32", 32), 89)
    cuda = CudaStub()
    module = tensorrt_stub(
        cuda, bundle, rtx=False, instead={"alignment": NetworkSession(network, bundle)}
    )
    monkeypatch.setattr(backend, "load_library", lambda name: TensorRT("tensorrt", module))
    monkeypatch.setattr(backend, "open_cuda", lambda: Cuda(cuda))
    monkeypatch.setattr(backend, "find_gpu", lambda: GPU)
    with (
        hat_export.open_bundle(bundle.path, threads=1) as reference,
        backend.TensorRtSession(bundle, threads=1) as session,
    ):
        for images, captions, words in ((1, 1, 2), (3, 7, 32), (5, 2, 9)):
            features = reference.encode_images(noise_pixels(session.spec, images, seed=1))
            texts = reference.encode_texts(*noise_captions(session.spec, captions, words, seed=2))
            found = session.score(features, texts)
            np.testing.assert_allclose(found, reference.score(features, texts), atol=2e-5)
        assert session.parts("alignment")["compute"] > 0


def test_an_export_builds_it_and_says_so(
    tiny_bundle: Path, plugin: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole export, with the two encoders' graphs parsed and the alignment's network filled."""
    for module in (build_module, cache_module, network_module, request_module, library_module):
        monkeypatch.setattr(module, "find_gpu", lambda: GPU)
    module = TensorRtStub()
    for name, value in vars(library().module).items():
        if not name.startswith("__"):
            setattr(module, name, value)
    module.network = Network()
    batch = Range(1, 8, 100)
    found = export_engines(
        tiny_bundle,
        tmp_path / "out",
        TensorRT("tensorrt", module),
        "fp16",
        [ProfileRequest(batch, shortest=1, tuned=16, longest=20)],
        alignment="plugin",
        cache=tmp_path / "cache",
        threads=1,
    )
    manifest = Bundle.read(tmp_path / "out").manifest
    assert {name: engine.form for name, engine in manifest.engines.items()} == {
        "image": "graph",
        "text": "graph",
        "alignment": "plugin",
    }
    assert plugin == [GPU.capability]
    assert [tensor.name for tensor in module.network.outputs] == ["scores"]
    assert manifest.engines["alignment"].profiles == (
        {
            "images": Range(1, 8, 64),
            "captions": Range(1, 8, 64),
            "words": Range(1, 16, 20),
            "rows": Range(1, 128, 1280),
            "starts": Range(2, 9, 65),
        },
    )
    assert ("caption_start", (2,), (9,), (65,)) in module.shapes
    dim = manifest.spec.dim
    assert ("text_level3_rows", (1, dim), (128, dim), (1280, dim)) in module.shapes
    # With the graph it is another engine, not that of the cache.
    again = export_engines(
        tiny_bundle,
        tmp_path / "graph",
        TensorRT("tensorrt", module),
        "fp16",
        [ProfileRequest(batch, shortest=1, tuned=16, longest=20)],
        cache=tmp_path / "cache",
        threads=1,
    )
    assert [build.cached for build in found.builds] == [False, False, False]
    assert [build.cached for build in again.builds] == [True, True, False]


def test_packed_captions_have_the_factor_of_their_gram_matrix() -> None:
    random = np.random.default_rng(0)
    feed = {
        f"text_level{level}": random.normal(size=(3, 5, 4)).astype(np.float32)
        for level in (1, 2, 3)
    }
    feed["attention_mask"] = (np.arange(5) < np.array([[5], [1], [3]])).astype(np.int64)
    packed = pack_captions(feed)
    assert packed["caption_start"].tolist() == [0, 5, 6, 9]
    assert packed["caption_order"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(packed["text_level1_rows"][5], feed["text_level1"][1, 0])
    for caption, length in enumerate((5, 1, 3)):
        words = feed["text_level2"][caption, :length]
        triangle = packed["text_level2_factor"][caption]
        np.testing.assert_allclose(
            (triangle.T @ triangle)[:length, :length], words @ words.T, atol=1e-5
        )
        assert not triangle[:, length:].any()


def test_what_is_missing_is_said_before_anything_is_built(
    plugin: list[int], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = Bundle.read(tiny_bundle, verify=False).manifest.spec
    monkeypatch.setattr(network_module, "find_gpu", lambda: None)
    with pytest.raises(BackendUnavailableError, match=r"needs an NVIDIA GPU to build; leave"):
        check_plugin(library(), spec)
    monkeypatch.setattr(network_module, "find_gpu", lambda: Gpu("Stub", 89))
    with pytest.raises(InputError, match=r"this model scores t2i, the plugin i2t"):
        check_plugin(library(), replace(spec, direction="t2i"))
    check_plugin(library(), spec)
    monkeypatch.setattr(network_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="pip install triton"):
        check_plugin(library(), spec)


def test_tensorrt_rtx_is_refused_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX isn't installed")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hat_export.cli.export", "trt", tiny_bundle, tmp_path / "out"),
            *("--alignment", "plugin", "--runtime", "tensorrt-rtx", "-q"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs full TensorRT 10.8 or newer: use --runtime tensorrt, or leave" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_kernel_is_for_the_target_or_for_all_from_sm_80_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_module, "find_gpu", lambda: Gpu("Stub", 90))
    assert build_module._kernel_target(()) == 90
    assert build_module._kernel_target((89,)) == 89
    assert build_module._kernel_target((90, 120)) == 80
    monkeypatch.setattr(build_module, "find_gpu", lambda: None)
    with pytest.raises(BackendUnavailableError):
        build_module._kernel_target(())


def test_inspection_says_which_it_is(bundle_copy: Path) -> None:
    bundle = with_plugin(bundle_copy)
    tables = {table.title: table for table in bundle_report(bundle, verified=False).tables}
    built_from = [row[2] for row in tables["TensorRT engines"].rows]
    assert built_from == ["image.onnx", "text.onnx", "the alignment plugin"]
    assert set(engine_commands(bundle)) == {"image", "text"}


def test_the_command_to_build_again_has_the_option(bundle_copy: Path) -> None:
    bundle = with_plugin(bundle_copy)
    engines = {n: replace(e, version="9") for n, e in bundle.manifest.engines.items()}
    old = Bundle(bundle.path, replace(bundle.manifest, engines=engines))
    with pytest.raises(EngineError, match="--alignment plugin --runtime tensorrt"):
        backend.check_engine(old, "image", library(), GPU)
