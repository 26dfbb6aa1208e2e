"""Sessions on engines: batching, copies, captured graphs and refusals, against stub libraries."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hat_export.runtime.backends.tensorrt_backend as backend
from cuda_stub import (
    COPY_BACK,
    COPY_UP,
    GPU,
    PROFILES,
    RUN,
    CudaStub,
    tensorrt_stub,
    with_engines,
)
from hat_export import open_bundle
from hat_export.benchmark.latency.record import read_run
from hat_export.benchmark.latency.report import latency_report
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.engines import Range
from hat_export.cli.bench.latency import latency_command
from hat_export.errors import BackendUnavailableError, EngineError, InputError
from hat_export.report.reader import read_report
from hat_export.runtime.backends.cuda import Cuda, open_cuda
from hat_export.runtime.backends.engine_runner import PARTS, choose_profile
from hat_export.runtime.backends.tensorrt_backend import TensorRtSession
from hat_export.runtime.self_test import noise_captions, noise_pixels, run_self_test
from hat_export.runtime.trt_library import TensorRT, find_gpu


def install(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, library: str = "tensorrt"
) -> tuple[CudaStub, TensorRT]:
    """Have the backend find the stubs."""
    cuda = CudaStub()
    module = tensorrt_stub(cuda, bundle, rtx=library == "tensorrt-rtx")
    found = TensorRT(library, module)
    monkeypatch.setattr(backend, "load_library", lambda name: found)
    monkeypatch.setattr(backend, "open_cuda", lambda: Cuda(cuda))
    monkeypatch.setattr(backend, "find_gpu", lambda: GPU)
    return cuda, found


@contextmanager
def opened(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, library: str = "tensorrt", threads: int = 2
) -> Iterator[tuple[TensorRtSession, CudaStub, TensorRT]]:
    cuda, found = install(bundle, monkeypatch, library)
    with TensorRtSession(bundle, threads) as session:
        yield session, cuda, found


def test_results_are_those_of_the_graphs_at_every_size(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches within, beyond and below the profiles; captions shorter than any profile takes."""
    bundle = with_engines(bundle_copy)
    with (
        open_bundle(bundle.path, threads=1) as reference,
        opened(bundle, monkeypatch) as (session, _, _),
    ):
        run_self_test(bundle, session)
        for count, words in ((1, 2), (3, 2), (4, 7), (11, 32)):
            pixels = noise_pixels(session.spec, count, seed=count)
            ids, mask = noise_captions(session.spec, count, words, seed=count)
            images, expected = session.encode_images(pixels), reference.encode_images(pixels)
            for ours, theirs in zip(images.levels, expected.levels, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
            reduced = session.reduce_images(pixels)
            for ours, theirs in zip(
                reduced.levels, reference.reduce_images(pixels).levels, strict=True
            ):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
            texts = session.encode_texts(ids, mask)
            real = mask.astype(bool)
            for ours, theirs in zip(
                texts.levels, reference.encode_texts(ids, mask).levels, strict=True
            ):
                assert ours.shape == theirs.shape
                np.testing.assert_allclose(ours[real], theirs[real], atol=1e-5)
            scores = session.score(images, texts)
            np.testing.assert_allclose(scores, reference.score(images, texts), atol=2e-5)


def test_copies_and_work_are_in_order_and_only_wanted_outputs_come_back(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(with_engines(bundle_copy), monkeypatch) as (session, cuda, _):
        session.encode_images(noise_pixels(session.spec, 1, seed=1))
        assert cuda.calls == ["wait", "up", "execute", "down", "down", "down", "wait"]
        assert session.parts("image") == microseconds(COPY_UP, RUN, 3 * COPY_BACK)


def microseconds(*values: float) -> dict[str, object]:
    """Seconds of the parts of a call."""
    return {
        part: pytest.approx(1e-6 * value, rel=1e-6)
        for part, value in zip(PARTS, values, strict=True)
    }


def test_parts_of_a_call_are_those_of_all_its_runs(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of at most 4 images and 5 captions: 11 and 7 of them are 3 and 2 runs, together 6."""
    with opened(with_engines(bundle_copy), monkeypatch) as (session, _, _):
        assert not session.parts("image")
        images = session.encode_images(noise_pixels(session.spec, 11, seed=1))
        texts = session.encode_texts(*noise_captions(session.spec, 7, 32, seed=1))
        session.score(images, texts)
        assert session.parts("image") == microseconds(3 * COPY_UP, 3 * RUN, 9 * COPY_BACK)
        assert session.parts("text") == microseconds(4 * COPY_UP, 2 * RUN, 6 * COPY_BACK)
        assert session.parts("alignment") == microseconds(42 * COPY_UP, 6 * RUN, 6 * COPY_BACK)


def test_a_latency_report_tells_copies_and_compute_apart(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, beside a backend that tells no parts."""
    bundle = with_engines(bundle_copy)
    install(bundle, monkeypatch)
    written = [tmp_path / f"report.{ending}" for ending in ("json", "md", "html")]
    latency_command(
        [bundle.path],
        backend=["onnxruntime", "tensorrt"],
        image_batch=[1, 8],
        text_batch=[1],
        score_size=["8x5"],
        gallery=[4],
        threads=[1],
        seconds=0,
        calls=2,
        passes=2,
        cold_starts=0,
        bound=False,
        report=written,
        quiet=True,
    )
    timings = {
        (timing["component"], timing["size"], timing["target"].split("(")[1]): timing
        for timing in read_report(written[0])["data"]["timings"]
    }
    assert len(timings) == 14
    for (component, _, target), timing in timings.items():
        told = target == "tensorrt)" and component != "preprocessing"
        assert list(timing["part_p50_ms"]) == (list(PARTS) if told else [])
        assert list(timing["passes"][0]["part_seconds"]) == list(timing["part_p50_ms"])

    def parts(component: str, size: str) -> list[float]:
        return list(timings[component, size, "tensorrt)"]["part_p50_ms"].values())

    assert parts("images", "8") == pytest.approx([0.002, 0.008, 0.012])
    assert parts("texts", "1 x 16") == pytest.approx([0.002, 0.004, 0.006])
    assert parts("scores", "8 x 5") == pytest.approx([0.014, 0.008, 0.004])
    # A caption through the text encoder, then its scores.
    assert parts("end to end", "1 caption, 4 images") == pytest.approx([0.009, 0.008, 0.008])

    shown = [
        table for table in latency_report(read_run(written[0])).tables if "Parts" in table.title
    ]
    assert [table.columns[4:] for table in shown] == [(*PARTS, "the rest")]
    assert len(shown[0].rows) == 5
    assert "host to device" in written[1].read_text()
    assert "Parts of a call" in written[2].read_text()


def test_launches_of_a_shape_are_captured_and_forgotten_when_buffers_move(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(with_engines(bundle_copy), monkeypatch, threads=1) as (session, cuda, _):

        def launches(count: int) -> list[str]:
            cuda.calls.clear()
            session.encode_images(noise_pixels(session.spec, count, seed=1))
            return [call for call in cuda.calls if call in ("execute", "launch graph")]

        assert launches(2) == ["execute"]
        assert launches(2) == ["execute", "launch graph"]  # the execute is only recorded
        assert launches(2) == ["launch graph"]
        assert launches(3) == ["execute"]
        assert launches(2) == ["launch graph"]
        # Another profile: shapes seen under the first are worth nothing.
        assert launches(1) == ["execute"]
        assert launches(2) == ["execute"]


def test_captured_launches_give_the_results_of_new_inputs(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engines(bundle_copy)
    with (
        open_bundle(bundle.path, threads=1) as reference,
        opened(bundle, monkeypatch, threads=1) as (session, _, _),
    ):
        for seed in range(5):
            pixels = noise_pixels(session.spec, 2, seed=seed)
            ours, theirs = session.encode_images(pixels), reference.encode_images(pixels)
            np.testing.assert_allclose(ours.levels[2], theirs.levels[2], atol=1e-5)


def test_threads_have_contexts_of_their_own(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engines(bundle_copy)
    with opened(bundle, monkeypatch, threads=2) as (session, _, library):
        expected = {seed: session.encode_images(pixels(session, seed)) for seed in range(4)}
        failures = []

        def work(seed: int) -> None:
            for _ in range(3):
                found = session.encode_images(pixels(session, seed))
                if not np.array_equal(found.levels[0], expected[seed].levels[0]):
                    failures.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert 1 <= len(library.module.engines["image"].contexts) <= 2


def pixels(session: TensorRtSession, seed: int) -> np.ndarray:
    return noise_pixels(session.spec, 2, seed)


def test_after_a_failed_call_the_next_one_has_a_context_of_its_own(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(with_engines(bundle_copy), monkeypatch, threads=1) as (session, _, library):
        expected = session.encode_images(pixels(session, 1))
        (context,) = library.module.engines["image"].contexts
        context.execute_async_v3 = lambda stream: False
        with pytest.raises(EngineError, match=r"image\.onnx: the engine doesn't execute"):
            session.encode_images(pixels(session, 1))
        found = session.encode_images(pixels(session, 1))
        np.testing.assert_array_equal(found.levels[0], expected.levels[0])
        assert len(library.module.engines["image"].contexts) == 2


def test_everything_is_freed(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(with_engines(bundle_copy), monkeypatch) as (session, cuda, _):
        for count in (1, 2, 2, 2, 3):
            session.encode_images(noise_pixels(session.spec, count, seed=1))
        assert cuda.memory
        assert cuda.handles
    assert not cuda.memory
    assert not cuda.handles


def test_rtx_captures_by_itself_and_keeps_what_it_compiled(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engines(bundle_copy, library="tensorrt-rtx")
    for start in (b"compiled", b"compiledcompiled"):
        with opened(bundle, monkeypatch, library="tensorrt-rtx") as (session, cuda, library):
            for _ in range(3):
                session.encode_images(noise_pixels(session.spec, 2, seed=1))
            assert cuda.calls.count("execute") == 3
            assert "launch graph" not in cuda.calls
            engine = library.module.engines["image"]
            assert engine.config.cuda_graph_strategy == "whole graph"
        path = bundle.path.parent / f"{bundle.path.name}.image.11.4.0-sm_89.runtime-cache"
        assert path.read_bytes() == start
    Bundle.read(bundle.path)  # the bundle itself is as it was


def edited(bundle: Bundle, **changes: object) -> Bundle:
    engines = {
        name: replace(info, **changes)  # type: ignore[arg-type]
        for name, info in bundle.manifest.engines.items()
    }
    return Bundle(bundle.path, replace(bundle.manifest, engines=engines))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "10.9.0"}, r"built by tensorrt 10\.9\.0, and this is tensorrt 11\.4\.0"),
        ({"targets": (80, 120)}, r"built for sm_80, sm_120, and Stub GPU is sm_89"),
        ({"graph_sha256": "0" * 64}, r"built from another graph than image\.onnx"),
    ],
)
def test_an_engine_for_something_else_is_one_line_with_the_command(
    changes: dict[str, object],
    reason: str,
    bundle_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = "tensorrt-rtx" if "targets" in changes else "tensorrt"
    bundle = edited(with_engines(bundle_copy, library=library), **changes)
    command = (
        rf"hat-export trt {bundle.path} {bundle.path}-rebuilt --precision fp32 --runtime {library}"
    )
    with (
        pytest.raises(EngineError, match=rf"image\.engine: {reason}; build again with: {command}"),
        opened(bundle, monkeypatch, library),
    ):
        pass


def test_a_portable_engine_of_full_tensorrt_runs_on_newer_gpus(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(edited(with_engines(bundle_copy), targets=(80, 90)), monkeypatch) as (
        session,
        _,
        _,
    ):
        assert session.backend == "tensorrt"


def test_a_damaged_engine_is_refused(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = with_engines(bundle_copy)
    (bundle.path / "text.engine").write_text("texu")
    with pytest.raises(Exception, match=r"text\.engine: its SHA-256 differs"):
        Bundle.read(bundle.path)
    # Unverified, TensorRT itself refuses it.
    with (
        pytest.raises(EngineError, match=r"text\.engine: .* Magic tag does not match; build again"),
        opened(bundle, monkeypatch),
    ):
        pass


def test_a_bundle_without_engines_names_the_command(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"no image engine; .*hat-export trt .*tiny OUT"):
        TensorRtSession(Bundle.read(tiny_bundle), threads=1)


def test_captions_longer_than_every_profile_are_refused(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = with_engines(bundle_copy)
    short = {"captions": Range(1, 2, 4), "words": Range(1, 8, 8)}
    with opened(edited(bundle, profiles=(short | {"images": Range(1, 2, 4)},)), monkeypatch) as (
        session,
        _,
        _,
    ):
        ids, mask = noise_captions(session.spec, 2, 9, seed=1)
        with pytest.raises(
            InputError, match=r"no profile takes captions of 9 words; .*--max-words"
        ):
            session.encode_texts(ids, mask)


def test_the_first_profile_that_fits_is_chosen() -> None:
    assert choose_profile(PROFILES, {"images": 1}) == 0
    assert choose_profile(PROFILES, {"images": 2, "words": 3}) == 1
    assert choose_profile(PROFILES, {"images": 2, "words": 2}) is None


def test_a_failing_cuda_call_says_which_and_why() -> None:
    stub = CudaStub()
    stub.cudaMalloc = lambda size: (2, 0)  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="cudaMalloc failed: made up"):
        Cuda(stub)("cudaMalloc", 1)


def test_without_a_gpu_the_backend_says_so() -> None:
    if find_gpu() is not None:
        pytest.skip("a GPU is here: tests/runtime/backends/test_tensorrt_gpu.py runs on it")
    with pytest.raises(BackendUnavailableError, match=r"backend tensorrt"):
        open_cuda()
