"""Damaged bundles of the demo model fail, and what was damaged is named.

A bundle proves itself by hashes and a self-test, so that a damaged one is made as it would come
about: a checkpoint whose weights or spec are not the trained ones is exported.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hat_export
from hat_export.data.dataset import CaptionDataset
from hat_export.data.karpathy import read_karpathy
from hat_export.export.onnx_export import export_onnx
from hat_export.model.checkpoint import load_hat, save_checkpoint
from hat_export.model.hat import HAT
from hat_export.parity.attribution import Component
from hat_export.parity.budget import DEFAULT_BUDGET, Verdict, parse_budget
from hat_export.parity.outcome import ParityOutcome, ParitySettings, Side
from hat_export.parity.report import parity_report
from hat_export.parity.run import run_parity
from places import DEMO, MODEL

IMAGE_LAYER = "vit_model.layers.2.blocks.1"
TEXT_LAYER = "text_transformer.encoder.layer.2"


def int4(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to 15 steps for the whole tensor, as a careless quantizer does it."""
    step = weight.abs().max() / 7
    return (weight / step).round() * step


def perturb_an_image_layer(model: HAT) -> HAT:
    generator = torch.Generator().manual_seed(0)
    weight = model.get_parameter(f"{IMAGE_LAYER}.mlp.fc1.weight")
    noise = torch.randn(weight.shape, generator=generator)
    weight.add_(2 * weight.std() * noise)
    return model


def round_a_text_layer(model: HAT) -> HAT:
    for name, parameter in model.named_parameters():
        if name.startswith(TEXT_LAYER) and parameter.ndim == 2:
            parameter.copy_(int4(parameter))
    return model


def change_lambda(model: HAT) -> HAT:
    spec = dataclasses.replace(model.spec, softmax_lambda=2.0)
    changed = HAT(spec).eval()
    changed.load_state_dict(model.state_dict())
    return changed


def do_nothing(model: HAT) -> HAT:
    return model


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[HAT], HAT]], Path]:
    folder = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def make(damage: Callable[[HAT], HAT]) -> Path:
        with torch.no_grad():
            model = damage(load_hat(MODEL).model)
        checkpoint, bundle = (folder / f"{damage.__name__}-{kind}" for kind in ("pt", "onnx"))
        save_checkpoint(checkpoint, model, MODEL / "vocab.txt")
        export_onnx(checkpoint, bundle, threads=2)
        return bundle

    return make


@pytest.fixture(scope="module")
def dataset() -> CaptionDataset:
    return read_karpathy(DEMO / "emojicap", "test").take(5).limit(200)


def against_the_checkpoint(
    bundle: Path, dataset: CaptionDataset, cache: Path, localize: bool = True
) -> ParityOutcome:
    settings = ParitySettings(
        parse_budget(DEFAULT_BUDGET), cache=cache, localize=localize, threads=2
    )
    sides = (
        Side(MODEL, functools.partial(hat_export.load, MODEL)),
        Side(bundle, functools.partial(hat_export.open_bundle, bundle)),
    )
    return run_parity(*sides, dataset, settings)


def test_a_float32_bundle_changes_no_rank(bundle_of, dataset, cache) -> None:
    outcome = against_the_checkpoint(bundle_of(do_nothing), dataset, cache)
    assert outcome.verdict is Verdict.passed
    assert outcome.parity.changed == ()
    assert outcome.attribution is None
    assert all(check.passed for check in outcome.checks)
    assert {check.scorer for check in outcome.checks} == {"own score", "alignment graph"}
    assert [found.first for found in outcome.localizations] == [None, None]
    assert all(found.disturbed == () for found in outcome.localizations)


def test_a_perturbed_image_layer(bundle_of, dataset, cache) -> None:
    outcome = against_the_checkpoint(bundle_of(perturb_an_image_layer), dataset, cache)
    assert outcome.verdict is Verdict.failed
    assert culprit(outcome) is Component.image
    image, text = outcome.localizations
    assert image.first is not None
    assert image.first.layer == IMAGE_LAYER
    assert image.first_node is not None
    assert image.first_node.weights == (f"{IMAGE_LAYER}.mlp.fc1.weight^T",)
    assert text.first is None
    assert f"First layer of the image graph over 0.0001: {IMAGE_LAYER}" in " ".join(
        parity_report(outcome).summary
    )


def test_another_lambda(bundle_of, dataset, cache) -> None:
    outcome = against_the_checkpoint(bundle_of(change_lambda), dataset, cache, localize=False)
    assert outcome.verdict is Verdict.failed
    assert culprit(outcome) is Component.scorer


def test_a_text_layer_in_int4(bundle_of, dataset, cache) -> None:
    outcome = against_the_checkpoint(bundle_of(round_a_text_layer), dataset, cache)
    assert outcome.verdict is Verdict.failed
    assert culprit(outcome) is Component.text
    image, text = outcome.localizations
    assert image.first is None
    assert text.first is not None
    assert text.first.layer == TEXT_LAYER


def culprit(outcome: ParityOutcome) -> Component:
    """The component that is named, after checks that the others cost next to nothing."""
    assert outcome.attribution is not None
    named = outcome.attribution.culprit
    assert named is not None
    parts = {
        swap.component: swap
        for swap in outcome.attribution.swaps
        if swap.level is None and swap.component is not Component.levels
    }
    for component, swap in parts.items():
        if component is not named.component:
            assert swap.changed == 0
            assert abs(swap.cost) < 0.2
    return named.component


def test_the_pytest_fixture(assert_parity, bundle_of, dataset, cache, tmp_path: Path) -> None:
    """It lets pass what passed, and fails with the verdict what didn't."""
    folder = bundle_of(do_nothing)
    passed = against_the_checkpoint(folder, dataset, cache, localize=False)
    assert_parity(passed, report=tmp_path / "parity.html")
    assert "Parity passed" in (tmp_path / "parity.html").read_text()
    failed = dataclasses.replace(passed, verdict=Verdict.failed)
    with pytest.raises(pytest.fail.Exception, match="Parity FAILED"):
        assert_parity(failed)
    undecided = dataclasses.replace(passed, verdict=Verdict.undecided)
    assert_parity(undecided, allow_undecided=True)
    with pytest.raises(pytest.fail.Exception, match="could not be judged"):
        assert_parity(undecided)
