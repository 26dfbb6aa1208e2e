"""One code path for TensorRT and TensorRT-RTX, against a stub of the one that needs a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import hat_export.runtime.trt_library as library_module
import hat_export.tensorrt.build as build
import hat_export.tensorrt.cache as cache_module
import hat_export.tensorrt.request as request_module
from hat_export.base.progress import SILENT
from hat_export.bundle.bundle import TensorSpec
from hat_export.bundle.engines import EngineInfo, Range
from hat_export.bundle.replay import replay_commands
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.runtime.trt_library import Gpu, TensorRT, load_library
from hat_export.tensorrt.build import EngineRequest, build_engine
from hat_export.tensorrt.cache import EngineCache
from hat_export.tensorrt.request import choose_targets
from tensorrt_stub import TensorRtStub

H100 = Gpu("Stub H100", 90)
INPUT = TensorSpec("pixel_values", "float32", ("images", 3, 8, 8))
PROFILE = {"images": Range(1, 2, 4)}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> TensorRtStub:
    for module in (build, cache_module, request_module, library_module):
        monkeypatch.setattr(module, "find_gpu", lambda: H100)
    return TensorRtStub()


def test_full_tensorrt_builds_by_the_same_code(stub: TensorRtStub, tmp_path: Path) -> None:
    library = TensorRT("tensorrt", stub)
    cache = EngineCache(tmp_path / "cache", library)
    request = EngineRequest(tmp_path / "image.onnx", (INPUT,), (PROFILE,), (80, 90), tf32=False)
    built = build_engine(
        library, request, tmp_path / "e", tmp_path / "log", cache.timing_cache, SILENT, "building"
    )
    assert (tmp_path / "e").read_bytes() == b"plan"
    assert stub.network_flags == 1 << 1  # strongly typed, as TensorRT 11 is without being told
    assert stub.config.hardware_compatibility_level == "ampere+"
    assert stub.config.cleared == ["tf32"]
    assert stub.shapes == [("pixel_values", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))]
    assert [layer.is_fused_attention for layer in built.layers] == [True, False]
    assert built.layers[0].nodes == ("a/Attention",)
    assert (built.device, built.targets) == ("Stub H100", (80, 90))
    assert built.warnings == {"something is slow": 2}
    assert "something is slow" in (tmp_path / "log").read_text()


def test_what_was_measured_is_used_by_the_next_build(stub: TensorRtStub, tmp_path: Path) -> None:
    library = TensorRT("tensorrt", stub)
    timing = EngineCache(tmp_path / "cache", library).timing_cache
    assert timing.name == "tensorrt-10.14.1-sm_90.timing"
    request = EngineRequest(tmp_path / "image.onnx", (INPUT,), (PROFILE,), (), tf32=True)
    for before in (b"", b"measured"):
        build_engine(library, request, tmp_path / "e", tmp_path / "log", timing, SILENT, "building")
        assert stub.given_timing == before
    assert timing.read_bytes() == b"measuredmeasured"


def test_an_engine_is_cached_for_its_gpu(
    stub: TensorRtStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EngineCache(tmp_path / "cache", TensorRT("tensorrt", stub))
    request = EngineRequest(tmp_path / "image.onnx", (INPUT,), (PROFILE,), (), tf32=True)
    here = cache.key(request, "hash", "fp16")
    assert cache.key(request, "hash", "bf16") != here
    assert cache.key(request, "other", "fp16") != here
    monkeypatch.setattr(cache_module, "find_gpu", lambda: Gpu("Stub A100", 80))
    assert cache.key(request, "hash", "fp16") != here


def test_targets_of_full_tensorrt_are_the_gpu_at_hand_or_portable(stub: TensorRtStub) -> None:
    library = TensorRT("tensorrt", stub)
    assert choose_targets(library, "fp16", []) == ()
    assert choose_targets(library, "fp16", [90]) == (90,)
    assert choose_targets(library, "fp16", [90, 80]) == (80, 90)
    for wanted in ([80], [75, 90]):
        with pytest.raises(InputError, match=rf"--sm {wanted[0]}: .* Stub H100 \(sm_90\)"):
            choose_targets(library, "fp16", wanted)
    with pytest.raises(InputError, match="--sm 86: fp8 needs sm_89"):
        choose_targets(library, "fp8", [86])


def test_auto_takes_tensorrt_only_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__version__="1")
    monkeypatch.setattr(library_module, "_import", lambda name: (module, ""))
    for gpu, expected in ((H100, "tensorrt"), (None, "tensorrt-rtx")):
        monkeypatch.setattr(library_module, "find_gpu", lambda gpu=gpu: gpu)
        assert load_library("auto").name == expected


def test_without_any_library_both_remedies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "_import", lambda name: (None, f"{name} isn't here"))
    with pytest.raises(BackendUnavailableError, match=r"hat-export\[trt\].*hat-export\[rtx\]"):
        load_library("auto")
    with pytest.raises(BackendUnavailableError, match=r"install it with: .*hat-export\[rtx\]"):
        load_library("tensorrt-rtx")


def test_a_library_that_is_not_installed_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("tensorrt is installed here")
    command = [sys.executable, "-m", "hat_export.cli.export", "trt", str(tiny_bundle)]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), "--runtime", "tensorrt"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'hat-export[trt]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("version", ["10.14.1", "11.4.0"])
def test_commands_that_repeat_a_build(version: str) -> None:
    engine = EngineInfo(
        file="image.engine",
        log="image.build.log",
        library="tensorrt",
        version=version,
        targets=(80, 90),
        device="Stub H100",
        tf32=False,
        profiles=(PROFILE, {"images": Range(8, 8, 8)}),
        attention_expected=0,
        attention_fused=0,
        attention_apart=(),
        graph_sha256="",
    )
    inputs = {INPUT.name: INPUT.shape}
    commands = replay_commands(Path("a b"), "image.onnx", inputs, engine)
    typed = version.startswith("10.")
    assert commands["build"] == (
        "trtexec '--onnx=a b/image.onnx' --saveEngine=image.engine --profilingVerbosity=detailed "
        "--verbose --skipInference "
        + ("--stronglyTyped " if typed else "")
        + "--hardwareCompatibilityLevel=ampere+ --noTF32 "
        "--profile=0 --minShapes=pixel_values:1x3x8x8 --optShapes=pixel_values:2x3x8x8 "
        "--maxShapes=pixel_values:4x3x8x8 "
        "--profile=1 --minShapes=pixel_values:8x3x8x8 --optShapes=pixel_values:8x3x8x8 "
        "--maxShapes=pixel_values:8x3x8x8"
    )
    assert commands["time"] == (
        "trtexec '--loadEngine=a b/image.engine' --shapes=pixel_values:2x3x8x8"
    )
    assert ("--strongly-typed" in commands["compare"]) is typed
    assert commands["compare"].count("--trt-min-shapes") == 2
