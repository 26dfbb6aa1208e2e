"""The model at its official size against the official implementation's recorded outputs.

The weights are made from their names (see ``tests/golden/README.md``), written once as a training
framework writes them and loaded by the real loader, so that this tests the loader too: 200 million
parameters, a file of 800 MB, about 3 GB of memory.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hat_export.model.alignment import alignment_scores, level_scores
from hat_export.model.checkpoint import BERT_VOCABULARY, LoadedCheckpoint, load_hat
from hat_export.model.keys import to_own
from hat_export.score.metrics import RECALL_AT, rank
from hat_export.spec import OFFICIAL, Direction
from hat_reference_inputs import golden_images, probe
from hat_reference_weights import make_weights, self_test

Arrays = dict[str, np.ndarray]

# Tolerances: five to ten times what two independent float32 implementations differ by from each
# other and from float64 (see "What to expect in float32" in tests/golden/README.md), and far below
# the effect of any planted mistake listed there.
FEATURE_TOLERANCE = 5e-5
NORM_TOLERANCE = 1e-4
PROBE_TOLERANCE = 1e-3
#: Activations within the last stages reach 25.
LATE_TAP_TOLERANCE = 3e-4
SCORE_TOLERANCE = 2e-6
SUM_TOLERANCE = 4e-6

STEPS = {1: 49, 2: 14, 3: 5}
LEVELS = (1, 2, 3)
OWNERS = [caption // 5 for caption in range(30)]


@dataclass(frozen=True)
class Golden:
    """The loaded model and what it computes for the recorded inputs."""

    loaded: LoadedCheckpoint
    weights_equal: dict[str, bool]
    images: tuple[np.ndarray, ...]
    texts: tuple[np.ndarray, ...]
    stage_probes: tuple[np.ndarray, ...]
    taps: dict[str, np.ndarray]
    mask: Tensor

    def scores(self, level: int, direction: Direction) -> np.ndarray:
        regions, words = (torch.from_numpy(side[level - 1]) for side in (self.images, self.texts))
        result: np.ndarray = level_scores(regions, words, self.mask, 9.0, direction).numpy()
        return result


def write_lightning(path: Path, tensors: dict[str, Tensor]) -> None:
    """Save as Lightning does, with a class of its own among the dictionary keys."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    parents = [ModuleType(name) for name in names[:2]]
    with pytest.MonkeyPatch.context() as patch:
        for name, made in zip(names, [*parents, module], strict=True):
            patch.setitem(sys.modules, name, made)
        content = {
            "epoch": 9,
            "global_step": 4530,
            "pytorch-lightning_version": "1.3.2",
            "state_dict": OrderedDict(tensors),
            "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "monitor": callback()}},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
            "hyper_parameters": {"seed": 0, "batch_size": 4096},
        }
        torch.save(content, path)


@pytest.fixture(scope="module")
def golden(
    official_tensors: dict[str, dict[str, Any]],
    golden_model: Arrays,
    tmp_path_factory: pytest.TempPathFactory,
) -> Golden:
    arrays = make_weights({name: entry["shape"] for name, entry in official_tensors.items()})
    tensors = {
        name: torch.from_numpy(arrays[name])
        if name in arrays
        else torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for name, entry in official_tensors.items()
    }
    path = tmp_path_factory.mktemp("official") / "hat.ckpt"
    write_lightning(path, tensors)
    try:
        loaded = load_hat(path)
    finally:
        path.unlink()
    own = to_own({name: tuple(tensor.shape) for name, tensor in tensors.items()}).own
    state = loaded.model.state_dict()
    equal = {name: torch.equal(state[own[name]], tensors[name]) for name in own}
    weight, bias = (tensors[f"vit_model.norm_0.{end}"].clone() for end in ("weight", "bias"))
    del arrays, tensors, state

    model = loaded.model
    taps: dict[str, Tensor] = {}
    hooks = []

    def tap(name: str, module: nn.Module, example: int) -> None:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            taps[name] = output[example].flatten(0, -2).clone()

        hooks.append(module.register_forward_hook(keep))

    swin: Any = model.vit_model
    bert: Any = model.text_transformer
    tap("patch_embed", swin.patch_embed, 0)
    for stage, layer in enumerate(swin.layers):
        for index, block in enumerate(layer.blocks):
            tap(f"block_{stage}_{index}", block, 0)
        if stage:
            tap(f"downsample_{stage - 1}", layer.downsample, 0)
    tap("bert_embeddings", bert.embeddings, 3)
    for index, layer in enumerate(bert.encoder.layer):
        tap(f"bert_layer_{index}", layer, 3)
    first_stage: list[Tensor] = []
    hooks.append(swin.layers[0].register_forward_hook(lambda _m, _i, out: first_stage.append(out)))

    lengths = torch.from_numpy(golden_model["lengths"])
    mask = torch.arange(32) < lengths[:, None]
    with torch.inference_mode():
        stages = model.image_stages(torch.from_numpy(golden_images()))
        images = model._project("image", stages)
        texts = model.encode_texts(torch.from_numpy(golden_model["ids"]).long(), mask)
        # The official model norms its first stage too, though no level uses it.
        width = OFFICIAL.embed_dim
        first = nn.functional.layer_norm(first_stage[0].flatten(1, 2), (width,), weight, bias)
    for hook in hooks:
        hook.remove()
    return Golden(
        loaded,
        equal,
        tuple(level.numpy() for level in images),
        tuple(level.numpy() for level in texts),
        tuple(
            (stage.double().numpy() @ probe(stage.shape[2]).astype(np.float64))
            for stage in (first, *stages)
        ),
        {name: tensor.numpy() for name, tensor in taps.items()},
        mask,
    )


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_recipe_is_reproduced() -> None:
    self_test()


def test_every_weight_arrives(golden: Golden) -> None:
    assert len(golden.weights_equal) == 540
    assert [name for name, equal in golden.weights_equal.items() if not equal] == []


def test_provenance(golden: Golden) -> None:
    loaded = golden.loaded
    assert loaded.spec == OFFICIAL
    assert loaded.vocabulary == BERT_VOCABULARY
    assert not loaded.model.training
    assert loaded.provenance["format"] == "torch zip"
    assert loaded.provenance["dtype"] == "float32"
    assert loaded.provenance["not_used"] == [
        "text_transformer.pooler.dense.bias",
        "text_transformer.pooler.dense.weight",
        "vit_model.norm_0.bias",
        "vit_model.norm_0.weight",
    ]


def test_image_taps(golden: Golden, golden_model: Arrays) -> None:
    for name, expected in zip(
        golden_model["image_tap_names"], golden_model["image_tap_values"], strict=True
    ):
        found = golden.taps[name]
        length = len(found)
        late = name.split("_")[1] in "23"
        close(
            found[[0, 1, length // 2 + 3, length - 1], :8],
            expected,
            LATE_TAP_TOLERANCE if late else FEATURE_TOLERANCE,
        )


def test_text_taps(golden: Golden, golden_model: Arrays) -> None:
    for name, expected in zip(
        golden_model["text_tap_names"], golden_model["text_tap_values"], strict=True
    ):
        close(golden.taps[name][[0, 1, 15, 30], :8], expected, FEATURE_TOLERANCE)


@pytest.mark.parametrize("stage", range(4))
def test_normed_stages(golden: Golden, golden_model: Arrays, stage: int) -> None:
    close(golden.stage_probes[stage], golden_model[f"stage{stage}_normed_probe"], PROBE_TOLERANCE)


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("level", LEVELS)
def test_features(golden: Golden, golden_model: Arrays, level: int, side: str) -> None:
    features = (golden.images if side == "image" else golden.texts)[level - 1]
    step = STEPS[level] if side == "image" else 4
    prefix = f"{side}_level{level}"
    close(features[:, ::step, ::48], golden_model[f"{prefix}_slice"], FEATURE_TOLERANCE)
    exact = features.astype(np.float64)
    close(np.linalg.norm(exact, axis=2), golden_model[f"{prefix}_norm"], NORM_TOLERANCE)
    probed = exact @ probe().astype(np.float64)
    close(probed, golden_model[f"{prefix}_probe"], PROBE_TOLERANCE)
    close(probed, golden_model[f"{prefix}_probe_exact"], PROBE_TOLERANCE)


def test_full_features(golden: Golden, golden_model: Arrays) -> None:
    close(golden.images[2][0], golden_model["image_level3_full_image0"], FEATURE_TOLERANCE)
    close(golden.texts[2][3], golden_model["text_level3_full_caption3"], FEATURE_TOLERANCE)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("level", LEVELS)
def test_level_scores(
    golden: Golden, golden_model: Arrays, level: int, direction: Direction
) -> None:
    scores = golden.scores(level, direction)
    for reference in ("", "_f32", "_exact"):
        recorded = golden_model[f"{direction}_level{level}{reference}"]
        close(scores, recorded, SCORE_TOLERANCE)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_ranks(golden: Golden, golden_model: Arrays, direction: Direction) -> None:
    total = alignment_scores(
        [torch.from_numpy(level) for level in golden.images],
        [torch.from_numpy(level) for level in golden.texts],
        golden.mask,
        9.0,
        direction,
    ).numpy()
    close(total, golden_model[f"{direction}_sum"], SUM_TOLERANCE)
    for name, scores in (("sum", total), ("level3", golden.scores(3, direction))):
        result = rank(scores, OWNERS)
        for side in ("i2t", "t2i"):
            ranks = getattr(result, side)
            prefix = f"{direction}_{name}"
            np.testing.assert_array_equal(ranks.worst, golden_model[f"{prefix}_ranks_{side}"])
            recorded = golden_model[f"{prefix}_recall_{side}"]
            for index, at in enumerate(RECALL_AT):
                assert ranks.recall(at) == pytest.approx(recorded[index], abs=1e-9)
            assert [ranks.median, ranks.mean] == pytest.approx(recorded[7:], abs=1e-9)


def test_a_single_image_and_caption(golden: Golden, golden_model: Arrays) -> None:
    model, length = golden.loaded.model, int(golden_model["lengths"][3])
    ids = torch.from_numpy(golden_model["ids"][3:4, :length]).long()
    with torch.inference_mode():
        images = model.encode_images(torch.from_numpy(golden_images()[:1]))
        texts = model.encode_texts(ids, torch.ones_like(ids))
    for level in range(3):
        close(images[level].numpy(), golden.images[level][:1], FEATURE_TOLERANCE)
        close(texts[level].numpy(), golden.texts[level][3:4, :length], FEATURE_TOLERANCE)
