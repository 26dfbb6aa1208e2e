"""The score against the official one: 19 cases at one level, both directions and precisions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import formula
from hat_export.model.alignment import alignment_scores, level_scores
from hat_export.spec import Direction
from hat_reference_inputs import KERNEL_CASES, kernel_case
from hat_reference_weights import checksum

Arrays = dict[str, np.ndarray]

#: Rounding of a few thousand float64 operations on values below 1; measured: 2e-16.
FLOAT64_TOLERANCE = 1e-12
#: The official float32 differs from its float64 by up to 1.3e-7; 2e-6 leaves room for another
#: order of summation, and is a thousandth of the smallest effect of a planted mistake.
FLOAT32_TOLERANCE = 2e-6
#: lambda = 100 multiplies an error of the logits by 100; the official float32 is off by 7.6e-7.
SHARP_TOLERANCE = 5e-6


def score(name: str, direction: Direction, dtype: torch.dtype) -> np.ndarray:
    images, captions, lengths, softmax_lambda = kernel_case(name)
    regions, words = (torch.from_numpy(array).to(dtype) for array in (images, captions))
    mask = torch.arange(captions.shape[1]) < torch.from_numpy(lengths)[:, None]
    result: np.ndarray = level_scores(regions, words, mask, softmax_lambda, direction).numpy()
    assert result.shape == (len(images), len(captions))
    assert np.isfinite(result).all()
    return result


def compare(scores: np.ndarray, expected: np.ndarray, name: str, tolerance: float) -> None:
    # The official t2i fails on a caption of one word; those scores are recorded as NaN.
    known = np.isfinite(expected)
    one_word = kernel_case(name)[2] == 1
    np.testing.assert_array_equal(known, np.broadcast_to(known.any(0), known.shape))
    assert not (~known.any(0) & ~one_word).any()
    np.testing.assert_allclose(scores[known], expected[known], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_inputs_are_the_recorded_ones(golden_kernel: Arrays, name: str) -> None:
    images, captions, _, _ = kernel_case(name)
    recorded = golden_kernel[f"{name}/input_checksum"].tolist()
    assert [checksum(images), checksum(captions)] == recorded


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_float64(golden_kernel: Arrays, name: str, direction: Direction) -> None:
    scores = score(name, direction, torch.float64)
    compare(scores, golden_kernel[f"{name}/{direction}_f64"], name, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_float32(golden_kernel: Arrays, name: str, direction: Direction) -> None:
    tolerance = SHARP_TOLERANCE if name == "lambda_100" else FLOAT32_TOLERANCE
    scores = score(name, direction, torch.float32)
    compare(scores, golden_kernel[f"{name}/{direction}_f64"], name, tolerance)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_the_tests_formula(golden_kernel: Arrays, name: str, direction: Direction) -> None:
    """What other tests compare with."""
    scores = formula.level_scores(*kernel_case(name), direction)
    compare(scores, golden_kernel[f"{name}/{direction}_f64"], name, FLOAT64_TOLERANCE)


@pytest.mark.parametrize("name", ["level3_R49_d32", "level2_R196_d768", "odd_R2_d1"])
def test_t2i_of_one_word_is_the_formula_s(name: str) -> None:
    images, captions, _, softmax_lambda = kernel_case(name)
    mask = torch.zeros(captions.shape[:2], dtype=torch.bool)
    mask[:, 0] = True
    regions, words = torch.from_numpy(images).double(), torch.from_numpy(captions).double()
    scores = level_scores(regions, words, mask, softmax_lambda, "t2i").numpy()
    expected = formula.level_scores(images, captions, [1] * len(captions), softmax_lambda, "t2i")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=FLOAT64_TOLERANCE)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_padding_never_takes_part(direction: Direction) -> None:
    images, captions, lengths, softmax_lambda = kernel_case("level3_R49_d32")
    mask = torch.arange(captions.shape[1]) < torch.from_numpy(lengths)[:, None]
    words = torch.from_numpy(captions)
    huge = torch.where(mask[:, :, None], words, torch.tensor(1e15))
    regions = torch.from_numpy(images)
    clean = level_scores(regions, words, mask, softmax_lambda, direction)
    torch.testing.assert_close(
        level_scores(regions, huge, mask, softmax_lambda, direction), clean, rtol=0, atol=0
    )


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_a_pair_scores_the_same_alone(direction: Direction) -> None:
    images, captions, lengths, softmax_lambda = kernel_case("related_R49")
    regions, words = torch.from_numpy(images).double(), torch.from_numpy(captions).double()
    mask = torch.arange(captions.shape[1]) < torch.from_numpy(lengths)[:, None]
    together = level_scores(regions, words, mask, softmax_lambda, direction)
    for image in range(len(images)):
        for caption, length in enumerate(lengths):
            alone = level_scores(
                regions[image : image + 1],
                words[caption : caption + 1, :length],
                mask[caption : caption + 1, :length],
                softmax_lambda,
                direction,
            )
            torch.testing.assert_close(
                alone[0, 0], together[image, caption], rtol=0, atol=FLOAT64_TOLERANCE
            )


def test_the_sum_takes_every_level_once(golden_kernel: Arrays) -> None:
    names = ["level1_R784_d32", "level2_R196_d32", "level3_R49_d32"]
    cases: list[Any] = [kernel_case(name) for name in names]
    lengths, softmax_lambda = torch.from_numpy(cases[0][2]), cases[0][3]
    mask = torch.arange(32) < lengths[:, None]
    total = alignment_scores(
        [torch.from_numpy(case[0]).double() for case in cases],
        [torch.from_numpy(case[1]).double() for case in cases],
        mask,
        softmax_lambda,
    )
    expected = sum(golden_kernel[f"{name}/i2t_f64"] for name in names)
    np.testing.assert_allclose(total.numpy(), expected, rtol=0, atol=FLOAT64_TOLERANCE)
