"""Training of the demo model: objectives against their formulas, data, and a few real steps."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hat_export.data.dataset import CaptionDataset
from hat_export.data.karpathy import read_karpathy
from hat_export.data.preprocess import ImagePreprocessor
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.model.hat import HAT
from hat_export.spec import ModelSpec
from places import DEMO, VOCABULARY
from train.augment import augment
from train.data import TrainingSet, hold_out, trimmed_vocabulary
from train.loop import Stage, Trainer, evaluate
from train.objective import contrast, hardest_negative_hinge, pooled_contrast

SAME = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 1, 1]], dtype=torch.bool)


def test_hinge_takes_the_hardest_negative_of_another_concept() -> None:
    scores = torch.tensor([[1.0, 0.9, 0.2], [0.1, 0.5, 3.0], [0.7, 2.0, 0.6]])
    images = [max(0, 0.2 + 0.9 - 1.0), max(0, 0.2 + 0.1 - 0.5), max(0, 0.2 + 0.7 - 0.6)]
    captions = [max(0, 0.2 + 0.7 - 1.0), max(0, 0.2 + 0.9 - 0.5), max(0, 0.2 + 0.2 - 0.6)]
    expected = (sum(images) + sum(captions)) / 3
    assert float(hardest_negative_hinge(scores, SAME)) == pytest.approx(expected)


def test_contrast_counts_every_right_answer() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    shares = logits.softmax(1)
    right = torch.stack([shares[0, 0], shares[1, 1] + shares[1, 2], shares[2, 1] + shares[2, 2]])
    assert float(contrast(logits, SAME)) == pytest.approx(float(-right.log().mean()), rel=1e-5)


def test_pooled_contrast_is_low_when_right_pairs_agree() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 1, 16)
    mask = torch.ones(4, 1, dtype=torch.bool)
    same = torch.eye(4, dtype=torch.bool)
    scales = torch.full((1,), 20.0)
    good = pooled_contrast([features], [features], mask, same, scales)
    bad = pooled_contrast([features], [features.roll(1, 0)], mask, same, scales)
    assert float(good) < 0.1 < 1 < float(bad)


def test_augmentation_stays_a_picture_and_can_be_off() -> None:
    images = torch.rand(16, 3, 32, 32)
    flip = torch.ones(16, dtype=torch.bool)
    warped = augment(images, flip, torch.Generator().manual_seed(0), 1.0)
    assert 0 <= float(warped.min()) <= float(warped.max()) <= 1
    assert float((warped - images).abs().mean()) > 0.05
    same = augment(images, ~flip, torch.Generator().manual_seed(0), 0.0)
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    white = augment(torch.ones(4, 3, 32, 32), flip[:4], torch.Generator().manual_seed(0), 1.0)
    torch.testing.assert_close(white, torch.ones(4, 3, 32, 32), atol=1e-5, rtol=0)


def test_schedules() -> None:
    stage = Stage("pooled", 1000, 4, 2, 1.0, "cosine", 1.0)
    assert stage.rate_at(0) == pytest.approx(0.01, rel=0.01)
    assert stage.rate_at(500) == pytest.approx(0.51)
    assert stage.rate_at(999) == pytest.approx(0.02, rel=0.01)
    assert [stage.strength_at(step) for step in (0, 300, 999)] == [0.4, 1.0, 1.0]
    step = replace(stage, objective="hinge", schedule="step")
    assert (step.rate_at(600), step.rate_at(700)) == (1.0, 0.1)
    assert math.isclose(step.strength_at(0), 1.0)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> CaptionDataset:
    """Six concepts of a colour each, drawn by two vendors."""
    folder = tmp_path_factory.mktemp("drawings")
    colours = ["red", "green", "blue", "black", "yellow", "white"]
    images = []
    for vendor in ("noto", "other"):
        for colour in colours:
            name = f"{vendor}_{colour}.png"
            Image.new("RGB", (64, 64), colour).save(folder / name)
            labels = {"vendor": vendor, "concept": colour, "group": "x", "label": colour}
            sentences = [{"raw": f"{word} {colour}"} for word in ("a", "the", "very")]
            images.append({"filename": name, "split": "train", "sentences": sentences, **labels})
    (folder / "dataset_x.json").write_text(json.dumps({"images": images}))
    return read_karpathy(folder, "train")


def test_the_held_out_split_is_fixed_by_names(drawings: CaptionDataset) -> None:
    kept, held = hold_out(drawings)
    again = hold_out(replace(drawings, entries=drawings.entries[::-1]))[1]
    assert {entry.name for entry in held.entries} == {entry.name for entry in again.entries}
    assert {entry.labels["vendor"] for entry in held.entries} == {"noto"}
    assert len({entry.labels["concept"] for entry in held.entries}) == len(held.entries)
    assert len(kept.entries) + len(held.entries) == len(drawings.entries)


def test_a_trimmed_vocabulary_tokenizes_alike(drawings: CaptionDataset, tmp_path: Path) -> None:
    pieces = trimmed_vocabulary(VOCABULARY, drawings.captions, 32)
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    full = VOCABULARY.read_text().split("\n")
    ours, mask = CaptionTokenizer.from_vocabulary(path, 32).encode(drawings.captions)
    theirs, _ = CaptionTokenizer.from_vocabulary(VOCABULARY, 32).encode(drawings.captions)
    for one, other in zip(ours[mask > 0], theirs[mask > 0], strict=True):
        assert pieces[one] == full[other]


def test_three_stages_of_training(drawings: CaptionDataset, tmp_path: Path) -> None:
    pieces = trimmed_vocabulary(VOCABULARY, drawings.captions, 8)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = CaptionTokenizer.from_vocabulary(tmp_path / "vocab.txt", 8)
    spec = ModelSpec(
        name="x",
        image_size=64,
        resize_size=64,
        window_size=2,
        embed_dim=8,
        depths=(1, 1, 1, 1),
        image_heads=(1, 1, 2, 2),
        vocab_size=len(pieces),
        max_words=8,
        text_positions=8,
        text_dim=16,
        text_layers=2,
        text_heads=2,
        text_hidden=16,
        text_level_layers=(0, 1, 1),
        dim=16,
    )
    torch.manual_seed(0)
    preprocess = ImagePreprocessor.from_spec(spec)
    training = TrainingSet.load(drawings, preprocess, tokenizer)
    trainer = Trainer(HAT(spec), training, drawings, preprocess, tokenizer, tmp_path, seed=0)
    for objective in ("pooled", "alignment", "hinge"):
        stage = Stage(objective, 6, 4, 2 if objective != "hinge" else 1, 1e-2, "cosine", 0.5, 2)
        trainer.run(stage, evaluations=2)
    assert len(trainer.log) == 6
    assert all(np.isfinite(row["loss"]) for row in trainer.log)
    # the first stage's loss, which is the same at both evaluations
    assert trainer.log[1]["loss"] < trainer.log[0]["loss"]
    restored = HAT(spec)
    restored.load_state_dict(torch.load(tmp_path / "best.pt", weights_only=True))
    result = evaluate(restored, drawings, preprocess, tokenizer)
    assert result.rsum == pytest.approx(
        max(row["validation"]["rsum"] for row in trainer.log), abs=0.1
    )


def test_the_command_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO / "train"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--alignment-steps" in done.stdout
