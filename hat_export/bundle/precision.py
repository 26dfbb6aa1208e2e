"""Number formats that a bundle's encoders may compute in, and how far they may move a result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """One choice of ``--precision``.

    Attributes:
        name: As it stands in the manifest and on the command line.
        largest: Largest finite number of the format.
        feature_tolerance: Largest difference of a feature from PyTorch's float32. Features have a
            standard deviation of about 1.
        score_tolerance: Largest difference of a score from the encoders' own features. A score is
            a sum of three mean cosines; it can amplify a difference of features where dot products
            are near zero.
    """

    name: str
    largest: float
    feature_tolerance: float
    score_tolerance: float


PRECISIONS = {
    precision.name: precision
    for precision in (
        # float32 summed in another order differs by 1e-5 at most; a wrong constant by far more.
        Precision("fp32", 3.4e38, 2e-4, 2e-4),
        # A rounding moves a value by 2^-11 of it at most. Some 240 in a row (24 blocks of 10) walk
        # about 16 roundings far: 0.03 for a feature of 4 standard deviations. Recall is what
        # decides (`hat-bench parity`); this is the net for overflow and wrong constants.
        Precision("fp16", 65504.0, 5e-2, 5e-2),
        # Eight times coarser than fp16, with the range of fp32.
        Precision("bf16", 3.3895e38, 4e-1, 4e-1),
        # Products in int8 or fp8, everything between them in fp16.
        Precision("int8", 65504.0, 1.0, 5e-1),
        Precision("fp8", 65504.0, 1.0, 5e-1),
    )
}
