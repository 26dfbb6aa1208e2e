"""The CPU alignment kernel against the golden scores and a float64 reference.

Tolerances: scores are means of cosines; one cosine's float32 rounding is a few 1e-7, the golden
data's README gives 2e-6 for a float32 score, and 5e-6 where lambda is 100, since an attention
logit of 100 has an absolute rounding error of 6e-6.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import formula
import hat_reference_inputs as reference_inputs
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.kernels import alignment_cpu
from places import GOLDEN

TOLERANCE = 2e-6
TOLERANCE_LAMBDA_100 = 5e-6
PATHS = alignment_cpu.available_paths()
DIRECTIONS = ("i2t", "t2i")


def random_case(
    seed: int, images: int, regions: int, captions: int, words: int, dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((images, regions, dim), np.float32)
    c = random.standard_normal((captions, words, dim), np.float32)
    lengths = random.integers(1, words + 1, captions)
    lengths[0] = words
    return x, c, lengths


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", list(reference_inputs.KERNEL_CASES))
def test_golden(name: str, path: Any, direction: Any) -> None:
    regions, words, lengths, smooth = reference_inputs.kernel_case(name)
    with np.load(GOLDEN / "golden_kernel.npz") as golden:
        expected = golden[f"{name}/{direction}_f64"]
    scores = alignment_cpu.level_scores(regions, words, lengths, smooth, direction, 1, path)
    if direction == "t2i":
        # The official code can't score one word; the formula can.
        missing = np.isnan(expected)
        assert (missing == (lengths == 1)).all()
        own = formula.level_scores(regions, words, lengths, smooth, direction)
        expected = np.where(missing, own, expected)
    tolerance = TOLERANCE_LAMBDA_100 if name == "lambda_100" else TOLERANCE
    np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_sizes_around_vector_widths(path: Any, direction: Any) -> None:
    sizes = [(regions, 1 + 7 * regions % 40, 1 + 5 * regions % 33) for regions in range(1, 71)]
    sizes += [(17, width, 1 + 3 * width % 33) for width in range(1, 41)]
    sizes += [(33, 1 + 11 * words % 40, words) for words in range(1, 34)]
    for regions, width, words in sizes:
        x, c, lengths = random_case(regions * 10000 + width * 100 + words, 3, regions, 4, words,
                                    width)  # fmt: skip
        scores = alignment_cpu.level_scores(x, c, lengths, 9.0, direction, 1, path)
        expected = formula.level_scores(x, c, lengths, 9.0, direction)
        np.testing.assert_allclose(
            scores, expected, rtol=0, atol=TOLERANCE, err_msg=f"{regions=} {width=} {words=}"
        )


@pytest.mark.parametrize("smooth", [0.5, 20.0, 20.5, 60.0])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_lambda_on_both_sides_of_the_plain_range(path: Any, direction: Any, smooth: float) -> None:
    x, c, lengths = random_case(5, 2, 50, 3, 12, 24)
    scores = alignment_cpu.level_scores(x, c, lengths, smooth, direction, 1, path)
    expected = formula.level_scores(x, c, lengths, smooth, direction)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE_LAMBDA_100)


@pytest.mark.parametrize("path", PATHS)
def test_words_that_nearly_cancel(path: Any) -> None:
    """The Gram form of |v| squares the rounding error where words cancel: it must not show."""
    random = np.random.default_rng(11)
    x = random.standard_normal((2, 40, 16), np.float32)
    word = random.standard_normal((3, 1, 16)).astype(np.float32)
    small = random.standard_normal((3, 2, 16)).astype(np.float32)
    c = np.concatenate([word, -word], 1) + np.float32(0.02) * small
    lengths = np.full(3, 2)
    # With lambda this small both words weigh about the same: |v| is a hundredth of |c|, and the
    # dot products' own rounding grows by that factor.
    scores = alignment_cpu.level_scores(x, c, lengths, 0.01, "i2t", 1, path)
    expected = formula.level_scores(x, c, lengths, 0.01, "i2t")
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("regions_by", "words_by"), [(1e9, 1e9), (1e15, 1.0), (1.0, 1e18)])
def test_squares_beyond_float32(
    path: Any, direction: Any, regions_by: float, words_by: float
) -> None:
    x, c, lengths = random_case(6, 2, 20, 3, 6, 24)
    x *= np.float32(regions_by)
    c *= np.float32(words_by)
    scores = alignment_cpu.level_scores(x, c, lengths, 9.0, direction, 1, path)
    expected = formula.level_scores(x, c, lengths, 9.0, direction)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_threads_and_company_change_no_bit(path: Any, direction: Any) -> None:
    x, c, lengths = random_case(7, 37, 49, 23, 17, 40)
    one = alignment_cpu.level_scores(x, c, lengths, 9.0, direction, 1, path)
    three = alignment_cpu.level_scores(x, c, lengths, 9.0, direction, 3, path)
    assert one.tobytes() == three.tobytes()
    part = alignment_cpu.level_scores(x[5:8], c[9:20], lengths[9:20], 9.0, direction, 1, path)
    assert part.tobytes() == np.ascontiguousarray(one[5:8, 9:20]).tobytes()


@pytest.mark.parametrize("path", PATHS)
def test_reduced_form_equals_full_form(path: Any) -> None:
    random = np.random.default_rng(8)
    hidden = random.standard_normal((3, 196, 24), np.float32)
    _, c, lengths = random_case(9, 1, 1, 6, 14, 72)
    weight = random.standard_normal((72, 24), np.float32) / np.float32(5)
    bias = random.standard_normal(72, np.float32)
    exact = hidden.astype(np.float64) @ weight.T.astype(np.float64) + bias
    norms = np.linalg.norm(exact, axis=2).astype(np.float32)
    captions = alignment_cpu.prepare_captions(c, lengths, weight, bias)
    assert captions.words.shape == (lengths.sum(), 24)
    scores = alignment_cpu.score(hidden, norms, captions, 9.0, "i2t", 2, path)
    full = alignment_cpu.level_scores(exact.astype(np.float32), c, lengths, 9.0, "i2t", 2, path)
    np.testing.assert_allclose(scores, full, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        scores, formula.level_scores(exact, c, lengths, 9.0, "i2t"), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("path", PATHS)
def test_padding_and_neighbours_are_never_read_into_a_score(path: Any) -> None:
    x, c, lengths = random_case(10, 2, 21, 4, 9, 19)
    clean = alignment_cpu.level_scores(x, c, lengths, 9.0, "i2t", 1, path)
    for row, length in zip(c, lengths, strict=True):
        row[length:] = np.nan
    assert np.array_equal(alignment_cpu.level_scores(x, c, lengths, 9.0, "i2t", 1, path), clean)


def test_total_is_added_to() -> None:
    x, c, lengths = random_case(12, 3, 10, 4, 5, 8)
    captions, norms = alignment_cpu.prepare_captions(c, lengths), alignment_cpu.region_norms(x)
    scores = alignment_cpu.score(x, norms, captions, 9.0)
    total = np.full_like(scores, 3.0)
    assert alignment_cpu.score(x, norms, captions, 9.0, total=total) is total
    np.testing.assert_array_equal(total, np.float32(3.0) + scores)


def test_region_norms_and_gram() -> None:
    x, c, lengths = random_case(13, 3, 10, 4, 5, 77)
    np.testing.assert_allclose(
        alignment_cpu.region_norms(x), np.linalg.norm(x.astype(np.float64), axis=2), rtol=1e-7
    )
    captions = alignment_cpu.prepare_captions(c, lengths)
    grams = [w[:n].astype(np.float64) @ w[:n].T.astype(np.float64)
             for w, n in zip(c, lengths, strict=True)]  # fmt: skip
    expected = np.concatenate([gram.ravel() for gram in grams])
    np.testing.assert_allclose(captions.gram, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(captions.caption_start, np.concatenate([[0], lengths.cumsum()]))


# ------------------------------------------------------------------------- the C interface


@pytest.fixture
def request_arrays() -> dict[str, Any]:
    """A sound request with scores in the middle of a larger array full of a sentinel."""
    x, c, lengths = random_case(14, 3, 10, 4, 5, 8)
    captions = alignment_cpu.prepare_captions(c, lengths)
    norms = alignment_cpu.region_norms(x)
    scores = np.full((5, 9), 77.0, np.float32)
    request = alignment_cpu._Request(
        regions=x.ctypes.data, region_norms=norms.ctypes.data, words=captions.words.ctypes.data,
        word_offset=None, gram=captions.gram.ctypes.data,
        caption_start=captions.caption_start.ctypes.data, scores=scores[1:].ctypes.data,
        images=3, regions_per_image=10, width=8, captions=4, scores_stride=9, softmax_lambda=9.0,
        direction=0, threads=2, path=0, add=0,
    )  # fmt: skip
    expected = formula.level_scores(x, c, lengths, 9.0, "i2t")
    return {"request": request, "scores": scores, "expected": expected,
           "keep": (x, captions, norms)}  # fmt: skip


def run(request: Any) -> int:
    return int(alignment_cpu._library().hat_alignment_score(ctypes.byref(request)))


def test_only_the_block_of_scores_is_written(request_arrays: dict[str, Any]) -> None:
    scores = request_arrays["scores"]
    assert run(request_arrays["request"]) == 0
    block = scores[1:4, :4]
    np.testing.assert_allclose(block, request_arrays["expected"], rtol=0, atol=TOLERANCE)
    outside = np.ones(scores.shape, bool)
    outside[1:4, :4] = False
    assert (scores[outside] == 77.0).all()


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("regions", None, 1),
        ("region_norms", None, 1),
        ("words", None, 1),
        ("gram", None, 1),
        ("caption_start", None, 1),
        ("scores", None, 1),
        ("images", -1, 2),
        ("regions_per_image", 0, 2),
        ("regions_per_image", 2**62, 2),
        ("width", 0, 2),
        ("width", 2**40, 2),
        ("captions", -1, 2),
        ("scores_stride", 3, 2),
        ("images", 2**62, 2),
        ("softmax_lambda", 0.0, 4),
        ("softmax_lambda", float("nan"), 4),
        ("softmax_lambda", float("inf"), 4),
        ("direction", 2, 5),
        ("threads", 0, 6),
        ("threads", 1025, 6),
        ("path", 5, 7),
        ("path", -1, 7),
    ],
)
def test_bad_request(request_arrays: dict[str, Any], field: str, value: Any, status: int) -> None:
    request = request_arrays["request"]
    setattr(request, field, value)
    assert run(request) == status
    assert (request_arrays["scores"] == 77.0).all()
    message = alignment_cpu._library().hat_alignment_message(status).decode()
    assert message
    assert message != "unknown status"


@pytest.mark.parametrize("start", [[1, 2, 3, 4, 5], [0, 2, 2, 3, 4], [0, 3, 2, 4, 5]])
def test_bad_caption_start(request_arrays: dict[str, Any], start: list[int]) -> None:
    array = np.array(start, np.int64)
    request_arrays["request"].caption_start = array.ctypes.data
    assert run(request_arrays["request"]) == 3
    assert (request_arrays["scores"] == 77.0).all()


def test_offset_in_t2i_and_null_request(request_arrays: dict[str, Any]) -> None:
    request = request_arrays["request"]
    request.word_offset, request.direction = request.words, 1
    assert run(request) == 10
    assert alignment_cpu._library().hat_alignment_score(None) == 1


def test_nothing_to_do_is_no_error(request_arrays: dict[str, Any]) -> None:
    request = request_arrays["request"]
    request.images = 0
    assert run(request) == 0
    assert (request_arrays["scores"] == 77.0).all()


# ------------------------------------------------------------------------------ the binding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": np.zeros((2, 3, 4))}, "float32"),
        ({"regions": np.zeros((3, 4), np.float32)}, "expected \\[images, regions, dim\\]"),
        ({"regions": np.zeros((2, 0, 4), np.float32)}, "none of them 0"),
        ({"regions": np.zeros((2, 3, 5), np.float32)}, "5 wide"),
        ({"words": np.zeros((2, 3), np.float32)}, "words"),
        ({"lengths": np.array([1, 4])}, "1 to 3"),
        ({"lengths": np.array([0, 2])}, "1 to 3"),
        ({"lengths": np.array([1, 2, 3])}, "one per caption"),
        ({"lengths": np.array([1.0, 2.0])}, "integers"),
        ({"softmax_lambda": 0.0}, "lambda"),
        ({"softmax_lambda": float("nan")}, "lambda"),
        ({"direction": "both"}, "i2t or t2i"),
        ({"threads": 0}, "threads"),
        ({"threads": True}, "threads"),
        ({"path": "sse"}, "expected one of"),
    ],
)
def test_bad_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "regions": np.ones((2, 3, 4), np.float32),
        "words": np.ones((2, 3, 4), np.float32),
        "lengths": np.array([1, 3]),
        "softmax_lambda": 9.0,
    }
    alignment_cpu.level_scores(**arguments)
    with pytest.raises(InputError, match=message):
        alignment_cpu.level_scores(**(arguments | change))


def test_bad_projection_and_total() -> None:
    x, c, lengths = random_case(15, 2, 5, 3, 4, 8)
    weight, bias = np.ones((8, 3), np.float32), np.ones(8, np.float32)
    with pytest.raises(InputError, match="both or neither"):
        alignment_cpu.prepare_captions(c, lengths, weight)
    with pytest.raises(InputError, match=r"\[8, width\]"):
        alignment_cpu.prepare_captions(c, lengths, weight[:7], bias)
    reduced = alignment_cpu.prepare_captions(c, lengths, weight, bias)
    norms = alignment_cpu.region_norms(x)
    with pytest.raises(InputError, match="full-width"):
        alignment_cpu.score(np.ascontiguousarray(x[:, :, :3]), norms, reduced, 9.0, "t2i")
    full = alignment_cpu.prepare_captions(c, lengths)
    with pytest.raises(InputError, match="norms"):
        alignment_cpu.score(x, norms[:, 1:], full, 9.0)
    for total in (np.zeros((2, 3)), np.zeros((3, 2), np.float32), np.zeros((2, 6), np.float32)):
        with pytest.raises(InputError, match="total"):
            alignment_cpu.score(x, norms, full, 9.0, total=total)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("side", ["regions", "words"])
def test_features_that_are_not_finite(path: Any, direction: Any, value: float, side: str) -> None:
    x, c, _ = random_case(16, 2, 20, 3, 6, 24)
    lengths = np.full(3, 6)
    if value == 1e38:
        x[1], c[2] = value, value  # their inner products overflow
    else:
        (x if side == "regions" else c)[1, 2, 3] = value
    with pytest.raises(InputError, match="isn't finite"):
        alignment_cpu.level_scores(x, c, lengths, 9.0, direction, 1, path)


def test_path_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in PATHS:
        monkeypatch.setenv("HAT_EXPORT_KERNEL_PATH", path)
        assert alignment_cpu.resolve_path() == path
    monkeypatch.setenv("HAT_EXPORT_KERNEL_PATH", "altivec")
    with pytest.raises(BackendUnavailableError, match="HAT_EXPORT_KERNEL_PATH"):
        alignment_cpu.resolve_path()
    monkeypatch.delenv("HAT_EXPORT_KERNEL_PATH")
    assert alignment_cpu.resolve_path() in PATHS


def test_path_that_this_cpu_has_not() -> None:
    missing = [path for path in ("avx2", "avx512", "neon") if path not in PATHS]
    assert missing  # no CPU runs both x86 and Arm code
    for path in missing:
        with pytest.raises(BackendUnavailableError, match="this CPU"):
            alignment_cpu.resolve_path(path)


def test_missing_or_foreign_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HAT_EXPORT_KERNEL_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(BackendUnavailableError, match=r"none\.so.*compiler.*reinstall"):
        alignment_cpu.available_paths()
    monkeypatch.setenv("HAT_EXPORT_KERNEL_LIBRARY", "libc.so.6")
    with pytest.raises(BackendUnavailableError, match="isn't the alignment kernel"):
        alignment_cpu.available_paths()


def test_library_exports_only_its_interface() -> None:
    file = str(alignment_cpu.library_file())
    try:
        listing = subprocess.run(
            ["nm", "-D", "--defined-only", file], capture_output=True, text=True, check=True
        ).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("nm isn't there to list the library's symbols")
    names = {line.split()[-1].lstrip("_") for line in listing.splitlines() if line.strip()}
    assert {name for name in names if not name.startswith("hat_alignment_")} == set()
