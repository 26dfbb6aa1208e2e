"""What strangers' files once did, and must not do again."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hat_export.base.arrays import read_arrays
from hat_export.base.terminal import printable
from hat_export.benchmark.latency.record import read_run
from hat_export.benchmark.latency.report import latency_report
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.graph_check import check_graph
from hat_export.data.dataset import ImageStore
from hat_export.data.karpathy import read_karpathy
from hat_export.data.preprocess import ImagePreprocessor
from hat_export.data.sources import ImageReader, list_images
from hat_export.errors import BundleError, DatasetError, InputError, SpecError
from hat_export.report.reader import read_report
from hat_export.spec import OFFICIAL, ModelSpec
from latency_samples import made_up_case, made_up_run


def rewritten(bundle: Path, file: str, content: bytes) -> None:
    """Change a file and state its right hash, as whoever changes it would."""
    import hashlib

    (bundle / file).write_bytes(content)
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][file] = facts
    path.write_text(json.dumps(manifest))


# ------------------------------------------------------------------------------ checkpoints


def test_a_deep_tuple_as_a_key_does_not_overflow_the_stack() -> None:
    torch_file = pytest.importorskip("hat_export.model.torch_file")
    content = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."
    with pytest.raises(Exception, match="nested deeper"):
        torch_file.RestrictedUnpickler(io.BytesIO(content), Path("x")).load()


def test_a_large_memo_number_takes_no_memory() -> None:
    torch_file = pytest.importorskip("hat_export.model.torch_file")
    content = b"\x80\x02Nr\xff\xff\xff\x7f."
    assert torch_file.RestrictedUnpickler(io.BytesIO(content), Path("x")).load() is None


def test_names_with_thousands_of_digits_or_wrappers() -> None:
    keys = pytest.importorskip("hat_export.model.keys")
    digits = f"vit_model.layers.{'9' * 5000}.downsample.reduction.weight"
    shapes = {keys.PATCH_WEIGHT: (8, 3, 4, 4), digits: (16, 32), "model." * 10_000 + "x": (1,)}
    assert keys.to_own(shapes).own[digits] == digits
    assert keys.strip_wrappers("model." * 10_000 + "x") == "x"


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 10**30},
        {"depths": [2, 2, 10**6, 2]},
        {"text_layers": 1 << 19},
        {"image_size": 1 << 19},
        {"mean": [0.5, 0.5]},
        {"std": [0.0, 1.0, 1.0]},
        {"mean": [float("nan")] * 3},
        {"softmax_lambda": float("inf")},
        {"softmax_lambda": 10**400},
    ],
)
def test_specs_beyond_reason_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        ModelSpec.from_json(fields)


# ---------------------------------------------------------------------------------- bundles


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a\0b", "a/b", "..", "a\nb", "\u202ex"])
def test_file_names_lead_nowhere(bundle_copy: Path, name: str) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="leads out of the bundle"):
        Bundle.read(bundle_copy)


@pytest.mark.parametrize("value", ["nan", None, [], 10**400])
def test_differences_are_numbers(bundle_copy: Path, value: object) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    next(iter(manifest["verification"].values()))["tolerance"] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="damaged manifest"):
        Bundle.read(bundle_copy)


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_graphs_have_the_inputs_and_outputs_of_a_model(bundle_copy: Path, side: str) -> None:
    path = bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["graphs"]["image"][side][0]["name"] = "other"
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="have other names"):
        Bundle.read(bundle_copy)


def test_hashes_are_checked_before_graphs_are_parsed(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(
        "hat_export.bundle.bundle.check_graph", lambda path, data: seen.append(path)
    )
    for name in ("tokenizer.json", "self_test.safetensors", "text.onnx"):
        path = bundle_copy / name
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(BundleError, match="SHA-256 differs"):
            Bundle.read(bundle_copy)
        path.write_bytes(before)
    assert not seen
    Bundle.read(bundle_copy)
    assert len(seen) == 3


@pytest.mark.parametrize(
    "place", ["../secret", "/etc/passwd", "tokenizer.json", "image.onnx.data", "", "x/../../y"]
)
def test_weights_lie_in_no_other_file(bundle_copy: Path, place: str) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle_copy / "image.onnx")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    (bundle_copy / "image.onnx.data").write_bytes(bytes(1 << 16))  # not in the manifest
    rewritten(bundle_copy, "image.onnx", model.SerializeToString())
    with pytest.raises(BundleError, match="no file of this graph"):
        Bundle.read(bundle_copy)


@pytest.mark.parametrize("fault", ["cycle", "sizes", "loop", "domain", "twice", "many", "cut"])
def test_graphs_that_no_export_writes(bundle_copy: Path, fault: str) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundle_copy / "text.onnx")
    node = model.graph.node[2]
    if fault == "cycle":
        node.input[0] = model.graph.node[-1].output[0]
    elif fault == "sizes":
        model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]
    elif fault == "loop":
        inner = onnx.helper.make_graph([], "body", [], [])
        node.attribute.append(onnx.helper.make_attribute("body", inner))
    elif fault == "domain":
        node.domain = "com.evil"
    elif fault == "twice":
        node.output[0] = model.graph.node[1].output[0]
    elif fault == "many":
        model.graph.node.extend([node] * 100_001)
    content = model.SerializeToString()
    rewritten(bundle_copy, "text.onnx", content[:-30] if fault == "cut" else content)
    with pytest.raises(BundleError, match="not a graph of a bundle") as error:
        Bundle.read(bundle_copy)
    assert "\n" not in str(error.value)


def test_long_tags_hide_no_field(tmp_path: Path) -> None:
    """Seven bytes whose lower 32 bits are the tag of another field."""
    path = tmp_path / "x.onnx"
    tag = (1 << 34) | (7 << 3 | 2)
    long = bytes(((tag >> shift) & 0x7F) | 0x80 for shift in range(0, 28, 7)) + bytes([tag >> 28])
    path.write_bytes(b"\x3a\x00" + long + b"\x00")
    with pytest.raises(ValueError, match="not a protobuf"):
        check_graph(path, {})
    path.write_bytes(b"\x3a\x00")
    check_graph(path, {})


def test_weights_beyond_the_end_of_their_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.TensorProto(name="w", dims=[4], data_type=1, data_location=1)
    for key, value in (("location", "x.onnx.data"), ("offset", "8"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [weight]))
    path = tmp_path / "x.onnx"
    path.write_bytes(model.SerializeToString())
    check_graph(path, {"x.onnx.data": 24})
    with pytest.raises(ValueError, match="beyond the end"):
        check_graph(path, {"x.onnx.data": 23})


@pytest.mark.parametrize("shape", ["(99999999999, 99)", "(-4,)", "(3,)", "()"])
def test_arrays_are_what_their_headers_say(tmp_path: Path, shape: str) -> None:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + bytes(16)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ValueError, match="an array of"):
        read_arrays(tmp_path / "x.npz")


def test_arrays_of_objects_and_bombs(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="isn't read"):
        read_arrays(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "y.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(257 << 20))
    with pytest.raises(ValueError, match="more than"):
        read_arrays(tmp_path / "y.npz")


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ('{"a": {"dtype": "F32", "shape": [99999999999], "data_offsets": [0, 16]}}', 16),
        ('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', 8),
        ('{"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}', 16),
        ('{"a": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}}', 8),
        ('{"a": {"dtype": "object", "shape": [4], "data_offsets": [0, 16]}}', 16),
        ("[" * 100_000, 0),
    ],
)
def test_safetensors_are_what_their_headers_say(tmp_path: Path, header: str, size: int) -> None:
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(size)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r".+"):
        read_arrays(tmp_path / "x.safetensors")


def test_a_file_of_arrays_is_not_larger_than_any_can_be(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.truncate(257 << 20)
    with pytest.raises(ValueError, match="more than"):
        read_arrays(tmp_path / "x.safetensors")


# --------------------------------------------------------------------------------- pictures


def test_devices_and_pipes_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "b.png")
    with ImageReader() as reader:
        for ref in list_images([tmp_path]):
            with pytest.raises(InputError, match="no regular file"):
                reader.read(ref)


def test_a_line_of_pixels_is_not_blown_up() -> None:
    prepare = ImagePreprocessor.from_spec(OFFICIAL)
    assert prepare([Image.new("RGB", (500, 1))]).shape == (1, 3, 224, 224)
    with pytest.raises(InputError, match="too much memory"):
        prepare([Image.new("RGB", (65_000, 1))])


def test_a_bomb_in_a_zip_of_pictures(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(257 << 20))
    with pytest.raises(DatasetError, match="at most"):
        ImageStore([tmp_path / "x.zip"]).read("a.png")


def test_links_do_not_leave_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").symlink_to("../secret.png")
    for name in ("a.png", "../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(DatasetError, match="outside"):
            ImageStore([folder]).read(name)


# --------------------------------------------------------------------------------- captions


@pytest.mark.parametrize("text", ["[" * 200_000, '{"images":' * 100_000])
def test_deep_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset_x.json").write_text(text)
    with pytest.raises(DatasetError, match="not a readable JSON"):
        read_karpathy(tmp_path, "test")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\x07\x9b\r\nb\t\u05d0") == "a\\x1b[2J\\x07\\x9b\\r\nb\t\u05d0"


# ---------------------------------------------------------------------------------- reports


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400])
def test_numbers_that_no_report_holds(tmp_path: Path, number: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"kind": "parity", "version": 1, "data": {{"rsum": {number}}}}}')
    with pytest.raises(InputError, match="not JSON"):
        read_report(path)


@pytest.mark.parametrize("seconds", [1e300, 1e-300, -1.0, 0.0])
def test_seconds_that_nobody_measured(tmp_path: Path, seconds: float) -> None:
    content = json.loads(latency_report(made_up_run(made_up_case(3.0))).to_json())
    content["data"]["timings"][0]["passes"][0]["anchor_seconds"][0] = seconds
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="damaged latency report"):
        read_run(path)
