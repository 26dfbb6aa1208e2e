"""Load and save trained HAT models: Lightning and PyTorch files, safetensors, model folders.

No pickle is ever run: see :mod:`hat_export.model.torch_file` for the policy. A checkpoint is
accepted only if every tensor that inference needs is there, has the expected shape, holds floats
and is finite.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hat_export.base.atomic import partial_folder, publish
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import CheckpointError, OutputError, SpecError
from hat_export.model import torch_file
from hat_export.model.hat import HAT
from hat_export.model.keys import HEADS, Translation, to_official, to_own
from hat_export.model.spec_inference import infer_spec
from hat_export.spec import ModelSpec

WEIGHTS_NAME = "model.safetensors"
SPEC_NAME = "spec.json"
VOCABULARY_NAME = "vocab.txt"

#: Key of a safetensors file's metadata under which the spec is stored as JSON.
SPEC_METADATA = "hat_spec"

#: The vocabulary of bert-base-uncased, part of this package.
BERT_VOCABULARY = Path(__file__).parent.parent / "data" / "bert_base_uncased_vocab.txt"
BERT_VOCABULARY_SIZE = 30522

FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

#: How many names a message lists of each kind.
LISTED = 10


@dataclass(frozen=True)
class CheckpointInfo:
    """Where tensors came from.

    Attributes:
        file: The file with the tensors.
        format: ``torch zip``, ``torch legacy`` or ``safetensors``.
        size: Size of the file in bytes.
        sha256: SHA-256 of the file in hexadecimal.
        metadata: Metadata of a safetensors file, else empty.
    """

    file: Path
    format: str
    size: int
    sha256: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model ready for inference.

    Attributes:
        model: In eval mode, float32, on the CPU.
        spec: Its architecture, preprocessing and score.
        vocabulary: Its ``vocab.txt``.
        provenance: Plain JSON values: ``file`` (name only), ``sha256``, ``size``, ``format``,
            ``dtype`` (as stored), ``converted`` (to float32), ``spec`` and ``vocabulary`` (where
            each was found), ``not_used`` (learned tensors of the file that inference doesn't need).
    """

    model: HAT
    spec: ModelSpec
    vocabulary: Path
    provenance: dict[str, Any]


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], CheckpointInfo]:
    """Tensors of a checkpoint under the names of the file.

    Args:
        path: A Lightning ``.ckpt``, a ``.pt`` or ``.pth`` of ``torch.save``, a ``.safetensors``,
            or a folder with ``model.safetensors``. The content decides, not the suffix.

    Returns:
        The tensors, on the CPU, and where they came from.

    Raises:
        CheckpointError: if the file is missing, empty, truncated, damaged or something else.
        UnsafeCheckpointError: if its pickle names a function that runs code.
    """
    if path.is_dir():
        if not (path / WEIGHTS_NAME).is_file():
            raise CheckpointError(f"{path}: no {WEIGHTS_NAME} in this folder; name the checkpoint")
        path = path / WEIGHTS_NAME
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            kind = _kind(head, size, path)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        metadata: dict[str, str] = {}
        if kind == "torch zip":
            tensors = torch_file.read_zip(path)
        elif kind == "torch legacy":
            tensors = torch_file.read_legacy(path)
        else:
            tensors, metadata = _read_safetensors(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: can't read it ({error.strerror})") from None
    return tensors, CheckpointInfo(path, kind, size, digest, metadata)


def load_hat(
    path: Path, spec: ModelSpec | None = None, vocabulary: Path | None = None
) -> LoadedCheckpoint:
    """Load a trained model, strictly.

    Args:
        path: As in :func:`read_state_dict`.
        spec: The architecture; default: ``spec.json`` beside the weights, else the spec in a
            safetensors file's metadata, else the official one if every shape agrees with it.
        vocabulary: A ``vocab.txt``; default: ``vocab.txt`` beside the weights, else the packaged
            one of bert-base-uncased if the model has 30,522 word pieces.

    Returns:
        The model with its spec, vocabulary and provenance.

    Raises:
        CheckpointError: as in :func:`read_state_dict`, and if tensors are missing, unexpected,
            of another shape or kind, or not finite.
        SpecError: if the spec or the vocabulary isn't known or doesn't fit.
    """
    state, info = read_state_dict(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    try:
        translation = to_own(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{info.file}: {error}") from None
    if not any(name.startswith(HEADS) for name in translation.own.values()):
        found = ", ".join(list(state)[:3]) or "none"
        raise CheckpointError(
            f"{info.file}: not a HAT model: {len(state)} tensors ({found}, ...), none of which "
            f"starts with {', '.join(HEADS)}"
        )
    spec_source = "given"
    if spec is None:
        own_shapes = {own: shapes[name] for name, own in translation.own.items()}
        spec, spec_source = _find_spec(info, own_shapes)
    vocabulary, vocabulary_source = _find_vocabulary(vocabulary, info.file, spec)
    with torch.device("meta"):  # names and shapes without the cost of initial weights
        expected = {name: tuple(t.shape) for name, t in HAT(spec).state_dict().items()}
    _check_names(info.file, spec, expected, shapes, translation)
    parameters = sum(map(math.prod, expected.values()))
    if parameters > info.size:  # one number seen as many, which would become as many
        raise CheckpointError(f"{info.file}: {info.size} bytes can't hold {parameters} weights")
    weights, stored = _as_float32(info.file, state, translation)
    model = HAT(spec)
    model.load_state_dict(weights, strict=True)
    model.eval()
    provenance = {
        "file": info.file.name,
        "sha256": info.sha256,
        "size": info.size,
        "format": info.format,
        "dtype": ", ".join(stored),
        "converted": stored != ["float32"],
        "spec": spec_source,
        "vocabulary": vocabulary_source,
        "not_used": sorted(translation.unused),
    }
    return LoadedCheckpoint(model, spec, vocabulary, provenance)


def save_checkpoint(folder: Path, model: HAT, vocabulary_path: Path) -> None:
    """Write a folder with weights (official names), spec and vocabulary.

    It appears under its name only when complete: everything is written beside it first.

    Args:
        folder: Must not exist.
        model: What to save.
        vocabulary_path: Its ``vocab.txt``.

    Raises:
        OutputError: if the target exists or can't be written.
        SpecError: if the vocabulary doesn't fit the model.
    """
    _check_vocabulary(vocabulary_path, model.spec)
    if folder.exists() or folder.is_symlink():
        raise OutputError(f"{folder}: exists already; name a new folder or remove it first")
    text = json.dumps(model.spec.to_json(), indent=2) + "\n"
    state = model.state_dict()
    # safetensors wants tensors that share no memory and are contiguous.
    weights = {
        official: state[own].detach().cpu().contiguous()
        for own, official in to_official(state).items()
    }
    metadata = {"format": "pt", SPEC_METADATA: json.dumps(model.spec.to_json())}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(folder.parent, folder.name) as work:
            save_file(weights, work / WEIGHTS_NAME, metadata)
            (work / WEIGHTS_NAME).chmod(0o644)  # the library writes it for its owner only
            (work / SPEC_NAME).write_text(text, encoding="utf-8")
            shutil.copyfile(vocabulary_path, work / VOCABULARY_NAME)
            work.chmod(0o755)
            publish(work, folder, replace=False)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{folder}: can't write the checkpoint ({error})") from None


def _kind(head: bytes, size: int, path: Path) -> str:
    """Format of a file by its first bytes, or an error that says what it is instead."""
    if not head:
        raise CheckpointError(f"{path}: the file is empty; download or copy it again")
    if head.startswith(torch_file.ZIP_MAGIC):
        return "torch zip"
    if head.startswith(torch_file.LEGACY_MAGIC):
        return "torch legacy"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size, 100_000_000):
        return "safetensors"
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: a Git LFS pointer of {size} bytes, not the checkpoint; run `git lfs pull`"
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path}: a web page, not a checkpoint; open the link in a browser to download it"
        )
    if head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path}: a bare Python pickle, which isn't read; save the state_dict with torch.save "
            "or as .safetensors"
        )
    raise CheckpointError(
        f"{path}: not a checkpoint (starts with {head[:8]!r}); expected a Lightning .ckpt, a "
        "torch.save file or .safetensors"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: truncated or damaged safetensors file ({error}); download or copy it again"
        ) from None


def _find_spec(
    info: CheckpointInfo, own_shapes: Mapping[str, tuple[int, ...]]
) -> tuple[ModelSpec, str]:
    beside = info.file.parent / SPEC_NAME
    if beside.is_file():
        try:
            text = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{beside}: can't read it ({error})") from None
        return ModelSpec.parse(text, str(beside)), f"{SPEC_NAME} beside the weights"
    if SPEC_METADATA in info.metadata:
        source = f"{info.file}: metadata {SPEC_METADATA}"
        return ModelSpec.parse(info.metadata[SPEC_METADATA], source), "metadata of the weights"
    return infer_spec(own_shapes, str(info.file)), "official, as every shape agrees"


def _find_vocabulary(given: Path | None, weights: Path, spec: ModelSpec) -> tuple[Path, str]:
    beside = weights.parent / VOCABULARY_NAME
    if given is not None:
        found, source = given, "given"
    elif beside.is_file():
        found, source = beside, f"{VOCABULARY_NAME} beside the weights"
    elif spec.vocab_size == BERT_VOCABULARY_SIZE:
        found, source = BERT_VOCABULARY, "bert-base-uncased, packaged"
    else:
        raise SpecError(
            f"{weights}: the model has {spec.vocab_size} word pieces, so it isn't "
            f"bert-base-uncased's vocabulary; put its {VOCABULARY_NAME} beside it or name it with "
            "--vocabulary"
        )
    _check_vocabulary(found, spec)
    return found, source


def _check_vocabulary(path: Path, spec: ModelSpec) -> None:
    size = CaptionTokenizer.from_vocabulary(path, spec.max_words).vocab_size
    if size != spec.vocab_size:
        raise SpecError(
            f"{path}: {size} word pieces, but the model {spec.name!r} has {spec.vocab_size}; "
            "expected the vocabulary it was trained with"
        )


def _check_names(
    path: Path,
    spec: ModelSpec,
    expected: Mapping[str, tuple[int, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    translation: Translation,
) -> None:
    own = translation.own
    missing = set(expected) - set(own.values())
    official = to_official(expected)
    faults = [
        ("missing", [official[name] for name in expected if name in missing]),
        ("unexpected", [name for name in own if own[name] not in expected]),
        (
            "of another shape",
            [
                f"{name} {list(shapes[name])} (expected {list(expected[own[name]])})"
                for name in own
                if own[name] in expected and shapes[name] != expected[own[name]]
            ],
        ),
    ]
    told = [f"{len(names)} {what}: {_listed(names)}" for what, names in faults if names]
    if told:
        raise CheckpointError(f"{path}: doesn't fit the spec {spec.name!r}: {'; '.join(told)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _as_float32(
    path: Path, state: Mapping[str, Tensor], translation: Translation
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights by own names, and the element types they were stored in."""
    weights: dict[str, Tensor] = {}
    stored: set[str] = set()
    wrong: list[str] = []
    broken: list[str] = []
    for name, own in translation.own.items():
        tensor = state[name]
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.dtype not in FLOAT_TYPES:
            wrong.append(f"{name} ({kind})")
            continue
        # Checked after the conversion: a float64 can be too large for float32.
        weights[own] = tensor.to(torch.float32)
        stored.add(kind)
        if not torch.isfinite(weights[own]).all():
            broken.append(name)
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} of another type than floating point: {_listed(wrong)}; expected "
            "the unquantized model"
        )
    if broken:
        raise CheckpointError(
            f"{path}: {len(broken)} with NaN or infinite weights: {_listed(broken)}; the training "
            "diverged or the file is damaged"
        )
    return weights, sorted(stored)
