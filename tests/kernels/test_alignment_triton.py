"""The Triton alignment kernel: its numerics, interpreted on the CPU, and what it compiles to.

Tolerances: a fp32 score's rounding is 2e-6 (5e-6 where lambda is 100) by the golden data's README.
In fp16 the kernel may be off by twice what rounding the inputs to fp16 costs by itself, computed
in float64, plus that fp32 noise.

The interpreter multiplies bf16 wrongly and knows no TF32: bf16, and what three TF32 products are
worth, are for the tests marked ``gpu``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import formula
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.kernels import alignment_torch
from hat_export.kernels.alignment_triton_tables import SLOTS, TILES, Tile, slot_for, tile_for
from hat_reference_inputs import KERNEL_CASES, kernel_case
from places import GOLDEN, SUPPORT

TOLERANCE = 2e-6
TOLERANCE_LAMBDA_100 = 5e-6
#: Bytes that a thread may spill: the fp16 tiles were chosen to spill none.
SPILL_BOUND = 0
#: Bytes of shared memory that a program may take on the devices with the least, 99 KiB.
SHARED_BOUND = 99 * 1024

SENTINEL = 77.0
Scores = dict[str, np.ndarray]

#: The others differ from these by size alone and would take the interpreter minutes.
INTERPRETED_CASES = [name for name in KERNEL_CASES if "d768" not in name and name != "related_R784"]


def random_case(
    seed: int, images: int, regions: int, lengths: list[int], dim: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((images, regions, dim), np.float32)
    c = random.standard_normal((len(lengths), max(lengths), dim), np.float32)
    return x, c, np.array(lengths)


#: name -> arguments of random_case: one word, every slot, full slots and those one past them; an
#: odd number of captions in a slot; regions just below, at and above a tile of 64 and of 128;
#: widths that no step divides.
RANDOM_CASES: dict[str, tuple[int, int, int, list[int], int]] = {
    "slots": (1, 2, 49, [1, 2, 15, 16, 17, 31, 32, 33, 64], 24),
    "one_pair": (2, 1, 1, [1], 1),
    "regions_64": (3, 2, 64, [5, 16, 1], 40),
    "regions_65": (4, 2, 65, [5, 16, 1], 40),
    "regions_128": (5, 1, 128, [20, 3], 33),
    "regions_129": (6, 1, 129, [20, 3, 7], 33),
    "more_images_than_a_group": (7, 9, 5, [4, 3, 20], 17),
}


def case(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    if name in RANDOM_CASES:
        return *random_case(*RANDOM_CASES[name]), 9.0
    return kernel_case(name)


def run_kernel(
    regions: torch.Tensor,
    words: np.ndarray,
    lengths: np.ndarray,
    softmax_lambda: float,
    norms: torch.Tensor | None = None,
) -> np.ndarray:
    device = regions.device
    captions = alignment_torch.prepare_captions(
        torch.from_numpy(words).to(device), torch.from_numpy(lengths), regions.dtype
    )
    if norms is None:
        norms = alignment_torch.region_norms(regions)
    scores = alignment_torch.score(regions, norms, captions, softmax_lambda)
    return scores.cpu().numpy()


def reduced_case(dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Scores from an encoder stage's output and its projection, and the exact ones."""
    random = np.random.default_rng(8)
    hidden = random.standard_normal((2, 70, 24), np.float32)
    _, c, lengths = random_case(9, 1, 1, [14, 3, 9], 72)
    weight = random.standard_normal((72, 24), np.float32) / np.float32(5)
    bias = random.standard_normal(72, np.float32)
    projected = hidden.astype(np.float64) @ weight.T.astype(np.float64) + bias
    captions = alignment_torch.prepare_captions(
        torch.from_numpy(c), torch.from_numpy(lengths), dtype, torch.from_numpy(weight),
        torch.from_numpy(bias),
    )  # fmt: skip
    norms = torch.from_numpy(np.linalg.norm(projected, axis=2).astype(np.float32))
    scores = alignment_torch.score(torch.from_numpy(hidden).to(dtype), norms, captions, 9.0)
    return scores.numpy(), formula.level_scores(projected, c, lengths, 9.0)


def interpret(target: str) -> None:
    """Computes what the tests of the interpreted kernel compare; runs in a process of its own."""
    torch.set_num_threads(1)
    found: Scores = {}
    for name in (*INTERPRETED_CASES, *RANDOM_CASES):
        x, c, lengths, softmax_lambda = case(name)
        found[f"{name}/fp32"] = run_kernel(torch.from_numpy(x), c, lengths, softmax_lambda)
        if name != "tiny_x2e-5":
            half = torch.from_numpy(x).half()
            found[f"{name}/fp16"] = run_kernel(half, c, lengths, softmax_lambda)
    found["reduced"], found["reduced_exact"] = reduced_case(torch.float32)

    x, c, lengths = random_case(11, 2, 70, [3, 20, 9], 24)
    clean = run_kernel(torch.from_numpy(x), c, lengths, 9.0)
    for row, length in zip(c, lengths, strict=True):
        row[length:] = np.nan
    found["clean"], found["padding"] = clean, run_kernel(torch.from_numpy(x), c, lengths, 9.0)
    c[np.isnan(c)] = 0
    found["part"] = run_kernel(torch.from_numpy(x[1:]), c[1:], lengths[1:], 9.0)

    # One caption a program, and all regions in one tile or in two: the other ways through the
    # kernel for the same numbers.
    listed = alignment_torch.tile_for
    for tile in (Tile(1, 128, 16, 4, 1), Tile(1, 32, 16, 4, 1), Tile(2, 128, 16, 4, 1)):
        alignment_torch.tile_for = lambda *_, tile=tile: tile
        found[f"tile_{tile.captions}_{tile.regions}"] = run_kernel(
            torch.from_numpy(x), c, lengths, 9.0
        )
    alignment_torch.tile_for = listed

    captions = alignment_torch.prepare_captions(
        torch.from_numpy(c), torch.from_numpy(lengths), torch.float32
    )
    frame = torch.full((4, 3), SENTINEL)
    norms = alignment_torch.region_norms(torch.from_numpy(x))
    total = frame[1:3]
    assert alignment_torch.score(torch.from_numpy(x), norms, captions, 9.0, total=total) is total
    found["frame"] = frame.numpy()

    found["cancel"], found["cancel_exact"] = cancelling()
    found.update({f"error_{name}": np.array(text) for name, text in refusals().items()})
    np.savez(target, **found)


def cancelling() -> tuple[np.ndarray, np.ndarray]:
    """Two nearly opposite words: |v| is a hundredth of |c|, and e^T G e would lose its digits."""
    random = np.random.default_rng(11)
    x = random.standard_normal((2, 40, 16), np.float32)
    word = random.standard_normal((3, 1, 16)).astype(np.float32)
    small = random.standard_normal((3, 2, 16)).astype(np.float32)
    c = np.concatenate([word, -word], 1) + np.float32(0.02) * small
    lengths = np.full(3, 2)
    return run_kernel(torch.from_numpy(x), c, lengths, 0.01), formula.level_scores(
        x, c, lengths, 0.01
    )


def refusals() -> dict[str, str]:
    """Messages of calls that must fail once the device is there."""
    x, c, lengths = (torch.from_numpy(array) for array in random_case(12, 2, 20, [3, 5], 8))
    captions = alignment_torch.prepare_captions(c, lengths, torch.float32)
    norms = alignment_torch.region_norms(x)
    broken = x.clone()
    broken[1, 3, 2] = torch.nan
    calls: dict[str, Callable[[], object]] = {
        "direction": lambda: alignment_torch.score(x, norms, captions, 9.0, "t2i"),
        "dtype": lambda: alignment_torch.score(x.half(), norms, captions, 9.0),
        "width": lambda: alignment_torch.score(x[:, :, :4], norms, captions, 9.0),
        "double": lambda: alignment_torch.score(x.double(), norms, captions, 9.0),
        "norms": lambda: alignment_torch.score(x, norms[:, :4], captions, 9.0),
        "lambda": lambda: alignment_torch.score(x, norms, captions, float("nan")),
        "total": lambda: alignment_torch.score(x, norms, captions, 9.0, total=torch.zeros(2, 3)),
        "nan": lambda: alignment_torch.score(broken, norms, captions, 9.0),
        # Their squares leave fp32: attention would quietly turn uniform.
        "overflow": lambda: alignment_torch.score(x * 1e20, norms, captions, 9.0),
    }
    messages = {}
    for name, call in calls.items():
        try:
            call()
        except (InputError, BackendUnavailableError) as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> Scores:
    """What the interpreted kernel computes; Triton has to know before its first import."""
    target = tmp_path_factory.mktemp("interpreted") / "scores.npz"
    code = f"import test_alignment_triton as t; t.interpret({str(target)!r})"
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(GOLDEN), str(SUPPORT)]),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    with np.load(target) as found:
        return dict(found)


def tolerance(name: str) -> float:
    return TOLERANCE_LAMBDA_100 if name == "lambda_100" else TOLERANCE


@pytest.mark.parametrize("name", [*INTERPRETED_CASES, *RANDOM_CASES])
def test_fp32(interpreted: Scores, name: str) -> None:
    expected = formula.level_scores(*case(name))
    np.testing.assert_allclose(interpreted[f"{name}/fp32"], expected, rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", INTERPRETED_CASES)
def test_fp32_golden(interpreted: Scores, golden_kernel: Scores, name: str) -> None:
    expected = golden_kernel[f"{name}/i2t_f64"]
    np.testing.assert_allclose(interpreted[f"{name}/fp32"], expected, rtol=0, atol=tolerance(name))


def assert_as_good_as_plain(
    scores: np.ndarray, name: str, dtype: torch.dtype, noise: float
) -> None:
    """At most twice the error that rounding the inputs brings by itself."""
    x, c, lengths, softmax_lambda = case(name)
    expected = formula.level_scores(x, c, lengths, softmax_lambda)
    rounded = [torch.from_numpy(array).to(dtype).float().numpy() for array in (x, c)]
    plain = np.abs(formula.level_scores(*rounded, lengths, softmax_lambda) - expected).max()
    assert np.abs(scores - expected).max() <= 2 * plain + noise


@pytest.mark.parametrize(
    "name", [name for name in (*INTERPRETED_CASES, *RANDOM_CASES) if name != "tiny_x2e-5"]
)
def test_fp16(interpreted: Scores, name: str) -> None:
    """The case left out is of numbers that fp16 doesn't have."""
    assert_as_good_as_plain(interpreted[f"{name}/fp16"], name, torch.float16, tolerance(name))


def test_reduced_form(interpreted: Scores) -> None:
    np.testing.assert_allclose(
        interpreted["reduced"], interpreted["reduced_exact"], rtol=0, atol=TOLERANCE
    )


def test_words_that_nearly_cancel(interpreted: Scores) -> None:
    # The dot products' own rounding grows by the factor of 100 by which |v| is smaller than |c|.
    np.testing.assert_allclose(
        interpreted["cancel"], interpreted["cancel_exact"], rtol=0, atol=1e-5
    )


def test_padding_is_never_read(interpreted: Scores) -> None:
    np.testing.assert_array_equal(interpreted["padding"], interpreted["clean"])


def test_company_changes_no_bit(interpreted: Scores) -> None:
    np.testing.assert_array_equal(interpreted["part"], interpreted["clean"][1:, 1:])


@pytest.mark.parametrize("tile", ["1_128", "1_32", "2_128"])
def test_every_way_through_the_kernel(interpreted: Scores, tile: str) -> None:
    np.testing.assert_allclose(
        interpreted[f"tile_{tile}"], interpreted["clean"], rtol=0, atol=TOLERANCE
    )


def test_only_the_block_of_scores_is_written_and_added_to(interpreted: Scores) -> None:
    frame = interpreted["frame"]
    assert (frame[[0, 3]] == SENTINEL).all()
    np.testing.assert_array_equal(frame[1:3], np.float32(SENTINEL) + interpreted["clean"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("direction", "BackendUnavailableError: .*i2t only, not 't2i'.*alignment_cpu"),
        ("dtype", "InputError: regions are torch.float16 8 wide"),
        ("width", "InputError: regions are torch.float32 4 wide"),
        ("double", "InputError: regions: expected float16 or bfloat16 or float32"),
        ("norms", r"InputError: norms: expected \[2, 20\], got \[2, 4\]"),
        ("lambda", "InputError: softmax lambda"),
        ("total", r"InputError: total: expected a contiguous float32 tensor \[2, 2\]"),
        ("nan", "InputError: score of image 1 with caption 0 isn't finite"),
        ("overflow", "InputError: score of image 0 with caption 0 isn't finite"),
    ],
)
def test_refusals(interpreted: Scores, name: str, message: str) -> None:
    assert re.match(message, str(interpreted[f"error_{name}"]))


# ---------------------------------------------------------------------- the captions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "float16, bfloat16 or float32"),
        ({"words": torch.zeros(2, 3)}, r"expected \[captions, words, d\]"),
        ({"words": torch.zeros(2, 0, 4)}, "none of them 0"),
        ({"lengths": torch.tensor([1, 4])}, "1 to 3"),
        ({"lengths": torch.tensor([0, 2])}, "1 to 3"),
        ({"lengths": torch.tensor([1, 2, 3])}, "one per caption"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "integers"),
        ({"projection": torch.ones(4, 2)}, "both or neither"),
        ({"projection": torch.ones(5, 2), "bias": torch.ones(4)}, r"expected \[4, width\]"),
        ({"words": torch.full((2, 3, 4), torch.inf)}, "caption 0 aren't finite"),
        ({"words": torch.full((2, 3, 4), 1e6), "dtype": torch.float16}, "leave the range"),
        ({"words": torch.ones(1, 65, 4), "lengths": torch.tensor([65])}, "at most 64"),
    ],
)
def test_bad_captions(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "words": torch.ones(2, 3, 4),
        "lengths": torch.tensor([1, 3]),
        "dtype": torch.float32,
    }
    alignment_torch.prepare_captions(**arguments)
    with pytest.raises(InputError, match=message):
        alignment_torch.prepare_captions(**(arguments | change))


def test_the_factor_makes_the_gram_matrix() -> None:
    """More words than dimensions, repeated and zero words too: all have a factor."""
    _, c, lengths = random_case(13, 1, 1, [9, 4, 1], 5)
    c[1, 1], c[1, 2] = c[1, 0], 0
    captions = alignment_torch.prepare_captions(
        torch.from_numpy(c), torch.from_numpy(lengths), torch.float32
    )
    assert captions.factor.shape == (3, 9, 9)
    for f, words, length in zip(captions.factor.double(), c, lengths, strict=True):
        own = words[:length].astype(np.float64)
        gram = np.zeros((9, 9))
        gram[:length, :length] = own @ own.T
        # The rounding of F to fp32.
        np.testing.assert_allclose((f.T @ f).numpy(), gram, rtol=0, atol=1e-6 * gram.max())
    assert captions.caption_start.tolist() == [0, 9, 13, 14]


def test_without_a_device_the_error_names_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    x, c, lengths = (torch.from_numpy(array) for array in random_case(14, 1, 4, [3], 8))
    captions = alignment_torch.prepare_captions(c, lengths, torch.float32)
    with pytest.raises(BackendUnavailableError, match=r"CUDA device.*alignment_cpu"):
        alignment_torch.score(x, alignment_torch.region_norms(x), captions, 9.0)


# ------------------------------------------------------------------------- the tiles


def test_slots() -> None:
    assert [slot_for(length) for length in (1, 16, 17, 32, 33, 64)] == [16, 16, 32, 32, 64, 64]


def test_every_listed_tile_is_used_and_wellformed() -> None:
    for (capability, width, regions, slot), tile in TILES.items():
        assert tile_for(capability, "fp16", width, regions, slot) is tile
        assert slot in SLOTS
        assert tile.captions in (1, 2)
        for size in (tile.regions, tile.width, tile.warps):
            assert size & (size - 1) == 0
        assert tile.width >= 16


# ------------------------------------------------------------------------ the targets


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_it_compiles_within_the_resources_of_a_target(capability: int) -> None:
    """Level 1 in fp16; ``python -m hat_export.kernels.alignment_triton`` shows all levels."""
    pytest.importorskip("triton")
    from hat_export.kernels import alignment_triton

    assert capability in alignment_triton.CAPABILITIES
    found = alignment_triton.compile_for(capability, "fp16", 256, 784, 32)
    print(f"sm_{capability}: {found.registers} registers, {found.spilled} B spilled, "
          f"{found.shared} B shared")  # fmt: skip
    assert found.spilled <= SPILL_BOUND
    assert found.shared <= SHARED_BOUND
    assert 0 < found.registers <= 255
    assert f".target sm_{capability}" in found.ptx
    # Both the words' and the factor's products run on tensor cores.
    assert ("wgmma" in found.ptx) if capability == 90 else ("mma.sync" in found.ptx)
    assert "tf32" in found.ptx
    assert found.cubin.startswith(b"\x7fELF")


# ---------------------------------------------------------------------------- the GPU


def needs_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch finds none")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*KERNEL_CASES, *RANDOM_CASES])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_the_gpu(name: str, dtype: torch.dtype) -> None:
    needs_gpu()
    if name == "tiny_x2e-5" and dtype is torch.float16:
        pytest.skip("fp16 doesn't have these numbers")
    x, c, lengths, softmax_lambda = case(name)
    regions = torch.from_numpy(x).to("cuda", dtype)
    scores = run_kernel(regions, c, lengths, softmax_lambda)
    if dtype is torch.float32:
        expected = formula.level_scores(x, c, lengths, softmax_lambda)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=tolerance(name))
    else:
        assert_as_good_as_plain(scores, name, dtype, tolerance(name))


@pytest.mark.gpu
def test_gpu_scores_are_the_same_bits_every_time() -> None:
    needs_gpu()
    x, c, lengths, softmax_lambda = case("level2_R196_d32")
    regions = torch.from_numpy(x).to("cuda", torch.float16)
    first = run_kernel(regions, c, lengths, softmax_lambda)
    np.testing.assert_array_equal(run_kernel(regions, c, lengths, softmax_lambda), first)
    part = run_kernel(regions[1:2], c[2:5], lengths[2:5], softmax_lambda)
    np.testing.assert_array_equal(part, first[1:2, 2:5])


@pytest.mark.gpu
def test_every_listed_tile_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each distinct tile of the table, also those of other devices, gives the same scores."""
    needs_gpu()
    x, c, lengths, softmax_lambda = case("level2_R196_d32")
    regions = torch.from_numpy(x).to("cuda", torch.float16)
    expected = run_kernel(regions, c, lengths, softmax_lambda)
    for tile in {Tile(2, 128, 32, 8, 3), Tile(2, 64, 64, 4, 3), *TILES.values()}:
        monkeypatch.setattr(alignment_torch, "tile_for", lambda *_, tile=tile: tile)
        scores = run_kernel(regions, c, lengths, softmax_lambda)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE, err_msg=str(tile))
