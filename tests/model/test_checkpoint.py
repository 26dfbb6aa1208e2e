"""Checkpoints: layouts, formats, and everything that must be refused with one clear line."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hat_export.errors import (
    CheckpointError,
    HatError,
    OutputError,
    SpecError,
    UnsafeCheckpointError,
)
from hat_export.model.checkpoint import BERT_VOCABULARY, load_hat, read_state_dict, save_checkpoint
from hat_export.model.hat import HAT
from hat_export.model.keys import strip_wrappers, to_official, to_own
from hat_export.model.spec_inference import infer_spec, inferred_fields
from hat_export.spec import OFFICIAL, ModelSpec

SMALL = ModelSpec(
    name="small",
    image_size=32,
    resize_size=32,
    patch_size=2,
    window_size=2,
    embed_dim=8,
    depths=(1, 2, 3, 1),
    image_heads=(1, 2, 2, 4),
    vocab_size=12,
    max_words=8,
    text_positions=10,
    text_dim=16,
    text_layers=3,
    text_heads=2,
    text_hidden=24,
    text_level_layers=(0, 1, 2),
    dim=20,
)

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> HAT:
    torch.manual_seed(0)
    made = HAT(SMALL).eval()
    for parameter in made.parameters():  # zero biases would hide a swap
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nc\nd\ne\nf\ng\n##h\n", encoding="utf-8")
    return path


@pytest.fixture
def official(model: HAT) -> State:
    """The small model as the official implementation would save it."""
    state = model.state_dict()
    names = to_official(state)
    tensors = {names[own]: tensor.clone() for own, tensor in state.items()}
    tensors["vit_model.norm_0.weight"] = torch.ones(8)
    tensors["vit_model.norm_0.bias"] = torch.zeros(8)
    tensors["text_transformer.pooler.dense.weight"] = torch.zeros(16, 16)
    tensors["text_transformer.pooler.dense.bias"] = torch.zeros(16)
    tensors["text_transformer.embeddings.position_ids"] = torch.arange(10)[None]
    tensors["vit_model.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(
        4, 4, dtype=torch.int64
    )
    tensors["vit_model.layers.1.blocks.1.attn_mask"] = torch.zeros(16, 4, 4)
    return tensors


@pytest.fixture
def load(vocabulary: Path) -> Callable[..., Any]:
    return functools.partial(load_hat, spec=SMALL, vocabulary=vocabulary)


def saved(folder: Path, content: object, name: str = "hat.ckpt", zipped: bool = True) -> Path:
    path = folder / name
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def lightning(state: object) -> dict[str, Any]:
    return {"epoch": 1, "state_dict": state, "pytorch-lightning_version": "1.3.2"}


def assert_same(loaded: HAT, expected: HAT) -> None:
    found, wanted = loaded.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def one_line(error: pytest.ExceptionInfo[HatError], path: Path) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert str(path) in text
    return text


# ---------------------------------------------------------------------------------- names


def test_names_there_and_back(model: HAT) -> None:
    state = model.state_dict()
    official = to_official(state)
    shapes = {official[name]: tuple(tensor.shape) for name, tensor in state.items()}
    assert to_own(shapes).own == {new: own for own, new in official.items()}


def test_official_names_are_the_recorded_ones(
    official_tensors: dict[str, dict[str, Any]],
) -> None:
    with torch.device("meta"):
        shapes = {name: list(t.shape) for name, t in HAT(OFFICIAL).state_dict().items()}
    mine = {official: shapes[own] for own, official in to_official(shapes).items()}
    left = {name: entry for name, entry in official_tensors.items() if name not in mine}
    assert {name: official_tensors[name]["shape"] for name in mine} == mine
    translation = to_own({name: tuple(entry["shape"]) for name, entry in official_tensors.items()})
    assert sorted(left) == sorted([*translation.buffers, *translation.unused])
    assert len(translation.buffers) == 35
    assert len(translation.unused) == 4


@pytest.mark.parametrize("stages", [2, 4, 6])
def test_patch_merging_moves_at_any_depth(stages: int) -> None:
    shapes: dict[str, tuple[int, ...]] = {"vit_model.patch_embed.proj.weight": (3, 3, 4, 4)}
    for stage in range(stages):
        width = 3 << stage
        shapes[f"vit_model.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
        shapes[f"vit_model.layers.{stage}.downsample.norm.bias"] = (4 * width,)
    own = to_own(shapes).own
    for stage in range(stages):
        for end in ("reduction.weight", "norm.bias"):
            before = f"vit_model.layers.{stage}.downsample.{end}"
            assert own[before] == f"vit_model.layers.{stage + 1}.downsample.{end}"
    # The result is in timm 1.x's layout: translating it again changes nothing.
    again = {own[name]: shape for name, shape in shapes.items()}
    assert to_own(again).own == {name: name for name in again}


def test_both_layouts_at_once_are_refused() -> None:
    shapes = {
        "vit_model.patch_embed.proj.weight": (8, 3, 4, 4),
        "vit_model.layers.0.downsample.reduction.weight": (16, 32),
        "vit_model.layers.1.downsample.reduction.weight": (16, 32),
    }
    with pytest.raises(CheckpointError, match=r"layers\.0.* and .*layers\.1.* are both the weight"):
        to_own(shapes)


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "_orig_mod."])
def test_wrappers_are_stripped(prefix: str) -> None:
    assert strip_wrappers(f"{prefix}vit_model.norm.bias") == "vit_model.norm.bias"


# -------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_official_layout(
    model: HAT,
    official: State,
    load: Callable[..., Any],
    tmp_path: Path,
    prefix: str,
    zipped: bool,
) -> None:
    state = OrderedDict((prefix + name, tensor) for name, tensor in official.items())
    loaded = load(saved(tmp_path, lightning(state), zipped=zipped))
    assert_same(loaded.model, model)
    assert not loaded.model.training
    assert loaded.provenance["format"] == ("torch zip" if zipped else "torch legacy")
    assert len(loaded.provenance["not_used"]) == 4


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_own_layout_and_bare_state_dict(
    model: HAT, load: Callable[..., Any], tmp_path: Path, zipped: bool
) -> None:
    assert_same(load(saved(tmp_path, model.state_dict(), zipped=zipped)).model, model)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tensors_are_those_of_torch_load(tmp_path: Path, zipped: bool) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state: dict[str, Any] = {
        "transposed": base.t(),
        "part": base[1:3, 2:5],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "whole": base,
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 7),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "half": torch.randn(5).half(),
        "bfloat": torch.randn(5).bfloat16(),
        **{
            str(kind): torch.tensor([0, 1, 1]).to(kind)
            for kind in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool)
        },
    }
    path = saved(tmp_path, {"state_dict": state}, zipped=zipped)
    expected = torch.load(path, weights_only=True)["state_dict"]
    found, info = read_state_dict(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach()), name
    assert info.size == path.stat().st_size


def test_safetensors(model: HAT, official: State, load: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "hat.safetensors"
    save_file(official, path)
    loaded = load(path)
    assert_same(loaded.model, model)
    assert loaded.provenance["format"] == "safetensors"


def test_save_and_load(model: HAT, vocabulary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "small"
    save_checkpoint(folder, model, vocabulary)
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.safetensors",
        "spec.json",
        "vocab.txt",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["small"]
    names = set(load_file(folder / "model.safetensors"))
    assert "vit_model.layers.0.downsample.reduction.weight" in names
    assert "vit_model.layers.3.downsample.reduction.weight" not in names
    for path in (folder, folder / "model.safetensors"):
        loaded = load_hat(path)
        assert_same(loaded.model, model)
        assert loaded.spec == SMALL
        assert loaded.vocabulary == folder / "vocab.txt"
        assert json.loads(json.dumps(loaded.provenance)) == loaded.provenance


def test_saving_over_something_is_refused(model: HAT, vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        save_checkpoint(tmp_path / "small", model, vocabulary)


def test_a_failed_save_leaves_nothing(
    model: HAT, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        save_checkpoint(tmp_path / "small", model, vocabulary)
    assert list(tmp_path.iterdir()) == []


def test_saving_another_vocabulary_is_refused(model: HAT, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="30522 word pieces, but the model 'small' has 12"):
        save_checkpoint(tmp_path / "small", model, BERT_VOCABULARY)


# ----------------------------------------------------------------------------------- spec


def test_spec_in_safetensors_metadata(model: HAT, vocabulary: Path, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "small", model, vocabulary)
    (tmp_path / "small" / "spec.json").unlink()
    loaded = load_hat(tmp_path / "small")
    assert loaded.spec == SMALL
    assert loaded.provenance["spec"] == "metadata of the weights"


def test_spec_beside_a_checkpoint(official: State, vocabulary: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SMALL.to_json()))
    shutil.copyfile(vocabulary, tmp_path / "vocab.txt")
    assert load_hat(saved(tmp_path, lightning(official))).spec == SMALL


def test_bad_spec_beside_a_checkpoint(official: State, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"heads": 4}')
    path = saved(tmp_path, lightning(official))
    with pytest.raises(SpecError, match=r"spec\.json: unknown spec field 'heads'"):
        load_hat(path)


def test_fields_told_by_shapes(model: HAT) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    known = inferred_fields(shapes, "x")
    assert known == {field: getattr(SMALL, field) for field in known}
    assert set(known) == {
        "patch_size",
        "window_size",
        "embed_dim",
        "depths",
        "image_heads",
        "vocab_size",
        "text_positions",
        "text_dim",
        "text_layers",
        "text_hidden",
        "dim",
    }


def test_official_shapes_are_enough(official_tensors: dict[str, dict[str, Any]]) -> None:
    shapes = {name: tuple(entry["shape"]) for name, entry in official_tensors.items()}
    own = {new: shapes[old] for old, new in to_own(shapes).own.items()}
    assert infer_spec(own, "x") == OFFICIAL
    own["cross_modal_image_transform.weight"] = (512, 1024)
    with pytest.raises(SpecError, match="dim 512"):
        infer_spec(own, "x")


def test_other_sizes_need_a_spec(official: State, tmp_path: Path) -> None:
    path = saved(tmp_path, lightning(official))
    with pytest.raises(SpecError) as error:
        load_hat(path)
    text = one_line(error, path)
    for part in ("embed_dim 8", "depths (1, 2, 3, 1)", "vocab_size 12", "--spec spec.json"):
        assert part in text
    for field in ("text_heads", "text_level_layers", "softmax_lambda", "direction", "image_size"):
        assert field in text


# ----------------------------------------------------------------------------- vocabulary


def test_vocabulary_must_be_known(official: State, tmp_path: Path) -> None:
    path = saved(tmp_path, lightning(official))
    with pytest.raises(SpecError, match=r"12 word pieces.*put its vocab\.txt beside it"):
        load_hat(path, SMALL)


def test_vocabulary_of_another_size_is_refused(official: State, tmp_path: Path) -> None:
    path = saved(tmp_path, lightning(official))
    with pytest.raises(SpecError, match="30522 word pieces, but the model 'small' has 12"):
        load_hat(path, SMALL, BERT_VOCABULARY)


# ---------------------------------------------------------------------- names and shapes


def test_missing_unexpected_and_misshaped(
    official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    del official["vit_model.norm_1.bias"]
    del official["vit_model.layers.2.downsample.norm.bias"]
    official["cross_modal_extra.weight"] = torch.zeros(3)
    official["vit_model.norm.weight"] = torch.zeros(65)
    path = saved(tmp_path, lightning(official))
    with pytest.raises(CheckpointError) as error:
        load(path)
    text = one_line(error, path)
    assert "2 missing: " in text
    assert "vit_model.norm_1.bias" in text
    assert "vit_model.layers.2.downsample.norm.bias" in text  # as the official file names it
    assert "1 unexpected: cross_modal_extra.weight" in text
    assert "1 of another shape: vit_model.norm.weight [65] (expected [64])" in text


def test_long_lists_are_cut(official: State, load: Callable[..., Any], tmp_path: Path) -> None:
    kept = {name: tensor for name, tensor in official.items() if "layer.1." not in name}
    path = saved(tmp_path, lightning(kept))
    with pytest.raises(CheckpointError) as error:
        load(path)
    text = one_line(error, path)
    assert "16 missing: " in text
    assert text.count("layer.1.") == 10
    assert text.endswith(", ...")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": (1, 2, 2, 1)}, r"unexpected: vit_model\.layers\.2\.blocks\.2"),
        ({"depths": (1, 2, 4, 1)}, r"missing: vit_model\.layers\.2\.blocks\.3"),
        ({"text_layers": 4}, r"16 missing: text_transformer\.encoder\.layer\.3"),
        ({"dim": 21}, r"of another shape: .* \[20, 16\] \(expected \[21, 16\]\)"),
        ({"image_heads": (1, 2, 4, 4)}, r"relative_position_bias_table \[9, 2\]"),
    ],
)
def test_a_spec_that_does_not_fit(
    official: State, vocabulary: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = saved(tmp_path, lightning(official))
    with pytest.raises(CheckpointError, match=message):
        load_hat(path, replace(SMALL, **change), vocabulary)


def test_another_model(load: Callable[..., Any], tmp_path: Path) -> None:
    path = saved(tmp_path, torch.nn.Linear(3, 3).state_dict())
    with pytest.raises(
        CheckpointError, match=r"not a HAT model: 2 tensors \(weight, bias, \.\.\.\)"
    ):
        load(path)


def test_an_image_encoder_alone(official: State, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in official.items() if name.startswith("vit_model.")}
    path = saved(tmp_path, lightning(state))
    with pytest.raises(CheckpointError, match=r"text_transformer\.\S+ is missing"):
        load_hat(path)


# --------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(
    model: HAT, official: State, load: Callable[..., Any], tmp_path: Path, dtype: torch.dtype
) -> None:
    state = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in official.items()
    }
    loaded = load(saved(tmp_path, lightning(state)))
    for name, tensor in model.state_dict().items():
        found = loaded.model.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.equal(found, tensor.to(dtype).float()), name
    assert loaded.provenance["dtype"] == str(dtype).removeprefix("torch.")
    assert loaded.provenance["converted"] is True


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_must_be_finite(
    official: State, load: Callable[..., Any], tmp_path: Path, bad: float
) -> None:
    official["vit_model.norm_2.bias"][3] = bad
    path = saved(tmp_path, lightning(official))
    with pytest.raises(CheckpointError, match=r"1 with NaN or infinite.*: vit_model\.norm_2\.bias"):
        load(path)


def test_a_float64_beyond_float32(
    official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    official["vit_model.norm_2.bias"] = torch.full((32,), 1e60, dtype=torch.float64)
    path = saved(tmp_path, lightning(official))
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        load(path)


def test_tensors_that_are_not_used_may_hold_anything(
    model: HAT, official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    official["text_transformer.pooler.dense.bias"].fill_(float("nan"))
    assert_same(load(saved(tmp_path, lightning(official))).model, model)


def test_integers_are_refused(official: State, load: Callable[..., Any], tmp_path: Path) -> None:
    official["vit_model.norm_2.bias"] = torch.zeros(32, dtype=torch.int8)
    path = saved(tmp_path, lightning(official))
    with pytest.raises(CheckpointError, match=r"floating point: vit_model\.norm_2\.bias \(int8\)"):
        load(path)


# -------------------------------------------------------------------- files of other kinds


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Quota exceeded</body></html>", "a web page"),
        (b"<html>", "a web page"),
        (b"PK\x03\x04 and no archive", "truncated or damaged zip archive"),
        (pickle.dumps({"state_dict": {}}), "a bare Python pickle"),
        (b"\x1f\x8b\x08\x00 compressed", "not a checkpoint"),
        (b"text", "not a checkpoint"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{ no header", "damaged safetensors"),
    ],
)
def test_other_files(
    load: Callable[..., Any], tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "hat.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    one_line(error, path)


def test_missing_file(load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"hat\.ckpt: no such checkpoint"):
        load(tmp_path / "hat.ckpt")


def test_folder_without_weights(load: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\.safetensors in this folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "weights": {"a": 1}}, "no 'state_dict' in it; it has: epoch, weights"),
        ({"state_dict": {}}, "its state_dict is empty"),
        ({"state_dict": [1]}, "its 'state_dict' is no dictionary from names to tensors"),
        ({"state_dict": {1: torch.zeros(1)}}, "its 'state_dict' is no dictionary"),
        ({"state_dict": {"a": 5}}, "a is not a plain dense tensor"),
        ({"state_dict": {"a": torch.eye(2).to_sparse()}}, "a is not a plain dense tensor"),
        ([torch.zeros(2)], "holds a list, not a dictionary"),
        (Namespace(a=1), "holds an object, not a dictionary"),
    ],
)
def test_other_content(
    load: Callable[..., Any], tmp_path: Path, content: object, message: str
) -> None:
    path = saved(tmp_path, content)
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    one_line(error, path)


def test_torchscript(load: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "hat.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hat/data.pkl", b"")
        archive.writestr("hat/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="a TorchScript model"):
        load(path)


def test_a_zip_of_other_things(load: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "hat.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hat.ckpt", b"")
    with pytest.raises(CheckpointError, match=r"without a data\.pkl.*unpack it first"):
        load(path)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated(
    official: State, load: Callable[..., Any], tmp_path: Path, kind: str, share: float
) -> None:
    path = tmp_path / "hat.ckpt"
    if kind == "safetensors":
        save_file(official, path)
    else:
        saved(tmp_path, lightning(official), zipped=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated or damaged") as error:
        load(path)
    one_line(error, path)


def test_a_flipped_bit_is_noticed(
    official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    path = saved(tmp_path, lightning(official))
    content = bytearray(path.read_bytes())
    needle = official["cross_modal_image_transform.weight"].numpy().tobytes()[:64]
    content[content.index(needle) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC-32"):
        load(path)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))


def test_a_storage_of_another_size_is_refused(
    official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    path = saved(tmp_path, lightning(official))
    rewrite(
        path,
        lambda name, content: content + bytes(4) if name.endswith("/data/3") else content,
        zipfile.ZIP_STORED,
    )
    with pytest.raises(CheckpointError, match=r"data/3 has \d+ bytes, expected \d+"):
        load(path)


def test_compressed_storages_are_refused(
    official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    # A few bytes could otherwise unpack to any size.
    path = saved(tmp_path, lightning(official))
    rewrite(path, lambda _name, content: content, zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"is compressed, which torch\.save never does"):
        load(path)


def test_a_legacy_storage_of_another_size_is_refused(
    official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    path = saved(tmp_path, lightning(official), zipped=False)
    content = bytearray(path.read_bytes())
    start = content.index(official["cross_modal_image_transform.weight"].numpy().tobytes()[:64])
    content[start - 8] += 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="another length than its tensors say"):
        load(path)


def test_a_view_beyond_its_storage_is_refused(
    official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    class Beyond:
        def __reduce__(self) -> tuple[Any, ...]:
            storage = torch.zeros(4)._typed_storage()  # type: ignore[no-untyped-call]
            return torch._utils._rebuild_tensor_v2, (storage, 2, (4,), (1,), False, OrderedDict())

    path = saved(tmp_path, lightning({**official, "vit_model.norm.bias": Beyond()}))
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load(path)


# ---------------------------------------------------------------------------------- safety


class Attack:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def attacks(trace: Path) -> dict[str, tuple[str, object]]:
    """Global named in the refusal, and an object whose unpickling would create ``trace``."""
    command, source = f"touch {trace}", f"open({str(trace)!r}, 'w').close()"
    python = [sys.executable, "-c", source]
    return {
        "system": ("system", Attack(os.system, command)),
        "popen": ("subprocess.Popen", Attack(subprocess.Popen, python)),
        "check_output": ("subprocess.check_output", Attack(subprocess.check_output, python)),
        "eval": ("eval", Attack(eval, source)),
        "exec": ("exec", Attack(exec, source)),
        "open": ("open", Attack(open, str(trace), "w")),
        "getattr": ("getattr", Attack(getattr, Path, "touch")),
        "import": ("__import__", Attack(__import__, "antigravity")),
        "partial": ("system", Attack(functools.partial(os.system, command))),
        "reduce": ("reduce", Attack(functools.reduce, max, [1, 2])),
        "torch_load": ("torch.serialization.load", Attack(torch.load, str(trace))),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["state_dict", "callback", "key", "beside"])
@pytest.mark.parametrize("name", list(attacks(Path())))
def test_code_is_refused_and_not_run(
    official: State,
    load: Callable[..., Any],
    tmp_path: Path,
    name: str,
    place: str,
    zipped: bool,
) -> None:
    trace = tmp_path / "trace"
    named, attack = attacks(trace)[name]
    content = lightning(dict(official))
    if place == "state_dict":
        content["state_dict"]["vit_model.norm.bias"] = attack
    elif place == "callback":
        content["callbacks"] = {Namespace: {"state": [{"deep": (1, Namespace(inner=attack))}]}}
    elif place == "key":
        content["callbacks"] = {attack: 1}
    else:
        content["hyper_parameters"] = attack
    path = saved(tmp_path, content, zipped=zipped)
    with pytest.raises(UnsafeCheckpointError) as error:
        load(path)
    text = one_line(error, path)
    assert named in text
    assert "nothing was run" in text
    assert not trace.exists()


def test_the_attacks_work_where_nothing_guards(tmp_path: Path) -> None:
    # Otherwise the test above would prove nothing.
    trace = tmp_path / "trace"
    for name in ("system", "eval", "check_output"):
        pickle.loads(pickle.dumps(attacks(trace)[name][1]))
        assert trace.exists()
        trace.unlink()


def global_of(module: str, name: str) -> bytes:
    """A protocol 4 pickle of a dictionary whose state dict is one global, by any name."""
    text = b"".join(
        b"\x8c" + bytes([len(part)]) + part for part in (module.encode(), name.encode())
    )
    return b"\x80\x04}\x8c\x0astate_dict" + text + b"\x93s."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch", "os.system"),
        ("collections", "OrderedDict.__init__.__globals__"),
        ("torch.serialization", "os.remove"),
        ("torch.hub", "load"),
        ("os.path", "join"),
        ("posix", "system"),
        ("nt", "system"),
        ("builtins", "apply"),
        ("builtins", "getattr"),
        ("builtins", "str.format"),
        ("importlib", "import_module"),
        ("__builtins__", "eval"),
        ("runpy", "run_path"),
        ("ctypes", "CDLL"),
        ("operator", "attrgetter"),
        ("types", "FunctionType"),
        ("numpy", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("some.library", "eval"),
        ("cloudpickle.cloudpickle", "_make_function"),
    ],
)
def test_names_that_run_code_are_refused(tmp_path: Path, module: str, name: str) -> None:
    path = tmp_path / "hat.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hat/data.pkl", global_of(module, name))
    with pytest.raises(UnsafeCheckpointError) as error:
        read_state_dict(path)
    assert f"{module}.{name}" in str(error.value)


def test_python_2_names_are_judged_by_what_they_mean(tmp_path: Path) -> None:
    path = tmp_path / "hat.ckpt"
    for module, name, meaning in (
        ("__builtin__", "execfile", "builtins.execfile"),
        ("commands", "getoutput", "subprocess.getoutput"),
        ("cPickle", "loads", "pickle.loads"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("hat/data.pkl", global_of(module, name))
        with pytest.raises(UnsafeCheckpointError, match=meaning):
            read_state_dict(path)


def test_unknown_classes_are_inert(
    model: HAT, official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    """Lightning's callbacks: classes as keys, instances with state, subclasses of containers."""
    module = types.ModuleType("a_training_framework")
    made: list[str] = []

    def callback_init(self: object) -> None:
        made.append("an instance")

    def set_state(self: object, state: object) -> None:
        made.append("a state")

    body = {"__module__": module.__name__, "__init__": callback_init, "__setstate__": set_state}
    callback = type("Callback", (), {**body, "__getstate__": lambda self: {"best": 1}})
    listed = type("Listed", (list,), {"__module__": module.__name__})
    mapped = type("Mapped", (dict,), {"__module__": module.__name__})
    grouped = type("Grouped", (set,), {"__module__": module.__name__})
    for kind in (callback, listed, mapped, grouped):
        setattr(module, kind.__name__, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        content = lightning(official) | {
            "callbacks": {callback: {"last": callback()}, "more": listed([1, 2])},
            "hyper_parameters": mapped(a=1, group=grouped({1}), kinds={int, str}, b=Namespace(c=2)),
            "loops": {"score": torch.tensor(0.5), "path": tmp_path, "device": torch.device("cpu")},
        }
        path = saved(tmp_path, content)
        made.clear()
        # Importing the framework would find it: only a reader that doesn't import leaves no trace.
        loaded = load(path)
    assert_same(loaded.model, model)
    assert made == []


def test_nothing_is_imported(
    model: HAT, official: State, load: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "trap_module.py").write_text("raise RuntimeError('imported')")
    module = types.ModuleType("trap_module")
    module.Trap = type("Trap", (), {"__module__": "trap_module"})  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "trap_module", module)
        path = saved(tmp_path, lightning(official) | {"callbacks": {module.Trap: module.Trap()}})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert_same(load(path).model, model)
    assert "trap_module" not in sys.modules
