"""TensorRT on a real GPU: engines built for it, their results, and what a session does with them.

Each test runs for every library that is installed and skips with the reason for the others.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hat_export import open_bundle
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.engines import Range
from hat_export.bundle.precision import PRECISIONS
from hat_export.errors import BackendUnavailableError
from hat_export.runtime.backends.engine_runner import PARTS
from hat_export.runtime.backends.tensorrt_backend import TensorRtSession
from hat_export.runtime.self_test import noise_captions, noise_pixels, run_self_test
from hat_export.runtime.trt_library import LIBRARIES, TensorRT, find_gpu, load_library
from hat_export.tensorrt.alignment_plugin import (
    LevelShape,
    add_alignment,
    plugin_module,
    register_alignment_plugin,
)
from hat_export.tensorrt.engine_export import export_engines
from hat_export.tensorrt.request import ProfileRequest, choose_targets

pytestmark = pytest.mark.gpu

PROFILE = ProfileRequest(Range(1, 4, 16), shortest=1, tuned=8, longest=None)


@pytest.fixture(scope="module", params=list(LIBRARIES))
def library(request: pytest.FixtureRequest) -> TensorRT:
    if find_gpu() is None:
        pytest.skip("no NVIDIA GPU, or no driver for it")
    try:
        return load_library(request.param)
    except BackendUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def demo_bundle(exported: Callable[..., Path]) -> Path:
    return exported("demo")


def build(source: Path, target: Path, library: TensorRT, precision: str) -> Bundle:
    targets = choose_targets(library, precision, [])
    return export_engines(source, target, library, precision, [PROFILE], targets).bundle


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "fp8"])
def test_features_and_scores_are_the_emulation_s(
    precision: str, library: TensorRT, demo_bundle: Path, tmp_path: Path
) -> None:
    gpu = find_gpu()
    if precision == "fp8" and gpu is not None and gpu.capability < 89:
        pytest.skip(f"fp8 needs sm_89, {gpu.name} is sm_{gpu.capability}")
    bundle = build(demo_bundle, tmp_path / "engines", library, precision)
    with (
        open_bundle(bundle.path, backend="emulation") as reference,
        open_bundle(bundle.path, backend="tensorrt") as session,  # runs the self-test
    ):
        tolerance = PRECISIONS[precision].feature_tolerance
        for count, words in ((1, 3), (5, 32), (33, 17)):
            pixels = noise_pixels(session.spec, count, seed=count)
            ids, mask = noise_captions(session.spec, count, words, seed=count)
            images, texts = session.encode_images(pixels), session.encode_texts(ids, mask)
            expected = reference.encode_images(pixels)
            for ours, theirs in zip(images.levels, expected.levels, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=tolerance)
            real = mask.astype(bool)
            for ours, theirs in zip(
                texts.levels, reference.encode_texts(ids, mask).levels, strict=True
            ):
                np.testing.assert_allclose(ours[real], theirs[real], atol=tolerance)
            # The same features in both: TF32's rounding of an input is 2^-11 of it.
            scores = session.score(images, texts)
            np.testing.assert_allclose(scores, reference.score(images, texts), atol=5e-3)


def test_attention_is_fused_by_the_engine_s_own_account(
    library: TensorRT, demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = build(demo_bundle, tmp_path / "engines", library, "fp16")
    engines = bundle.manifest.engines
    assert (engines["image"].attention_fused, engines["text"].attention_fused) == (8, 4)
    assert engines["image"].device


def test_captured_launches_parts_and_threads(
    library: TensorRT, demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = build(demo_bundle, tmp_path / "engines", library, "fp16")
    with TensorRtSession(bundle, threads=2) as session:
        inputs = [noise_pixels(session.spec, 4, seed) for seed in range(4)]
        expected = [session.encode_images(pixels) for pixels in inputs]
        assert set(session.parts("image")) == set(PARTS)
        assert session.parts("image")["compute"] > 0
        failures: list[int] = []

        def work(index: int) -> None:
            for _ in range(5):
                found = session.encode_images(inputs[index])
                if not np.allclose(found.levels[2], expected[index].levels[2], atol=1e-3):
                    failures.append(index)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


def test_a_second_start_finds_what_was_compiled(
    library: TensorRT, demo_bundle: Path, tmp_path: Path
) -> None:
    if not library.finishes_on_device:
        pytest.skip(f"{library.name} compiles nothing at start")
    bundle = build(demo_bundle, tmp_path / "engines", library, "fp16")
    for _ in range(2):
        with TensorRtSession(bundle, threads=1) as session:
            run_self_test(bundle, session)
        assert list(tmp_path.glob("engines.*.runtime-cache"))


def test_the_alignment_plugin_scores_as_the_kernel_does(library: TensorRT) -> None:
    try:
        plugin = plugin_module(library)
    except BackendUnavailableError as error:
        pytest.skip(str(error))
    import torch

    from hat_export.kernels import alignment_torch

    trt, gpu = library.module, find_gpu()
    assert gpu is not None
    regions = torch.randn(3, 49, 96, device="cuda", dtype=torch.float16)
    words = torch.randn(5, 20, 96, device="cuda")
    lengths = torch.tensor([20, 3, 1, 17, 9])
    norms = alignment_torch.region_norms(regions)
    captions = alignment_torch.prepare_captions(words, lengths, torch.float16)
    order = torch.arange(5, dtype=torch.int32, device="cuda")
    tensors = [
        *(regions, norms, captions.words),
        *(captions.factor, captions.caption_start, order),
    ]
    register_alignment_plugin(trt, plugin, gpu.capability)
    scores = run_plugin(trt, plugin, tensors, LevelShape(49, 96, 32, 9.0))
    expected = alignment_torch.score(regions, norms, captions, 9.0)
    # The kernel itself is the same up to the width of a caption's slot.
    np.testing.assert_allclose(scores.cpu(), expected.cpu(), atol=1e-5)
    assert math.isfinite(float(scores.sum()))


def run_plugin(trt: Any, plugin: Any, tensors: list[Any], level: LevelShape) -> Any:
    """An engine of one plugin layer, built and run on these tensors."""
    import torch

    kinds = {
        torch.float16: trt.float16,
        torch.float32: trt.float32,
        torch.int64: trt.int64,
        torch.int32: trt.int32,
    }
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    inputs = [
        network.add_input(f"input{index}", kinds[tensor.dtype], tuple(tensor.shape))
        for index, tensor in enumerate(tensors)
    ]
    output = add_alignment(plugin, network, inputs, level)
    output.name = "scores"
    network.mark_output(output)
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    scores = torch.empty(len(tensors[0]), len(tensors[5]), device="cuda")
    for index, tensor in enumerate(tensors):
        context.set_tensor_address(f"input{index}", tensor.data_ptr())
    context.set_tensor_address("scores", scores.data_ptr())
    stream = torch.cuda.current_stream()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return scores
