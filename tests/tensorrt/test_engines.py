"""Engines built for real, without a GPU: what they fuse, what they take, and what goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hat_export.base.progress import SILENT
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.engines import Range
from hat_export.bundle.inspect import bundle_report
from hat_export.data.karpathy import read_karpathy
from hat_export.errors import EngineError, FusionError, InputError, OutputError
from hat_export.export.attention import DecomposeAttention
from hat_export.runtime.backends.emulation_backend import EmulatedSession
from hat_export.runtime.onnx_graphs import tensor_types
from hat_export.runtime.self_test import run_self_test
from hat_export.runtime.trt_library import TensorRT, load_library
from hat_export.tensorrt.build import EngineRequest, build_engine
from hat_export.tensorrt.engine_export import EngineExport, export_engines
from hat_export.tensorrt.fusion import attention_apart, attention_nodes, layers_in_log
from hat_export.tensorrt.report import engine_report
from hat_export.tensorrt.request import ProfileRequest, choose_targets
from places import MODEL
from progress_calls import CountCalls

pytest.importorskip(
    "tensorrt_rtx",
    reason="TensorRT-RTX isn't installed: PyPI has wheels for x86-64 only; "
    "pip install 'hat-export[rtx]'",
)

PROFILE = ProfileRequest(Range(1, 4, 16), shortest=1, tuned=8, longest=None)


@pytest.fixture(scope="module")
def library() -> TensorRT:
    return load_library("tensorrt-rtx")


@pytest.fixture(scope="module")
def demo_bundle(exported: Callable[..., Path]) -> Path:
    return exported("demo")


@pytest.fixture(scope="module")
def demo_engines(
    demo_bundle: Path, library: TensorRT, tmp_path_factory: pytest.TempPathFactory
) -> EngineExport:
    folder = tmp_path_factory.mktemp("engines")
    return export_engines(
        demo_bundle,
        folder / "engines",
        library,
        "fp16",
        [PROFILE],
        choose_targets(library, "fp16", []),
        require_fused=True,
        cache=folder / "cache",
        threads=1,
    )


def test_every_attention_layer_of_the_demo_model_is_one_kernel(demo_engines: EngineExport) -> None:
    engines = demo_engines.bundle.manifest.engines
    counts = {name: (e.attention_fused, e.attention_expected) for name, e in engines.items()}
    assert counts == {"image": (8, 8), "text": (4, 4), "alignment": (0, 0)}
    assert all(not engine.attention_apart for engine in engines.values())


def test_engines_are_dynamic_in_images_captions_and_words(demo_engines: EngineExport) -> None:
    engines = demo_engines.bundle.manifest.engines
    batch, words = Range(1, 4, 16), Range(1, 8, 32)
    assert engines["image"].profiles == ({"images": batch},)
    assert engines["text"].profiles == ({"captions": batch, "words": words},)
    assert engines["alignment"].profiles == ({"images": batch, "captions": batch, "words": words},)


def test_a_bundle_with_engines_is_read_back_as_it_was_written(demo_engines: EngineExport) -> None:
    bundle = Bundle.read(demo_engines.bundle.path)
    assert bundle.manifest.engines == demo_engines.bundle.manifest.engines
    for engine in bundle.manifest.engines.values():
        assert bundle.file(engine.file).stat().st_size > 1000
        assert "Layers:" in bundle.file(engine.log).read_text()
        assert engine.targets == (80, 86, 89, 120, 121)


def test_the_graphs_that_were_built_run_on_the_cpu(demo_engines: EngineExport) -> None:
    with EmulatedSession(demo_engines.bundle, threads=1) as session:
        differences = run_self_test(demo_engines.bundle, session)
    assert 1e-4 < max(differences.values()) < 5e-2


def test_a_second_build_comes_from_the_cache_and_a_changed_one_does_not(
    demo_bundle: Path, demo_engines: EngineExport, library: TensorRT, tmp_path: Path
) -> None:
    cache = demo_engines.bundle.path.parent / "cache"
    assert [build.cached for build in demo_engines.builds] == [False, False, False]

    def again(name: str, profile: ProfileRequest) -> EngineExport:
        targets = choose_targets(library, "fp16", [])
        return export_engines(
            demo_bundle,
            tmp_path / name,
            library,
            "fp16",
            [profile],
            targets,
            cache=cache,
            threads=1,
        )

    second = again("second", PROFILE)
    assert [build.cached for build in second.builds] == [True, True, True]
    for name, engine in demo_engines.bundle.manifest.engines.items():
        first = demo_engines.bundle.file(engine.file).read_bytes()
        assert second.bundle.file(engine.file).read_bytes() == first, name
    assert second.bundle.manifest.engines == demo_engines.bundle.manifest.engines
    # Other words: the image engine doesn't depend on them.
    third = again("third", replace(PROFILE, tuned=9))
    assert [build.cached for build in third.builds] == [True, False, False]


def test_a_damaged_cache_entry_is_built_again(
    tiny_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    def build(name: str) -> list[bool]:
        result = export_engines(
            tiny_bundle,
            tmp_path / name,
            library,
            "fp16",
            [PROFILE],
            (89,),
            cache=tmp_path / "cache",
            threads=1,
        )
        return [build.cached for build in result.builds]

    assert build("first") == [False, False, False]
    for engine in (tmp_path / "cache").glob("*/engine"):
        content = bytearray(engine.read_bytes())
        content[len(content) // 2] ^= 1
        engine.write_bytes(content)
    assert build("second") == [False, False, False]
    assert build("third") == [True, True, True]


def test_several_profiles_in_one_engine(
    tiny_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    profiles = [
        ProfileRequest(Range(1, 1, 1), 1, 16, None),
        ProfileRequest(Range(2, 8, 32), 1, 16, 24),
    ]
    result = export_engines(tiny_bundle, tmp_path / "out", library, "fp16", profiles, (80,))
    profiles_of_text = result.bundle.manifest.engines["text"].profiles
    assert [profile["captions"].largest for profile in profiles_of_text] == [1, 32]
    assert [profile["words"].largest for profile in profiles_of_text] == [32, 24]
    engines = result.bundle.manifest.engines
    assert (engines["image"].attention_fused, engines["text"].attention_fused) == (9, 4)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_other_precisions(
    precision: str, tiny_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    result = export_engines(tiny_bundle, tmp_path / "out", library, precision, [PROFILE], (80,))
    engines = result.bundle.manifest.engines
    fused = {"bf16": (9, 4), "fp32": (0, 0)}[precision]
    assert (engines["image"].attention_fused, engines["text"].attention_fused) == fused
    assert all(engine.tf32 is (precision != "fp32") for engine in engines.values())
    if precision == "fp32":
        # The text report names what is not fused.
        shown = engine_report(result, commands=False).to_markdown()
        assert "vit_model.layers.2.blocks.3/Attention" in shown
        assert "text_transformer.encoder.layer.3/Attention" in shown


@pytest.mark.parametrize(("precision", "kind"), [("int8", "Int8"), ("fp8", "FP8")])
def test_linear_layers_in_int8_and_fp8(
    precision: str, kind: str, demo_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    targets, cache = choose_targets(library, precision, []), tmp_path / "cache"
    result = export_engines(
        demo_bundle,
        tmp_path / "out",
        library,
        precision,
        [PROFILE],
        targets,
        require_fused=True,
        cache=cache,
        calibration=read_karpathy(MODEL.parent / "emojicap", "val").limit(8),
        threads=1,
    )
    manifest = result.bundle.manifest
    for name, layers in (("image", 8 * 4 + 3), ("text", 4 * 4)):
        log = result.bundle.file(manifest.engines[name].log).read_text()
        products = re.findall(rf"^Name: .*LayerType: gemm,.*Datatype: {kind}.*$", log, re.MULTILINE)
        assert len(products) == layers
    # Built again from itself, it needs no calibration: its graphs are taken as they are.
    again = export_engines(
        result.bundle.path, tmp_path / "two", library, precision, [PROFILE], targets, cache=cache
    )
    assert [build.cached for build in again.builds] == [True, True, True]
    for graph in ("image", "text"):
        assert again.bundle.graph_sha256(graph) == result.bundle.graph_sha256(graph)
    with pytest.raises(InputError, match=f"--precision {precision} needs --calibration"):
        export_engines(demo_bundle, tmp_path / "three", library, precision, [PROFILE], (89,))
    # The features move, by more than fp16's rounding and less than would cost recall.
    found = manifest.verification[f"features in {precision}"]["largest_difference"]
    assert 1e-2 < found < 1.0


def test_fp32_attention_is_taken_apart_without_changing_it(tiny_bundle: Path) -> None:
    import onnxruntime

    model = onnx.load(tiny_bundle / "text.onnx")
    apart = DecomposeAttention()(model).model
    onnx.checker.check_model(apart, full_check=True)
    assert not any(node.op_type == "Attention" for node in apart.graph.node)
    assert len(attention_nodes(apart)) == len(attention_nodes(model)) == 4
    ids = np.array([[2, 5, 7, 3], [2, 9, 3, 0]])
    feed = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    results = [
        onnxruntime.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, feed)
        for graph in (model, apart)
    ]
    for before, after in zip(*results, strict=True):
        # Sums in another order.
        np.testing.assert_allclose(after, before, atol=1e-5)


def test_on_turing_the_alignment_s_products_are_in_fp16(
    demo_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    """TensorRT-RTX has no fp32 products there: without that, nothing would be built."""
    targets = choose_targets(library, "fp16", [75, 89])

    def build(source: Path, name: str) -> EngineExport:
        cache = tmp_path / "cache"
        return export_engines(
            source, tmp_path / name, library, "fp16", [PROFILE], targets, cache=cache
        )

    result = build(demo_bundle, "one")
    assert all(e.targets == (75, 89) for e in result.bundle.manifest.engines.values())
    model = onnx.load(result.bundle.graph_path("alignment"))
    types = tensor_types(model)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    others = [n for n in model.graph.node if n.op_type in ("ReduceL2", "Softmax", "Div")]
    assert {types[node.output[0]] for node in products} == {onnx.TensorProto.FLOAT16}
    assert {types[node.output[0]] for node in others} == {onnx.TensorProto.FLOAT}
    # Built again from itself, its graphs are taken as they are.
    again = build(result.bundle.path, "two")
    assert again.bundle.graph_sha256("alignment") == result.bundle.graph_sha256("alignment")
    assert [build.cached for build in again.builds] == [True, True, True]
    with pytest.raises(InputError, match=r"--sm 75: .* no fp32 products there; use --fp16"):
        choose_targets(library, "fp32", [75])


def test_a_missing_fusion_is_an_error_and_leaves_nothing(
    tiny_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    with pytest.raises(
        FusionError, match=r"image engine: 0 of 10 .* not fused: vit_model.* 7 more"
    ):
        export_engines(
            tiny_bundle, tmp_path / "out", library, "fp32", [PROFILE], (80,), require_fused=True
        )
    assert not list(tmp_path.iterdir())


def test_only_fused_kernels_count() -> None:
    log = [
        "Layers:\n"
        "Name: _gemm_mha_v2_myl0_6, LayerType: kgen, Metadata: [ONNX Layer: a/Attention]\n"
        "Name: attention_gemm_7, LayerType: gemm, Metadata: [ONNX Layer: b/MatMul]\n"
        "Name: __myl_Softmax, LayerType: kgen, Metadata: [ONNX Layer: b/Softmax][ONNX Layer: c]"
    ]
    layers = layers_in_log(["something else", *log])
    assert [layer.is_fused_attention for layer in layers] == [True, False, False]
    assert layers[2].nodes == ("b/Softmax", "c")
    nodes = ["a/Attention", "b/Softmax"]
    assert attention_apart(nodes, layers, profiles=1) == ("b/Softmax",)
    # With a second profile a kernel of one profile alone isn't enough.
    assert attention_apart(nodes, layers, profiles=2) == tuple(nodes)


def test_a_graph_that_cannot_be_built_is_one_line_with_the_log(
    tmp_path: Path, library: TensorRT
) -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd/node", domain="odd")
    value = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["images"])
        for name in ("x", "y")
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "odd", value[:1], value[1:]),
        opset_imports=[onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("odd", 1)],
    )
    onnx.save_model(model, tmp_path / "odd.onnx")
    request = EngineRequest(tmp_path / "odd.onnx", (), (), (80,), tf32=False)
    with pytest.raises(EngineError, match=r"odd\.onnx: tensorrt-rtx .* can't read .*odd/node.*log"):
        build_engine(library, request, tmp_path / "e", tmp_path / "log", None, SILENT, "building")
    assert "NoSuchOperator" in (tmp_path / "log").read_text()
    assert not (tmp_path / "e").exists()


def test_an_interrupt_stops_the_builder_in_order(
    tiny_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done > 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_engines(
            tiny_bundle,
            tmp_path / "out",
            library,
            "fp16",
            [PROFILE],
            (80,),
            progress=CountCalls(interrupt),
        )
    assert not list(tmp_path.iterdir())


def test_targets_that_cannot_be_had_are_refused(library: TensorRT) -> None:
    with pytest.raises(InputError, match=r"--sm 90: .* builds for sm_75, .*--runtime tensorrt"):
        choose_targets(library, "fp16", [90])
    with pytest.raises(InputError, match="--sm 75: bf16 needs sm_80"):
        choose_targets(library, "bf16", [75])
    assert choose_targets(library, "fp16", [120, 75, 75]) == (75, 120)


def test_sources_that_cannot_be_built_are_refused(
    exported: Callable[..., Path], demo_engines: EngineExport, library: TensorRT, tmp_path: Path
) -> None:
    packed = exported("tiny", attention="packed")
    with pytest.raises(InputError, match="operators for ONNX Runtime"):
        export_engines(packed, tmp_path / "out", library, "fp16", [PROFILE], (80,))
    with pytest.raises(InputError, match="are fp16 already"):
        export_engines(
            demo_engines.bundle.path, tmp_path / "out", library, "bf16", [PROFILE], (80,)
        )
    long = replace(PROFILE, longest=33)
    with pytest.raises(InputError, match="at most 32"):
        export_engines(demo_engines.bundle.path, tmp_path / "out", library, "fp16", [long], (80,))
    reverse = replace(PROFILE, batch=Range(1, 4, 2))
    with pytest.raises(InputError, match=r"--opt-batch 4.*ascending"):
        export_engines(
            demo_engines.bundle.path, tmp_path / "out", library, "fp16", [reverse], (80,)
        )
    assert not (tmp_path / "out").exists()


def test_an_unwritable_cache_is_said_before_building(
    tiny_bundle: Path, library: TensorRT, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"engine cache can't be written .*--no-cache"):
        export_engines(
            tiny_bundle,
            tmp_path / "out",
            library,
            "fp16",
            [PROFILE],
            (80,),
            cache=tmp_path / "file" / "cache",
        )


def test_the_command_and_what_inspect_shows_of_its_result(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "hat_export.cli.export", "trt", tiny_checkpoint, out),
            *("--sm", "89", "--max-batch", "8", "--cache", tmp_path / "cache", "--report", report),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "image: 9 of 10 attention fused" in done.stdout
    assert "not measured" in done.stdout
    content = json.loads(report.read_text())["data"]
    assert content["engines"]["text"]["targets"] == [89]
    command = content["commands"]["text"]
    assert command["build"].startswith(f"tensorrt_rtx --onnx={out}/text.onnx")
    assert "--computeCapabilities=89" in command["build"]
    assert "--maxShapes=input_ids:8x32,attention_mask:8x32" in command["build"]
    assert "--trt-max-shapes 'input_ids:[8,32]'" in command["compare"]
    shown = bundle_report(Bundle.read(out), verified=True).to_markdown()
    assert "TensorRT engines" in shown
    assert "tensorrt_rtx --loadEngine=" in shown


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fp16", "--precision", "bf16"], "--fp16 and --precision bf16 exclude each other"),
        (["--precision", "fp32", "--calibration", "x"], "nothing can overflow"),
        (["--min-batch", "1", "--min-batch", "2", "--max-batch", "8"], "no such checkpoint"),
        (
            ["--min-batch", "1", "--min-batch", "2", *["--max-batch", "8"] * 3],
            "--min-batch is given 2 times",
        ),
        (["--cache", "x", "--no-cache"], "exclude each other"),
    ],
)
def test_wrong_options(options: list[str], expected: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hat_export.cli.export", "trt", "nowhere", str(tmp_path / "o")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
