"""Quantization: weights, ranges, graphs, bundles, plans, the search, and what users get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

from blockwise_weights import unblocked
from hat_export.base.machine import cpu_features
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.inspect import bundle_report
from hat_export.data.dataset import CaptionDataset
from hat_export.data.karpathy import read_karpathy
from hat_export.errors import BackendUnavailableError, InputError, ToleranceError
from hat_export.quantize import bundles as quantize_bundles
from hat_export.quantize.bundles import Quantizer, relative_errors
from hat_export.quantize.calibration import BINS, METHODS, Observer, observe_ranges
from hat_export.quantize.layers import Layer, find_layers, load_products
from hat_export.quantize.plan import Plan, read_plan, uniform_plan, write_plan
from hat_export.quantize.preflight import measure_products, preflight_report
from hat_export.quantize.report import search_report
from hat_export.quantize.rewrite import QuantizeLayers
from hat_export.quantize.schemes import SCHEMES, TARGETS, machine_target
from hat_export.quantize.search import Search, search_plan
from hat_export.quantize.smoothing import Smooth, find_smoothing
from hat_export.quantize.weights import block_size, blockwise, per_channel
from hat_export.runtime.backends.onnxruntime_backend import check_cpu, session_options
from hat_export.runtime.backends.opening import open_bundle
from hat_export.runtime.self_test import noise_captions, noise_pixels

CPU = ("cpu-vnni", "cpu-avx2", "arm64")


@pytest.fixture(scope="module")
def packed_bundle(exported: Callable[..., Path]) -> Path:
    return exported("tiny", attention="packed")


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(5)
    words = "red blue dog cat tree house old young runs sleeps".split()
    images = []
    for index in range(12):
        colours = random.integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(colours).resize((80, 72)).save(folder / f"{index}.png")
        sentences = [{"raw": " ".join(random.choice(words, 4))} for _ in range(2)]
        images.append({"filename": f"{index}.png", "split": "val", "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return folder


@pytest.fixture(scope="module")
def data(dataset_folder: Path) -> CaptionDataset:
    return read_karpathy(dataset_folder, "val")


@pytest.fixture(scope="module")
def quantizer(
    tiny_bundle: Path, data: CaptionDataset, tmp_path_factory: pytest.TempPathFactory
) -> Quantizer:
    work = tmp_path_factory.mktemp("work")
    return Quantizer(Bundle.read(tiny_bundle), work, 2, data)


# Weights


def test_channels_are_within_half_a_step() -> None:
    weight = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32)
    weight[:, 3] = 0
    for limit in (127, 64):
        values, scale = per_channel(weight, limit)
        assert np.abs(values.astype(int)).max() <= limit
        assert (np.abs(values * scale - weight) <= scale / 2 * 1.001).all()


@pytest.mark.parametrize(("bits", "inner"), [(8, 256), (8, 48), (4, 64), (4, 48), (4, 20)])
def test_blocks_come_back(bits: int, inner: int) -> None:
    rows = np.random.default_rng(1).standard_normal((9, inner)).astype(np.float32)
    size = block_size(inner, bits)
    values, scale = blockwise(rows, bits, size)
    restored = unblocked(values, scale, bits, inner)
    assert restored.shape == rows.shape
    error = np.linalg.norm(restored - rows) / np.linalg.norm(rows)
    # A step is a 127th or 7th of a range of about 2.5 standard deviations: step / sqrt 12.
    assert error < {8: 0.01, 4: 0.13}[bits]


def test_4_bits_clip_where_that_is_more_exact() -> None:
    row = np.random.default_rng(2).uniform(-0.7, 0.7, (1, 64)).astype(np.float32)
    row[0, 0] = 1.0
    values, scale = blockwise(row, 4, 64)
    plain = np.rint(row * 7) / 7
    clipped = unblocked(values, scale, 4, 64)
    assert np.square(clipped - row).sum() < np.square(plain - row).sum()


@pytest.mark.parametrize("bits", [8, 4])
def test_compensated_rounding_is_more_exact_where_it_counts(bits: int) -> None:
    random = np.random.default_rng(6)
    # Correlated channels, as activations have them.
    rows = random.standard_normal((512, 8)) @ random.standard_normal((8, 100))
    rows = (rows + 0.1 * random.standard_normal(rows.shape)).astype(np.float32)
    weight = random.standard_normal((100, 30)).astype(np.float32)
    exact, gram = rows @ weight, rows.T @ rows

    def error(gram: np.ndarray | None) -> float:
        if bits == 8:
            values, scale = per_channel(weight, 127, gram)
            restored = values * scale
        else:
            restored = unblocked(*blockwise(weight.T, 4, 32, gram), 4, 100).T
        assert np.abs(restored - weight).max() < np.abs(weight).max() / 2
        return float(np.linalg.norm(rows @ restored - exact) / np.linalg.norm(exact))

    assert error(gram) < 0.5 * error(None)


def test_compensation_bears_channels_that_are_always_zero() -> None:
    weight = np.random.default_rng(7).standard_normal((20, 5)).astype(np.float32)
    gram = np.zeros((20, 20), np.float32)
    gram[:10, :10] = np.eye(10)
    for one in (gram, np.zeros_like(gram)):
        values, scale = per_channel(weight, 127, one)
        assert np.abs(values * scale - weight).max() < 0.03


# Calibration


def test_a_stream_gives_the_histogram_of_the_whole() -> None:
    random = np.random.default_rng(3)
    batches = [random.standard_normal((5000, 6), np.float32) * k for k in (1, 3, 0.1, 20)]
    stream, whole = Observer(6), Observer(6)
    for batch in batches:
        stream.see(batch)
    whole.see(np.concatenate(batches[::-1]))
    assert (stream.low, stream.high) == (whole.low, whole.high)
    assert stream.counts.sum() == whole.counts.sum() == 4 * 5000 * 6
    np.testing.assert_array_equal(stream.largest, whole.largest)
    width = 2 * max(stream.reach, whole.reach) / BINS
    for method in ("minmax", "percentile", "mse"):
        # Bins lie elsewhere; shares of the widest range that are tried are 5 % apart.
        np.testing.assert_allclose(
            stream.range(method), whole.range(method), rtol=0.06, atol=2 * width
        )


def test_an_outlier_widens_only_minmax() -> None:
    values = np.random.default_rng(4).standard_normal((100_000, 4)).astype(np.float32)
    values[0, 0] = 200.0
    observer = Observer(4)
    observer.see(values)
    assert observer.range("minmax")[1] == 200.0
    for method in ("percentile", "entropy", "mse"):
        low, high = observer.range(method)
        assert low < -1.0, method
        assert 2.0 < high < 150.0, method


def test_ranges_hold_zero_and_nan_is_refused() -> None:
    observer = Observer(2)
    observer.see(np.array([[3.0, 4.0]], np.float32))
    assert all(observer.range(method)[0] == 0.0 for method in METHODS)
    with pytest.raises(InputError, match="NaN or infinite"):
        observer.see(np.array([[np.nan, 1.0]], np.float32))


# Graphs


def test_padding_is_not_calibrated_on(tiny_bundle: Path, tmp_path: Path) -> None:
    """Captions in one batch, padded to the longest, give what each gives by itself."""
    source = Bundle.read(tiny_bundle)
    path = source.graph_path("text")
    layers = find_layers(load_products(path))
    ids, mask = noise_captions(source.manifest.spec, 5, 12, seed=3)
    batches = {
        "together": [{"input_ids": ids, "attention_mask": mask}],
        "alone": [
            {"input_ids": row[None, :length], "attention_mask": np.ones((1, length), np.int64)}
            for row, length in zip(ids, mask.sum(1), strict=True)
        ],
    }
    found = {}
    for name, feeds in batches.items():
        folder = tmp_path / name
        folder.mkdir()
        found[name], _, _ = observe_ranges(load_products(path), folder, layers, feeds, 1)
    for layer, together in found["together"].items():
        alone = found["alone"][layer]
        assert together.counts.sum() == alone.counts.sum()
        np.testing.assert_allclose(together.largest, alone.largest, rtol=1e-4)


def test_every_product_and_the_table_are_found(quantizer: Quantizer, packed_bundle: Path) -> None:
    packed = [
        layer
        for name in ("image", "text")
        for layer in find_layers(load_products(Bundle.read(packed_bundle).graph_path(name)))
    ]
    names = [layer.name for layer in quantizer.all_layers]
    assert sorted(names) == sorted(layer.name for layer in packed)
    # A level's projection of 16 x 48 values is too small to be worth it.
    assert len(names) >= 10 * 4 + 4 * 4 + 3 + 1
    assert [layer.name for layer in quantizer.all_layers if layer.table] == [
        "text_transformer.embeddings.word_embeddings"
    ]


@pytest.mark.parametrize("form", ["tiny_bundle", "packed_bundle"])
@pytest.mark.parametrize(
    ("target", "scheme"),
    [(t, s) for t in TARGETS for s in TARGETS[t].schemes],
)
def test_every_scheme_makes_a_bundle_that_opens(
    form: str,
    target: str,
    scheme: str,
    data: CaptionDataset,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    source = Bundle.read(request.getfixturevalue(form))
    work = Quantizer(source, tmp_path / "work", 1, data.limit(4))
    plan = uniform_plan(work.all_layers, SCHEMES[scheme], TARGETS[target])
    if target == "tensorrt" and form == "packed_bundle":
        with pytest.raises(InputError, match="without --target onnxruntime"):
            work.write(plan, tmp_path / "out")
        return
    bundle = work.write(plan, tmp_path / "out")
    quantization = bundle.manifest.quantization
    assert quantization is not None
    assert set(quantization.layers) | set(quantization.kept) == {x.name for x in work.all_layers}
    assert bundle.manifest.to_json() == Bundle.read(tmp_path / "out").manifest.to_json()
    if cpu_features() & set(quantization.requires) or not quantization.requires:
        open_bundle(bundle.path, threads=1).close()  # with its self-test
        open_bundle(bundle.path, "emulation", threads=1).close()
    before, after = (
        sum(b.manifest.files[f"{name}.onnx"].bytes for name in ("image", "text"))
        for b in (source, bundle)
    )
    # The table is most of the tiny model; TensorRT keeps it.
    assert target == "tensorrt" or before / after > {8: 3.0, 4: 4.5}[SCHEMES[scheme].bits]
    domains = {item.domain for item in onnx.load(bundle.graph_path("image")).opset_import}
    if TARGETS[target].standard:
        assert domains == {""}


def test_static_products_are_integer_products_in_onnxruntime(
    quantizer: Quantizer, tmp_path: Path
) -> None:
    plan = uniform_plan(quantizer.all_layers, SCHEMES["int8-static"], TARGETS["cpu-vnni"])
    bundle = quantizer.write(plan, tmp_path / "out", check=False)
    for name in ("image", "text"):
        options = session_options(1, own_operators=False)
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(str(bundle.graph_path(name)), options)
        kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
        products = sum(not layer.table for layer in quantizer.layers[name])
        assert kinds["MatMulIntegerToFloat"] == products
        assert kinds["DequantizeLinear"] == 0


def test_weight_only_products_equal_those_of_the_restored_weights(quantizer: Quantizer) -> None:
    """The operator against numpy: what MatMulNBits computes is x times the restored weight."""
    model = onnx.load(quantizer.source.graph_path("text"))
    layer = next(x for x in quantizer.layers["text"] if x.name.endswith("intermediate.dense"))
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    exact = onnx.ModelProto()
    exact.CopyFrom(model)
    for tensor in exact.graph.initializer:
        if tensor.name == layer.weight:
            size = block_size(layer.inner, 4)
            values, scale = blockwise(weights[layer.weight].T, 4, size)
            restored = unblocked(values, scale, 4, layer.inner).T
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(restored), tensor.name))
    made = QuantizeLayers(Plan("cpu-vnni", {layer.name: "int4-weights"}), {})(model).model
    assert [n.op_type for n in made.graph.node].count("MatMulNBits") == 1
    feed = {"input_ids": np.array([[5, 6, 7]]), "attention_mask": np.ones((1, 3), np.int64)}
    results = [
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, feed)
        for one in (exact, made)
    ]
    for one, other in zip(*results, strict=True):
        # Its activations are int8 per block: 1/254 of the largest, a few in a row.
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(one).max())


def test_smoothing_changes_nothing_in_float32_and_helps_in_int8(
    tiny_checkpoint: Path,
    packed_bundle: Path,
    tiny_bundle: Path,
    data: CaptionDataset,
    tmp_path: Path,
) -> None:
    for path in (tiny_bundle, packed_bundle):
        source = Bundle.read(path)
        model = load_products(source.graph_path("image"))
        # An outlier channel as trained transformers have them: a norm's gain, and the weights
        # behind it, which undo it.
        norm, fc1 = (
            f"vit_model.layers.2.blocks.1.{name}" for name in ("norm2", "mlp.fc1.weight^T")
        )
        for tensor in model.graph.initializer:
            if tensor.name in (f"{norm}.weight", f"{norm}.bias", fc1):
                array = numpy_helper.to_array(tensor).copy()
                factor = np.float32(1 / 60 if tensor.name == fc1 else 60)
                array[3] *= factor
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        layers = find_layers(model)
        feeds = [{"pixel_values": noise_pixels(source.manifest.spec, 2, 1)}]
        watched = onnx.ModelProto()
        watched.CopyFrom(model)
        folder = tmp_path / path.name
        folder.mkdir()
        observers, digest, items = observe_ranges(watched, folder, layers, feeds, 1)
        assert (len(digest), items) == (64, 2)
        found = find_smoothing(model, observers, 127)
        smoothed = Smooth(found)(model).model
        planted = found.layers["vit_model.layers.2.blocks.1.mlp.fc1"]
        assert planted.after < planted.before / 3
        options = session_options(1, own_operators=True)
        before, after = (
            onnxruntime.InferenceSession(one.SerializeToString(), options).run(None, feeds[0])
            for one in (model, smoothed)
        )
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-4)


# Bundles


def test_the_self_test_sees_a_damaged_scale(quantizer: Quantizer, tmp_path: Path) -> None:
    plan = uniform_plan(quantizer.all_layers, SCHEMES["int8-weights"], TARGETS["cpu-vnni"])
    bundle = quantizer.write(plan, tmp_path / "out")
    quantization = bundle.manifest.quantization
    assert quantization is not None
    report = bundle_report(bundle, verified=True)
    assert report.tables[0].title == "Quantization"
    model = onnx.load(bundle.graph_path("image"))
    for tensor in model.graph.initializer:
        if tensor.name == "vit_model.layers.1.blocks.1.mlp.fc1.weight^T/scale":
            scale = numpy_helper.to_array(tensor) * np.float32(2)
            tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    onnx.save(model, bundle.graph_path("image"))
    from hat_export.errors import BundleError
    from hat_export.runtime.backends.onnxruntime_backend import OnnxRuntimeSession
    from hat_export.runtime.self_test import run_self_test

    with OnnxRuntimeSession(bundle, 1) as session, pytest.raises(BundleError, match="self-test"):
        run_self_test(bundle, session)


def test_a_wrong_range_is_refused_and_leaves_nothing(
    quantizer: Quantizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Observer, "range", lambda self, method: (0.0, 1e-3))
    plan = uniform_plan(quantizer.all_layers, SCHEMES["int8-static"], TARGETS["cpu-vnni"])
    with pytest.raises(ToleranceError, match="of their own size"):
        quantizer.write(plan, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_cpu_that_would_saturate_is_refused(quantizer: Quantizer, tmp_path: Path) -> None:
    layers = quantizer.all_layers
    for target in CPU:
        plan = uniform_plan(layers, SCHEMES["int8-dynamic"], TARGETS[target])
        bundle = quantizer.write(plan, tmp_path / target, check=False)
        check_cpu(bundle, frozenset({"avx2", "avx_vnni"}))
        if target == "cpu-vnni":
            with pytest.raises(BackendUnavailableError, match="--target cpu-avx2"):
                check_cpu(bundle, frozenset({"avx2"}))
        else:
            check_cpu(bundle, frozenset({"avx2"}))
    weights = uniform_plan(layers, SCHEMES["int8-weights"], TARGETS["cpu-vnni"])
    check_cpu(quantizer.write(weights, tmp_path / "w", check=False), frozenset())


def test_machines_are_told_apart() -> None:
    assert machine_target(frozenset({"avx2", "avx512f"})) == "cpu-avx2"
    assert machine_target(frozenset({"avx2", "avx512_vnni"})) == "cpu-vnni"
    assert machine_target(frozenset({"asimd", "asimddp"})) == "arm64"


def test_what_is_quantized_already_is_refused(quantizer: Quantizer, tmp_path: Path) -> None:
    plan = uniform_plan(quantizer.all_layers, SCHEMES["int8-dynamic"], TARGETS["cpu-avx2"])
    bundle = quantizer.write(plan, tmp_path / "out", check=False)
    with pytest.raises(InputError, match="already quantized"):
        Quantizer(bundle, tmp_path, 1)


def test_kept_layers_stay_float32(quantizer: Quantizer, tmp_path: Path) -> None:
    keep = {"vit_model.layers.0": "sensitive", "text_transformer.encoder.layer.0": "sensitive"}
    plan = uniform_plan(quantizer.all_layers, SCHEMES["int8-dynamic"], TARGETS["cpu-avx2"], keep)
    bundle = quantizer.write(plan, tmp_path / "out")
    left = {layer.name for layer in find_layers(onnx.load(bundle.graph_path("text")))}
    assert left == {name for name in plan.kept if name.startswith("text")}
    assert len(left) == 4
    with pytest.raises(InputError, match="no layer begins with 'nothing'"):
        uniform_plan(
            quantizer.all_layers, SCHEMES["int8-dynamic"], TARGETS["cpu-avx2"], {"nothing": ""}
        )


# Plans


def test_a_plan_comes_back(quantizer: Quantizer, tmp_path: Path) -> None:
    plan = uniform_plan(
        quantizer.all_layers, SCHEMES["int8-static"], TARGETS["arm64"], method="mse", smooth=True
    )
    path = tmp_path / "plan.json"
    write_plan(path, plan)
    assert read_plan(path) == plan
    assert plan.title() == f"{len(plan.layers) - 1} int8-static, 1 int8-weights"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a hat-export quantization plan"),
        ({"version": 9}, "version 9"),
        ({"target": "gpu"}, "no target 'gpu'"),
        ({"layers": {"a": "int3"}}, "no quantization scheme 'int3'"),
        ({"layers": {"a": "fp8"}}, "can't run fp8"),
        ({"layers": 3}, "damaged plan"),
        ({"method": "luck"}, "no method 'luck'"),
    ],
)
def test_a_wrong_plan_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(Plan("cpu-vnni", {}).to_json() | change))
    with pytest.raises(InputError, match=message):
        read_plan(path)


def test_a_plan_for_another_model_is_refused(quantizer: Quantizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names 'a', which this model hasn't"):
        quantizer.write(Plan("cpu-vnni", {"a": "int8-dynamic"}), tmp_path / "out")
    table = "text_transformer.embeddings.word_embeddings"
    with pytest.raises(InputError, match="is a table"):
        quantizer.write(Plan("cpu-vnni", {table: "int8-dynamic"}), tmp_path / "out")


# Preflight and search


def test_preflight_measures_every_size(quantizer: Quantizer) -> None:
    spec = quantizer.source.manifest.spec
    found = measure_products(
        quantizer.layers, spec, TARGETS["cpu-avx2"], ["int8-dynamic"], 1, False
    )
    assert all(min(times.values()) > 0 for times in found.seconds.values())
    assert found.sizes["vit_model.layers.0.blocks.0.mlp.fc1"][:2] == (256, 16)
    # A scheme that is slower is named, whatever this machine measures.
    slow = {size: {"fp32": 1.0, "int8-dynamic": 2.0} for size in found.seconds}
    report = preflight_report(replace(found, seconds=slow), spec, 1)
    assert "int8-dynamic makes the products of image and text slower" in report.summary[1]


def test_a_search_keeps_the_budget_and_goes_on_where_it_stopped(
    quantizer: Quantizer, data: CaptionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state.json"
    task = Search(
        quantizer=quantizer,
        target=TARGETS["cpu-avx2"],
        budget={"rsum": 30.0},
        objective="size",
        data=data,
        keep={"vit_model": "asked for"},
        state=state,
    )
    outcome = search_plan(task)
    best = outcome.best
    assert best.lost <= 30.0
    assert best.bytes == min(one.bytes for one in outcome.tried if one.within)
    assert all(not name.startswith("vit_model.") for name in best.plan.layers)
    blocks = {layer.block for layer in quantizer.all_layers}
    assert set(outcome.noise) == {x for x in blocks if not x.startswith("vit_model.")}
    report = search_report(outcome, quantizer.source)
    assert report.to_html().count("<svg") == 2
    json.loads(report.to_json())
    # Nothing that the state holds is measured again.
    with monkeypatch.context() as patched:
        patched.setattr(quantize_bundles.Quantizer, "write", None)
        again = search_plan(task)
    assert again.best.plan == best.plan
    assert search_plan(replace(task, budget={"rsum": 600.0})).best.bytes <= best.bytes
    with pytest.raises(InputError, match="belongs to a search with method minmax"):
        search_plan(replace(task, method="mse"))


# The command


def quantize(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hat_export.cli.export", "quantize", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(tiny_bundle: Path, dataset_folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    arguments = ("--target", "cpu-avx2", "--mode", "int8-static", "--smooth", "--method", "mse")
    done = quantize(
        *(tiny_bundle, tmp_path / "a", *arguments, "--calibration", dataset_folder),
        *("--save-plan", plan, "--threads", 1),
    )
    assert done.returncode == 0, done.stderr
    assert "times smaller" in done.stdout
    done = quantize(
        *(tiny_bundle, tmp_path / "b", "--plan", plan, "--calibration", dataset_folder),
        *("--threads", 1),
    )
    assert done.returncode == 0, done.stderr
    first, second = (Bundle.read(tmp_path / name).manifest for name in "ab")
    assert first.files == second.files  # re-applied: the same bytes
    assert first.quantization is not None
    calibration = first.quantization.calibration
    assert (calibration["image_items"], calibration["text_items"]) == (12, 24)
    assert len(calibration["image_sha256"]) == 64
    with open_bundle(tiny_bundle, threads=1) as one, open_bundle(tmp_path / "a", threads=1) as two:
        assert 0 < relative_errors(one, two)["images"] < SCHEMES["int8-static"].largest_error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "int8-static"), "add --calibration DATASET"),
        (("--max-drop", "r1=0.5"), "--max-drop measures recall: add --calibration"),
        (("--max-drop", "r2=0.5"), "unknown key 'r2'"),
        (("--mode", "fp8", "--target", "cpu-vnni"), "target cpu-vnni can't run fp8"),
        (("--max-drop", "r1=1", "--mode", "fp8"), "leave --mode out"),
        (("--state", "x.json"), "add --max-drop"),
        (("--plan", "missing.json"), "missing.json: not a readable plan"),
        (("--keep", "nothing", "--target", "cpu-avx2"), "no layer begins with 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tiny_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = quantize(tiny_bundle, tmp_path / "out", *arguments, "--no-preflight", "--quiet")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_blocks_are_parts_of_the_model() -> None:
    def block(name: str) -> str:
        return Layer(name, "", "", "", 1, 1, False).block

    assert block("vit_model.layers.2.blocks.11.mlp.fc1") == "vit_model.layers.2.blocks.11"
    encoder = "text_transformer.encoder.layer.3"
    assert block(f"{encoder}.attention.self.qkv") == encoder
    assert block("cross_modal_image_transform_1") == "cross_modal_image_transform_1"
