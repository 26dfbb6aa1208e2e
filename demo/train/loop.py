"""The training loop: three stages, evaluation on the validation split, resumable."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hat_export.data.dataset import CaptionDataset
from hat_export.data.preprocess import ImagePreprocessor
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.model.alignment import alignment_scores
from hat_export.model.hat import HAT
from hat_export.score.metrics import Retrieval, rank
from train.augment import augment
from train.data import TrainingSet
from train.objective import hardest_negative_hinge, pooled_contrast, symmetric_contrast

Objective = Literal["pooled", "alignment", "hinge"]


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        objective: ``pooled`` (contrast of pooled features, no alignment score), ``alignment``
            (InfoNCE on the full score) or ``hinge`` (the paper's loss on the full score).
        steps: Optimiser steps.
        concepts: Distinct concepts in a batch.
        drawings: Drawings of each concept in a batch.
        rate: Learning rate at the start.
        schedule: ``cosine`` down to 2 %, or ``step``: a tenth after two thirds.
        strength: Augmentation strength.
        frozen_steps: First steps in which the encoders are frozen.
        pooled_weight: Weight of the pooled contrast beside the main objective.
    """

    objective: Objective
    steps: int
    concepts: int
    drawings: int
    rate: float
    schedule: Literal["cosine", "step"]
    strength: float
    frozen_steps: int = 0
    pooled_weight: float = 0.2

    def strength_at(self, step: int) -> float:
        """Augmentation strength of a step: full from the start, it keeps a model from learning."""
        ramp = 0.4 + 0.6 * step / (0.3 * self.steps) if self.objective == "pooled" else 1.0
        return self.strength * min(1.0, ramp)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, with a warm-up over the first 100."""
        warm = min(1.0, (step + 1) / 100)
        if self.schedule == "step":
            return self.rate * warm * (0.1 if step >= self.steps * 2 // 3 else 1.0)
        return self.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


class Trainer:
    """Trains a HAT on drawings and keeps the weights that are best on the validation split.

    Args:
        model: The model, freshly initialised or loaded.
        training: What batches are drawn from.
        validation: Split that picks the best weights.
        preprocess: Image preprocessing of the model.
        tokenizer: Tokenizer of the model.
        folder: Where the state, the best weights and the log go.
        seed: Seed of batches and augmentation.
    """

    def __init__(
        self,
        model: HAT,
        training: TrainingSet,
        validation: CaptionDataset,
        preprocess: ImagePreprocessor,
        tokenizer: CaptionTokenizer,
        folder: Path,
        seed: int,
    ) -> None:
        self.model = model
        self.averaged = copy.deepcopy(model)
        self.training = training
        self.validation = validation
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.folder = folder
        self.scales = nn.Parameter(torch.full((4,), math.log(10.0)))
        self.random = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.mask_id = tokenizer.id_of("[MASK]")
        self.best = -1.0
        self.stages: list[Stage] = []
        self.log: list[dict[str, Any]] = []

    def run(self, stage: Stage, evaluations: int = 8) -> None:
        """Train one stage, evaluating at even distances."""
        self.stages.append(stage)
        optimizer = self._optimizer(stage)
        every = max(1, stage.steps // evaluations)
        started = time.monotonic()
        losses: list[float] = []
        for step in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.rate_at(step) * group["factor"]
            self._freeze(step < stage.frozen_steps)
            loss = self._loss(stage, step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
            optimizer.step()
            with torch.no_grad():
                self.scales.clamp_(0, math.log(50.0))
            self._average(step)
            losses.append(float(loss.detach()))
            if (step + 1) % every == 0 or step + 1 == stage.steps:
                mean = sum(losses) / len(losses)
                self._evaluate(stage, step + 1, mean, time.monotonic() - started)
                losses.clear()

    def _optimizer(self, stage: Stage) -> torch.optim.Optimizer:
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]
        if stage.objective == "hinge":  # the paper's optimiser
            everything = [*decayed, *plain]
            return torch.optim.Adam([{"params": everything, "factor": 1.0}], lr=stage.rate)
        groups = [
            {"params": decayed, "weight_decay": 0.05, "factor": 1.0},
            {"params": [*plain, self.scales], "weight_decay": 0.0, "factor": 1.0},
        ]
        return torch.optim.AdamW(groups, lr=stage.rate, betas=(0.9, 0.98))

    def _freeze(self, frozen: bool) -> None:
        for encoder in (self.model.vit_model, self.model.text_transformer):
            encoder.requires_grad_(not frozen)

    def _average(self, step: int) -> None:
        """Exponential moving average of the weights, over about 500 steps."""
        decay = min(0.998, (step + 1) / (step + 10)) if not self.log else 0.998
        with torch.no_grad():
            for slow, fast in zip(self.averaged.parameters(), self.model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)

    def _batch(self, stage: Stage, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixel values, ids, mask, and which entries show the same concept."""
        data = self.training
        concepts = self.random.choice(len(data.members), stage.concepts, replace=False)
        drawings, captions = [], []
        for concept in concepts:
            members = data.members[concept]
            replace = len(members) < stage.drawings
            for drawing in self.random.choice(members, stage.drawings, replace=replace):
                drawings.append(int(drawing))
                # Any drawing's captions describe the concept: more texts an image.
                teller = int(self.random.choice(members))
                first, last = data.first_caption[teller : teller + 2]
                captions.append(int(self.random.integers(first, last)))
        width = int(data.lengths[captions].max())
        ids = data.ids[captions, :width].clone()
        mask = torch.arange(width)[None] < data.lengths[captions][:, None]
        hidden = (torch.rand(ids.shape, generator=self.generator) < 0.08) & mask
        hidden[:, 0] = False
        ids[hidden] = self.mask_id
        scaled = data.pixels[drawings].float() / 255
        strength = stage.strength_at(step)
        warped = augment(scaled, data.may_flip[drawings], self.generator, strength)
        mean = torch.tensor(self.preprocess.mean)[:, None, None]
        std = torch.tensor(self.preprocess.std)[:, None, None]
        label = data.concept[drawings]
        return (warped - mean) / std, ids, mask, label[:, None] == label[None]

    def _loss(self, stage: Stage, step: int) -> Tensor:
        pixels, ids, mask, same = self._batch(stage, step)
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            regions = self.model.encode_images(pixels)
            words = self.model.encode_texts(ids, mask)
        regions = tuple(level.float() for level in regions)  # type: ignore[assignment]
        words = tuple(level.float() for level in words)  # type: ignore[assignment]
        scales = self.scales.exp()
        pooled = pooled_contrast(regions, words, mask, same, scales[:3])
        if stage.objective == "pooled":
            return pooled
        spec = self.model.spec
        scores = alignment_scores(regions, words, mask, spec.softmax_lambda, spec.direction)
        if stage.objective == "hinge":
            main = hardest_negative_hinge(scores, same)
        else:
            main = symmetric_contrast(scores * scales[3], same)
        return main + stage.pooled_weight * pooled

    def _evaluate(self, stage: Stage, step: int, loss: float, seconds: float) -> None:
        result = evaluate(self.averaged, self.validation, self.preprocess, self.tokenizer)
        row = {
            "objective": stage.objective,
            "step": step,
            "minutes": round(seconds / 60, 2),
            "loss": round(loss, 4),
            "scales": [round(float(scale), 2) for scale in self.scales.detach().exp()],
            "validation": _brief(result),
        }
        self.log.append(row)
        print(json.dumps(row), flush=True)
        weights = self.averaged.state_dict()
        torch.save(weights, self.folder / "last.pt")
        if result.rsum > self.best:
            self.best = result.rsum
            torch.save(weights, self.folder / "best.pt")
        log = {"stages": [asdict(item) for item in self.stages], "log": self.log}
        (self.folder / "log.json").write_text(json.dumps(log, indent=1))


def _brief(result: Retrieval) -> dict[str, Any]:
    metrics: dict[str, Any] = {"rsum": round(result.rsum, 2)}
    for side, ranks in (("i2t", result.i2t), ("t2i", result.t2i)):
        metrics[side] = [round(ranks.recall(at), 2) for at in (1, 5, 10)]
    return metrics


@torch.inference_mode()
def evaluate(
    model: HAT,
    dataset: CaptionDataset,
    preprocess: ImagePreprocessor,
    tokenizer: CaptionTokenizer,
    block: int = 100,
) -> Retrieval:
    """Retrieval metrics of a model on a split, in float32."""
    model.eval()
    images = list(dataset.images())
    regions: list[Sequence[Tensor]] = []
    for start in range(0, len(images), block):
        pixels = torch.from_numpy(preprocess(images[start : start + block]))
        regions.append(model.encode_images(pixels))
    captions = dataset.captions
    ids, mask = tokenizer.encode(captions)
    order = np.argsort(mask.sum(1), kind="stable")
    scores = np.empty((len(images), len(captions)), np.float32)
    spec = model.spec
    for start in range(0, len(captions), block):
        chosen = order[start : start + block]
        width = int(mask[chosen].sum(1).max())
        real = torch.from_numpy(mask[chosen, :width]).bool()
        words = model.encode_texts(torch.from_numpy(ids[chosen, :width]), real)
        for number, levels in enumerate(regions):
            part = alignment_scores(levels, words, real, spec.softmax_lambda, spec.direction)
            scores[number * block : number * block + len(part), chosen] = part.numpy()
    return rank(scores, dataset.owners)
