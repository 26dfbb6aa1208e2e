"""Every pixel of the official test transform, on seven pictures of awkward sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hat_export.data.preprocess import ImagePreprocessor
from hat_export.errors import InputError
from hat_export.spec import OFFICIAL
from hat_reference_inputs import (
    PREPROCESS_CASES,
    golden_images,
    golden_photo,
    normalise,
    preprocess_photo,
)
from hat_reference_weights import checksum

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def preprocessor() -> ImagePreprocessor:
    return ImagePreprocessor.from_spec(OFFICIAL)


@pytest.mark.parametrize("name", PREPROCESS_CASES)
def test_crop(preprocessor: ImagePreprocessor, golden_preprocess: Arrays, name: str) -> None:
    photo = preprocess_photo(name)
    assert checksum(photo) == golden_preprocess[f"{name}/source_checksum"]
    crop = preprocessor.crop(Image.fromarray(photo))
    # The coarser ones first: they say where a difference is.
    np.testing.assert_array_equal(crop[::8, ::8], golden_preprocess[f"{name}/crop_every_8th"])
    rows, columns = crop.sum(1, dtype=np.int64), crop.sum(0, dtype=np.int64)
    np.testing.assert_array_equal(rows, golden_preprocess[f"{name}/crop_row_sums"])
    np.testing.assert_array_equal(columns, golden_preprocess[f"{name}/crop_col_sums"])
    assert checksum(crop) == golden_preprocess[f"{name}/crop_checksum"]


@pytest.mark.parametrize("name", PREPROCESS_CASES)
def test_pixels_are_bit_identical(preprocessor: ImagePreprocessor, name: str) -> None:
    image = Image.fromarray(preprocess_photo(name))
    pixels = preprocessor([image])
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[0], normalise(preprocessor.crop(image)))


def test_golden_images(golden_preprocess: Arrays) -> None:
    photos = [golden_photo(index) for index in range(6)]
    recorded = golden_preprocess["golden_photo_checksums"].tolist()
    assert [checksum(photo) for photo in photos] == recorded
    # The pictures are 224 pixels wide already: resizing to 224 leaves them alone.
    kept = ImagePreprocessor(224, 224, OFFICIAL.mean, OFFICIAL.std)
    pixels = kept([Image.fromarray(photo) for photo in photos])
    np.testing.assert_array_equal(pixels, golden_images())
    assert checksum(pixels) == golden_preprocess["golden_images_checksum"]


@pytest.mark.parametrize(("width", "left"), [(341, 58), (383, 80)])
def test_crop_offset_rounds_half_to_even(
    preprocessor: ImagePreprocessor, width: int, left: int
) -> None:
    # The red channel counts columns (two values of it can't be confused: 224 < 256).
    columns = np.broadcast_to(np.arange(width) % 256, (256, width)).astype(np.uint8)
    image = Image.fromarray(np.stack([columns] * 3, 2))
    assert preprocessor.crop(image)[0, 0, 0] == left


def test_a_path_is_the_picture_in_it(preprocessor: ImagePreprocessor, tmp_path: Path) -> None:
    image = Image.fromarray(preprocess_photo("small_200x150"))
    path = tmp_path / "a.png"
    image.save(path)
    np.testing.assert_array_equal(preprocessor([path]), preprocessor([image]))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_other_modes_are_converted(preprocessor: ImagePreprocessor, mode: str) -> None:
    image = Image.fromarray(preprocess_photo("small_200x150")).convert(mode)
    np.testing.assert_array_equal(preprocessor([image]), preprocessor([image.convert("RGB")]))


def test_one_pixel(preprocessor: ImagePreprocessor) -> None:
    crop = preprocessor.crop(Image.new("RGB", (1, 1), (7, 8, 9)))
    assert crop.shape == (224, 224, 3)
    assert (crop == (7, 8, 9)).all()


def test_missing_file(preprocessor: ImagePreprocessor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png: no such image"):
        preprocessor([tmp_path / "a.png"])


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n truncated"])
def test_broken_file(preprocessor: ImagePreprocessor, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable image"):
        preprocessor([path])


def test_truncated_picture(preprocessor: ImagePreprocessor, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(preprocess_photo("small_200x150")).save(path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match="not a readable image"):
        preprocessor([path])


def test_other_kinds_are_refused(preprocessor: ImagePreprocessor) -> None:
    with pytest.raises(InputError, match="an image is ndarray"):
        preprocessor([np.zeros((4, 4, 3), np.uint8)])  # type: ignore[list-item]
