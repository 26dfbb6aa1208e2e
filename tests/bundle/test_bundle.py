"""Bundles: what they hold, and that damage is found before anything is run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

import hat_export
from hat_export.bundle.bundle import (
    Bundle,
    FileInfo,
    is_bundle,
    list_files,
    read_manifest,
    write_manifest,
)
from hat_export.errors import BundleError, HatError
from hat_export.export.onnx_export import export_onnx
from hat_export.runtime.self_test import noise_captions, noise_pixels


def rewrite(bundle: Path, **changes: object) -> None:
    """Change top-level entries of a manifest."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_manifest_survives_writing_and_reading(bundle_copy: Path) -> None:
    before = (bundle_copy / "manifest.json").read_bytes()
    write_manifest(bundle_copy, read_manifest(bundle_copy))
    assert (bundle_copy / "manifest.json").read_bytes() == before


def test_manifest_lists_every_file_and_counts_fused_attention(tiny_bundle: Path) -> None:
    manifest = Bundle.read(tiny_bundle).manifest
    assert is_bundle(tiny_bundle)
    assert set(manifest.files) == {path.name for path in tiny_bundle.iterdir()} - {"manifest.json"}
    image, text = manifest.graphs["image"], manifest.graphs["text"]
    assert (image.attention_fused, image.attention_expected) == (10, 10)
    assert (text.attention_fused, text.attention_expected) == (4, 4)


@pytest.mark.parametrize(
    "name", ["image.onnx", "text.onnx", "self_test.safetensors", "tokenizer.json"]
)
def test_a_flipped_byte_is_found(bundle_copy: Path, name: str) -> None:
    path = bundle_copy / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}.*SHA-256 differs"):
        hat_export.open_bundle(bundle_copy)


def test_a_truncated_file_is_found_without_hashing(bundle_copy: Path) -> None:
    path = bundle_copy / "image.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"image\.onnx: \d+ bytes, the manifest says"):
        Bundle.read(bundle_copy, verify=False)


def test_a_missing_file_is_found(bundle_copy: Path) -> None:
    (bundle_copy / "text.onnx").unlink()
    with pytest.raises(BundleError, match=r"text\.onnx: missing"):
        Bundle.read(bundle_copy)


def test_no_such_bundle_and_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.read(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Bundle.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not the manifest"),
        ({"format_version": 99}, "format version 99"),
        ({"files": {"../evil": {"bytes": 1, "sha256": ""}}}, "leads out of the bundle"),
        ({"files": {}}, "lists no file"),
        ({"files": []}, "damaged manifest"),
        ({"graphs": {}}, "damaged manifest"),
        ({"spec": {"window": 7}}, "unknown spec field"),
        ({"spec": {"image_size": "big"}}, "expected int"),
        ({"opset": None}, "damaged manifest"),
    ],
)
def test_a_damaged_manifest_is_one_clear_error(
    bundle_copy: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(bundle_copy, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.read(bundle_copy)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100000])
def test_a_manifest_that_is_no_json_object(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.read(bundle_copy)


def test_the_self_test_finds_changed_weights(bundle_copy: Path) -> None:
    """Hashes renewed after the change: only running the model can tell."""
    path = bundle_copy / "text.onnx"
    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if "layer.2.output.dense.weight" in w.name)
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    files = list_files(bundle_copy)
    rewrite(bundle_copy, files={name: vars(info) for name, info in files.items()})
    with pytest.raises(BundleError, match=r"self-test failed on onnxruntime: text_level2"):
        hat_export.open_bundle(bundle_copy)
    hat_export.open_bundle(bundle_copy, verify=False).close()


def test_a_graph_that_is_no_graph(bundle_copy: Path) -> None:
    (bundle_copy / "image.onnx").write_bytes(b"nothing")
    files = list_files(bundle_copy)
    assert isinstance(files["image.onnx"], FileInfo)
    rewrite(bundle_copy, files={name: vars(info) for name, info in files.items()})
    with pytest.raises(BundleError, match=r"image\.onnx: not a graph of a bundle"):
        hat_export.open_bundle(bundle_copy)


def test_external_data_gives_the_same_features(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "external"
    export_onnx(tiny_checkpoint, target, threads=1, external_data_bytes=1)
    assert (target / "image.onnx.data").stat().st_size > (target / "image.onnx").stat().st_size
    with hat_export.open_bundle(target) as one, hat_export.open_bundle(tiny_bundle) as other:
        pixels = noise_pixels(one.spec, 2, seed=3)
        for left, right in zip(
            one.encode_images(pixels).levels, other.encode_images(pixels).levels, strict=True
        ):
            np.testing.assert_array_equal(left, right)


def test_equal_exports_are_equal_byte_for_byte(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    target = tmp_path / "again"
    export_onnx(tiny_checkpoint, target, threads=1)
    for path in tiny_bundle.iterdir():
        if path.name != "manifest.json":  # its differences hang on the threads' summing order
            assert path.read_bytes() == (target / path.name).read_bytes(), path.name


def test_bundle_errors_are_one_line() -> None:
    with pytest.raises(HatError) as caught:
        Bundle.read("/nonexistent/bundle")
    assert "\n" not in str(caught.value)


def test_noise_is_fixed(tiny_bundle: Path) -> None:
    """The self-test's inputs must stay what they are: raw integers of a fixed generator."""
    spec = Bundle.read(tiny_bundle).manifest.spec
    ids, mask = noise_captions(spec, 3, 32, seed=2)
    assert mask.sum(1).tolist()[:2] == [32, 2]
    assert noise_pixels(spec, 2, seed=1).shape == (2, 3, 64, 64)
    stored = load_file(tiny_bundle / "self_test.safetensors")
    np.testing.assert_array_equal(stored["input_ids"], ids)
    np.testing.assert_array_equal(stored["pixel_values"], noise_pixels(spec, 2, seed=1))
