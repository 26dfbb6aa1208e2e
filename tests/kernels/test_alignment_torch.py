"""The torch operator of the alignment score, on the CPU; on CUDA devices with the marker ``gpu``.

Tolerance: 2e-6 is what the golden data's README gives for a float32 score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("hat_export.kernels.alignment_cpu")

import formula
from hat_export.errors import InputError
from hat_export.kernels.alignment_torch import alignment_i2t

TOLERANCE = 2e-6


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Regions, words and lengths; padding holds something huge."""
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randn(3, 20, 24, generator=generator)
    words = torch.randn(4, 9, 24, generator=generator)
    lengths = torch.tensor([9, 1, 4, 6])
    words[torch.arange(9) >= lengths[:, None]] = 1e12
    return regions, words, lengths


def by_the_formula(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    arrays = (one.double().numpy() for one in (regions, words))
    return torch.from_numpy(formula.level_scores(*arrays, lengths.numpy(), 9.0)).float()


def reduced_inputs() -> tuple[dict[str, Any], Tensor]:
    """Arguments of the reduced form, and the projected regions."""
    _, words, lengths = inputs(1)
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(3, 20, 10, generator=generator)
    projection = torch.randn(24, 10, generator=generator) / 3
    bias = torch.randn(24, generator=generator)
    regions = hidden.double() @ projection.double().T + bias.double()
    arguments = {
        "regions": hidden,
        "words": words,
        "lengths": lengths,
        "softmax_lambda": 9.0,
        "norms": regions.norm(dim=2).float(),
        "projection": projection,
        "bias": bias,
    }
    return arguments, regions


def test_it_equals_the_model_s_score() -> None:
    regions, words, lengths = inputs()
    scores = torch.ops.hat_export.alignment_i2t(regions, words, lengths, 9.0)
    assert scores.shape == (3, 4)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(
        scores, by_the_formula(regions, words, lengths), rtol=0, atol=TOLERANCE
    )


def test_the_reduced_form_equals_the_model_s_score() -> None:
    arguments, regions = reduced_inputs()
    expected = by_the_formula(regions, arguments["words"], arguments["lengths"])
    torch.testing.assert_close(alignment_i2t(**arguments), expected, rtol=0, atol=TOLERANCE)


def test_opcheck() -> None:
    torch.library.opcheck(alignment_i2t, (*inputs(), 9.0))
    torch.library.opcheck(alignment_i2t, (), reduced_inputs()[0])


def test_views_are_taken_as_they_are() -> None:
    regions, words, lengths = inputs()
    expected = alignment_i2t(regions, words, lengths, 9.0)
    turned = regions.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    torch.testing.assert_close(alignment_i2t(turned, words, lengths, 9.0), expected, rtol=0, atol=0)


def test_compiled_with_the_code_around_it() -> None:
    """One graph without a break, traced through the shapes that the operator declares."""

    def summed(regions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
        doubled = regions * 2
        scores: Tensor = alignment_i2t(doubled, words, lengths, 9.0)
        return scores + alignment_i2t(doubled.neg(), words, lengths, 9.0).square()

    regions, words, lengths = inputs()
    compiled = torch.compile(summed, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        torch.testing.assert_close(
            compiled(regions, words, lengths), summed(regions, words, lengths), rtol=0, atol=0
        )


def test_gradients_are_refused() -> None:
    regions, words, lengths = inputs()
    regions.requires_grad_()
    with pytest.raises(InputError, match=r"no gradient.*hat_export\.model\.alignment"):
        alignment_i2t(regions, words, lengths, 9.0)
    with torch.no_grad():
        assert not alignment_i2t(regions, words, lengths, 9.0).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": torch.ones(2, 3, 4, dtype=torch.float64)}, "regions: expected float32"),
        ({"words": torch.ones(2, 3, 4).half()}, "words: expected float32"),
        ({"lengths": torch.tensor([1, 4])}, "1 to 3"),
        ({"softmax_lambda": 0.0}, "lambda"),
        ({"regions": torch.ones(2, 3, 5)}, "5 wide"),
        ({"projection": torch.ones(4, 2), "bias": torch.ones(4)}, "norms: expected"),
        ({"projection": torch.ones(4, 2), "norms": torch.ones(2, 3)}, "both or neither"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "regions": torch.ones(2, 3, 4),
        "words": torch.ones(2, 3, 4),
        "lengths": torch.tensor([1, 3]),
        "softmax_lambda": 9.0,
    }
    alignment_i2t(**arguments)
    with pytest.raises(InputError, match=message):
        alignment_i2t(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_the_gpu(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch finds none")
    regions, words, lengths = inputs()
    words = words.masked_fill(torch.arange(9)[:, None] >= lengths[:, None, None], 0)
    regions, words = regions.to("cuda", dtype), words.to("cuda", dtype)
    scores = alignment_i2t(regions, words, lengths.cuda(), 9.0)
    # The inputs are rounded already, so that what is left is fp32 noise in every type.
    expected = by_the_formula(regions.cpu(), words.cpu(), lengths)
    np.testing.assert_allclose(scores.cpu().numpy(), expected.numpy(), rtol=0, atol=TOLERANCE)
    torch.library.opcheck(alignment_i2t, (regions, words, lengths.cuda(), 9.0))


@pytest.mark.gpu
def test_the_reduced_form_on_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch finds none")
    arguments, regions = reduced_inputs()
    expected = by_the_formula(regions, arguments["words"], arguments["lengths"])
    moved = {
        name: value.cuda() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    torch.testing.assert_close(alignment_i2t(**moved).cpu(), expected, rtol=0, atol=TOLERANCE)
