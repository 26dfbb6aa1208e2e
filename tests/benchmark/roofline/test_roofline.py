"""Bounds: counted work, the larger of two limits, and what a share advises."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from hat_export.benchmark.roofline.bound import (
    Work,
    advice,
    bound_of,
    image_work,
    preprocessing_advice,
    score_work,
    search_work,
    text_work,
)
from hat_export.benchmark.roofline.cases import work_of
from hat_export.benchmark.roofline.machine import Machine
from hat_export.benchmark.roofline.products import Product, image_products, text_products
from hat_export.spec import OFFICIAL


def test_the_work_of_the_official_encoders() -> None:
    """Swin-B at 224 is published with 15.4 G multiplications, BERT-base has 85 M weights."""
    projections = sum(r * w * 768 for r, w in zip((784, 196, 49), (256, 512, 1024), strict=True))
    swin = image_work(OFFICIAL, 1).flops / 2 - projections
    assert swin == pytest.approx(15.4e9, rel=0.02)
    text = text_work(OFFICIAL, 1, 16)
    weights = 12 * 12 * 768**2 + 3 * 768**2
    attention = 12 * 2 * 16 * 16 * 768
    assert text.flops == 2 * (16 * weights + attention)
    assert text.bytes == 4 * (weights + 16 * 768 + 3 * 16 * 768)


def test_work_grows_with_its_batch_but_weights_do_not() -> None:
    one, eight = image_work(OFFICIAL, 1), image_work(OFFICIAL, 8)
    assert eight.flops == 8 * one.flops
    assert one.bytes < eight.bytes < 8 * one.bytes
    score = score_work(OFFICIAL, 10, 20, 16)
    assert score.flops == 2 * 10 * 1029 * 20 * 16 * 768
    search = search_work(OFFICIAL, 50, 16)
    one_caption = text_work(OFFICIAL, 1, 16).flops
    assert search.flops == one_caption + score_work(OFFICIAL, 50, 1, 16).flops


def test_a_bound_is_the_larger_limit() -> None:
    product = Product(1, 100, 100, 100)
    machine = Machine(1, ("x",), (), {product: (1e-3, "x")}, 1e9)
    compute = bound_of(Work(Counter({product: 3}), 0.0, 1e6), machine)
    assert (compute.seconds, compute.by) == (pytest.approx(3e-3), "compute")
    memory = bound_of(Work(Counter({product: 3}), 0.0, 1e7), machine)
    assert (memory.seconds, memory.by) == (pytest.approx(1e-2), "memory")
    further = bound_of(Work(Counter(), 2e9, 0.0), machine)
    assert further.seconds == pytest.approx(1.0)  # 2e6 operations took 1 ms


@pytest.mark.parametrize(
    ("component", "seconds", "limit", "word"),
    [
        ("images", 1.0, {"seconds": 0.9, "by": "compute"}, "lower precision"),
        ("images", 1.0, {"seconds": 0.5, "by": "compute"}, "hat-bench profile"),
        ("images", 1e-2, {"seconds": 1e-3, "by": "compute"}, "launch"),
        ("texts", 1.0, {"seconds": 0.9, "by": "memory"}, "fewer bytes"),
        ("texts", 1.0, {"seconds": 0.3, "by": "memory"}, "profile"),
        ("scores", 1.0, {"seconds": 0.3, "by": "compute"}, "softmax"),
    ],
)
def test_advice_is_one_sentence(component: str, seconds: float, limit, word: str) -> None:
    text = advice(component, seconds, limit)
    assert word in text
    assert text.count(". ") == 0
    assert text.endswith(".")


def test_preprocessing_is_compared_with_the_encoder() -> None:
    assert "2.0 times the encoder's" in preprocessing_advice(0.02, 0.01)
    assert "20% of the encoder's" in preprocessing_advice(0.002, 0.01)
    assert "not measured" in preprocessing_advice(0.002, None)


def test_cases_are_matched_with_their_work() -> None:
    assert work_of("images", "8", OFFICIAL, 16, 14) == image_work(OFFICIAL, 8)
    assert work_of("texts", "32 x 16", OFFICIAL, 16, 14) == text_work(OFFICIAL, 32, 16)
    assert work_of("scores", "8 x 32", OFFICIAL, 16, 14) == score_work(OFFICIAL, 8, 32, 16)
    found = work_of("end to end", "1 caption, 50 images", OFFICIAL, 16, 14)
    assert found == search_work(OFFICIAL, 50, 14)
    assert work_of("preprocessing", "8", OFFICIAL, 16, 14) is None


@pytest.mark.parametrize("library", ["OpenBLAS", "MKL", "MLAS"])
def test_libraries_are_measured_in_their_own_process(library: str) -> None:
    sizes = [[1, 64, 32, 16], [6, 8, 4, 8]]
    request = json.dumps({"library": library, "threads": 1, "products": sizes})
    done = subprocess.run(
        [sys.executable, "-m", "hat_export.benchmark.roofline.machine", request],
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = json.loads(done.stdout)["seconds"]
    assert len(seconds) == 2
    assert all(0 < value < 1 for value in seconds)


def test_products_of_attention_are_batched() -> None:
    assert image_products(OFFICIAL, 2)[Product(2 * 64 * 4, 49, 32, 49)] == 2
    assert text_products(OFFICIAL, 3, 10)[Product(36, 10, 64, 10)] == 12
