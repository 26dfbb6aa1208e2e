"""The index file, its storage precisions, and the image and caption indexes in it."""

from __future__ import annotations

import fcntl
import itertools
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hat_export.errors import IndexFileError, InputError, OutputError
from hat_export.index.captions import CaptionIndex
from hat_export.index.image_records import record_layout
from hat_export.index.images import ImageIndex
from hat_export.index.record_file import IndexRecoveryWarning, RecordFile
from hat_export.index.record_format import ALIGNMENT, METADATA_START, PAGE
from hat_export.index.storage import STORAGES, encode
from hat_export.score.captions import PreparedCaptions, prepare
from hat_export.score.features import ReducedImages
from hat_export.score.projection import Projection, Projections, pool
from hat_export.spec import OFFICIAL
from index_samples import MEDIUM, SMALL, Sample, sample

METADATA = {"kind": "test", "text": "ä"}
FIRST = ([b"alpha", b"", b"\0" * 60], ["a", "ü 2", "c"])
SECOND = ([b"x" * 200, b"beta"], ["d", "e"])


def record_file(path: Path, *appends: tuple[list[bytes], list[str]]) -> RecordFile:
    file = RecordFile.create(path, METADATA)
    for payloads, ids in appends:
        file.append(payloads, ids)
    return file


def assert_holds(file: RecordFile, payloads: list[bytes], ids: list[str]) -> None:
    assert file.ids == ids
    assert len(file) == len(payloads)
    for position, payload in enumerate(payloads):
        record = file.record(position).tobytes()
        assert record == payload + bytes(len(record) - len(payload))


# ------------------------------------------------------------------------------ the container


def test_records_come_back(tmp_path: Path) -> None:
    with record_file(tmp_path / "i.hatidx", FIRST, SECOND) as file:
        assert_holds(file, FIRST[0] + SECOND[0], FIRST[1] + SECOND[1])
    with RecordFile.open(tmp_path / "i.hatidx") as file:
        assert_holds(file, FIRST[0] + SECOND[0], FIRST[1] + SECOND[1])
        assert file.metadata == METADATA
        assert file.notice is None
        assert (file.record_bytes % ALIGNMENT == 0).all()
        assert (file._starts % ALIGNMENT == 0).all()
        file.verify()


def test_an_empty_file_holds_nothing(tmp_path: Path) -> None:
    file = record_file(tmp_path / "i.hatidx", ([], []))
    assert_holds(file, [], [])
    file.verify()


@settings(max_examples=15, deadline=None)
@given(
    records=st.lists(st.binary(max_size=150), max_size=8),
    cuts=st.lists(st.integers(0, 8), max_size=4),
)
def test_append_in_pieces_equals_append_at_once(records: list[bytes], cuts: list[int]) -> None:
    ids = [f"id {number}" for number in range(len(records))]
    edges = sorted({0, len(records), *(min(cut, len(records)) for cut in cuts)})
    with tempfile.TemporaryDirectory() as folder:
        pieces = RecordFile.create(Path(folder) / "pieces.hatidx", METADATA)
        for first, last in itertools.pairwise(edges):
            pieces.append(records[first:last], ids[first:last])
        whole = record_file(Path(folder) / "whole.hatidx", (records, ids))
        for file in (pieces, whole, RecordFile.open(pieces.path)):
            assert_holds(file, records, ids)
            file.verify()


def cut_points(first: int, last: int) -> list[int]:
    """Every block boundary with its neighbours, and points between."""
    edges = {at + step for at in range(first, last + 1, ALIGNMENT) for step in (-1, 0, 1, 29)}
    return sorted(at for at in edges | {last} if first <= at <= last)


def test_an_append_cut_short_anywhere_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    record_file(path, FIRST)
    before = path.read_bytes()
    RecordFile.open(path).append(*SECOND)
    after = path.read_bytes()
    assert len(after) > len(before)
    for cut in cut_points(len(before), len(after)):
        # Killed before the commit slot was written, with a part of the data on the disk.
        path.write_bytes(before[:METADATA_START] + after[METADATA_START:cut])
        if cut == len(before):
            file = RecordFile.open(path)
            assert file.notice is None
        else:
            with pytest.warns(IndexRecoveryWarning, match="interrupted"):
                file = RecordFile.open(path)
            assert file.notice is not None
            assert f"{cut - len(before)} bytes" in file.notice
            with pytest.raises(IndexFileError, match="interrupted"):
                file.verify()
        assert_holds(file, *FIRST)
        file.append(*SECOND)
        assert path.read_bytes() == after
        assert file.notice is None


def test_an_append_discards_a_longer_interrupted_one(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    record_file(path, FIRST, SECOND)
    expected = path.read_bytes()
    path.unlink()
    record_file(path, FIRST)
    with path.open("ab") as file:
        file.write(b"\xaa" * 5000)
    with pytest.warns(IndexRecoveryWarning, match="5000 bytes"):
        recovered = RecordFile.open(path)
    recovered.append(*SECOND)
    assert path.read_bytes() == expected


def test_a_commit_slot_written_in_part_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    record_file(path, FIRST)
    before = path.read_bytes()
    RecordFile.open(path).append(*SECOND)
    after = path.read_bytes()
    slot = next(at for at in (PAGE, 2 * PAGE) if before[at : at + 64] != after[at : at + 64])
    for written in range(ALIGNMENT):
        torn = bytearray(after)
        torn[slot : slot + ALIGNMENT] = (
            after[slot : slot + written] + before[slot + written : slot + ALIGNMENT]
        )
        path.write_bytes(torn)
        with pytest.warns(IndexRecoveryWarning):
            file = RecordFile.open(path)
        assert_holds(file, *FIRST)
        file.append(*SECOND)
        assert path.read_bytes() == after


def test_a_failing_disk_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "i.hatidx"
    file = record_file(path, FIRST)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        file.append(*SECOND)
    assert path.read_bytes() == before
    with pytest.raises(OutputError, match="No space left"):
        RecordFile.create(tmp_path / "other.hatidx", METADATA)
    assert list(tmp_path.iterdir()) == [path]


def test_every_changed_byte_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    record_file(path, FIRST, SECOND)
    content = path.read_bytes()
    header = {at + n for at in (0, PAGE, 2 * PAGE) for n in range(ALIGNMENT + 1)}
    # The pages' unused bytes are compared with zero in one sweep each: some of them will do.
    padding = {*range(0, METADATA_START, 251), PAGE - 1, 2 * PAGE - 1, METADATA_START - 1}
    for at in sorted(header | padding | set(range(METADATA_START, len(content)))):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IndexRecoveryWarning)
            with pytest.raises(IndexFileError) as caught:
                RecordFile.open(path).verify()
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    record_file(path, FIRST, SECOND)
    content = path.read_bytes()
    short = [0, 1, 7, 8, 63, 64, PAGE, 2 * PAGE + 8, METADATA_START - 1, METADATA_START + 1]
    for size in [*short, *cut_points(METADATA_START, len(content) - 1)]:
        path.write_bytes(content[:size])
        with pytest.raises(IndexFileError, match=r": (truncated|empty|not a hat-export index)"):
            RecordFile.open(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    with pytest.raises(IndexFileError, match="No such file"):
        RecordFile.open(path)
    path.write_bytes(b"PK\3\4" + bytes(20000))
    with pytest.raises(IndexFileError, match="not a hat-export index"):
        RecordFile.open(path)
    with pytest.raises(IndexFileError, match="can't be read"):
        RecordFile.open(tmp_path)


def test_a_file_of_another_format_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hat_export.index.record_format.FORMAT_VERSION", 2)
    record_file(tmp_path / "i.hatidx")
    monkeypatch.undo()
    with pytest.raises(IndexFileError, match="index format 2; this version reads 1"):
        RecordFile.open(tmp_path / "i.hatidx")


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        RecordFile.create(path, METADATA)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "x"], "already"),
        (["x", "x"], "already"),
        (["", "x"], "not empty"),
        (["x", "\ud800"], "UTF-8"),
        (["x"], "2 records with 1 ids"),
    ],
)
def test_bad_ids_are_refused(tmp_path: Path, ids: list[str], message: str) -> None:
    file = record_file(tmp_path / "i.hatidx", FIRST)
    with pytest.raises(InputError, match=message):
        file.append([b"1", b"2"], ids)
    assert_holds(RecordFile.open(file.path), *FIRST)


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "i.hatidx"
    one = record_file(path, FIRST)
    other = RecordFile.open(path)
    with path.open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(IndexFileError, match="another process is appending"):
            one.append(*SECOND)
    one.append(*SECOND)
    with pytest.raises(IndexFileError, match="open it again"):
        other.append([b"late"], ["late"])
    assert_holds(RecordFile.open(path), FIRST[0] + SECOND[0], FIRST[1] + SECOND[1])
    # An open reader keeps the state that it has seen.
    assert_holds(other, *FIRST)


def test_gather_takes_the_same_bytes_of_records(tmp_path: Path) -> None:
    payloads = [bytes(range(n, n + 100)) for n in range(5)]
    appends = ((payloads[:2], ["a", "b"]), (payloads[2:], ["c", "d", "e"]))
    file = record_file(tmp_path / "i.hatidx", *appends)
    chosen = file.gather(np.array([4, 0, 2]), 3, 7)
    assert [row.tobytes() for row in chosen] == [payloads[n][3:10] for n in (4, 0, 2)]


# ------------------------------------------------------------------------- storage precisions

rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(-60000, 60000, width=32),
)


@settings(max_examples=60, deadline=None)
@given(values=rows)
def test_storage_error_is_bounded(values: np.ndarray) -> None:
    largest = np.abs(values).max(1, keepdims=True).astype(np.float64)
    # Half a unit in the last place: 11 and 8 significant bits; 127 steps for int8, whose division
    # and product round by themselves (4 ulp of float32).
    bounds = {
        "float32": np.zeros_like(values),
        "float16": np.maximum(np.abs(values) * 2.0**-11, 2.0**-25),
        "bfloat16": np.maximum(np.abs(values) * 2.0**-8, 2.0**-134),
        "int8": np.maximum(largest * (1 / 254 + 4 * 2.0**-23), 1.5e-36),
    }
    assert set(bounds) == set(STORAGES)
    for name, storage in STORAGES.items():
        stored, scales = encode(storage, values, "values")
        assert stored.dtype == storage.dtype
        assert (scales is not None) == storage.scaled
        decoded = storage.decode(stored, scales)
        assert decoded.dtype == np.float32
        assert (np.abs(decoded.astype(np.float64) - values) <= bounds[name]).all()


def test_bfloat16_rounds_to_nearest_with_ties_to_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x80000001, 0], np.uint32)
    stored, _ = STORAGES["bfloat16"].encode(bits.view(np.float32))
    assert [hex(value) for value in stored] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80", "0x8000",
                                                "0x0"]  # fmt: skip


def test_rows_of_zeros_and_tiny_rows_are_stored() -> None:
    values = np.array([[0, 0], [1e-45, -3e-45], [1e-30, 0]], np.float32)
    for storage in STORAGES.values():
        decoded = storage.decode(*storage.encode(values))
        np.testing.assert_allclose(decoded, values, rtol=0.01, atol=1e-7)
    decoded = STORAGES["int8"].decode(*STORAGES["int8"].encode(values))
    assert decoded[2, 0] == pytest.approx(1e-30)


@pytest.mark.parametrize(
    ("name", "value"), [("float16", 65520.0), ("float16", -1e5), ("bfloat16", 3.4e38)]
)
def test_values_beyond_a_precision_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match="beyond"):
        encode(STORAGES[name], np.array([[value]], np.float32), "values")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", STORAGES)
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match="region 7: NaN or infinite"):
        encode(STORAGES[name], np.array([[value]], np.float32), "region 7")


# -------------------------------------------------------------------------------- image index


def image_index(path: Path, data: Sample, precision: str = "float32") -> ImageIndex:
    index = ImageIndex.create(path, data.spec, "model", data.projections, precision)
    index.add(data.image_ids, data.images)
    return index


@pytest.mark.parametrize("precision", STORAGES)
def test_an_image_index_holds_features_norms_and_pooled_vectors(
    tmp_path: Path, precision: str
) -> None:
    data = sample(MEDIUM, 4, 2)
    image_index(tmp_path / "i.hatidx", data, precision).close()
    index = ImageIndex.open(tmp_path / "i.hatidx")
    assert index.spec == MEDIUM
    assert index.storage is STORAGES[precision]
    assert index.ids == data.image_ids
    index.verify()
    positions = np.array([3, 0, 1])
    pooled = []
    for level, fold in enumerate(data.projections.levels, start=1):
        hidden = data.images.levels[level - 1][positions]
        storage = STORAGES[precision]
        values, norms = index.level(level, positions)
        np.testing.assert_array_equal(values, storage.decode(*storage.encode(hidden)))
        features = hidden if fold is None else fold.apply(hidden)
        # The norms are of the exact features, whatever the precision; a product's own rounding
        # depends on its shape, by a few float32 ulp.
        np.testing.assert_allclose(
            norms, np.linalg.norm(features.astype(np.float64), axis=2), rtol=1e-6
        )
        pooled.append(pool(features))
    # Components of unit vectors: float16 rounds them by at most 2^-12.
    tolerance = 1e-6 if precision == "float32" else 2.0**-12
    np.testing.assert_allclose(
        index.pooled(positions), np.concatenate(pooled, axis=1), rtol=0, atol=tolerance
    )


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(0, 6), max_size=3))
def test_images_in_pieces_equal_images_at_once(cuts: list[int]) -> None:
    data = sample(SMALL, 6, 1)
    edges = sorted({0, 6, *cuts})
    with tempfile.TemporaryDirectory() as folder:
        whole = image_index(Path(folder) / "whole.hatidx", data, "int8")
        pieces = ImageIndex.create(
            Path(folder) / "pieces.hatidx", SMALL, "model", data.projections, "int8"
        )
        for first, last in itertools.pairwise(edges):
            ids = data.image_ids[first:last]
            pieces.add(ids, data.some_images(first, last))
        assert pieces.ids == whole.ids
        for position in range(6):
            np.testing.assert_array_equal(pieces.file.record(position), whole.file.record(position))


def test_an_image_of_the_published_size_takes_0_68_megabytes_in_float16() -> None:
    layout = record_layout(OFFICIAL, STORAGES["float16"])
    sizes = {name: section.size for name, section in layout.items()}
    assert sizes.pop("pooled") == 3 * 768 * 2
    assert sizes["values_1"] == 784 * 256 * 2
    assert sizes["norms_1"] == 784 * 4
    values = (784 * 256 + 196 * 512 + 49 * 768) * 2
    assert sum(sizes.values()) == values + (784 + 196 + 49) * 4 == 681_492
    assert all(section.offset % ALIGNMENT == 0 for section in layout.values())
    ends = [section.offset + section.size for section in layout.values()]
    starts = [section.offset for section in layout.values()]
    padding = [start - end for end, start in zip(ends[:-1], starts[1:], strict=True)]
    assert all(0 <= gap < ALIGNMENT for gap in padding)


def test_features_of_another_shape_or_kind_are_refused(tmp_path: Path) -> None:
    data = sample(SMALL, 2, 1)
    index = ImageIndex.create(tmp_path / "i.hatidx", SMALL, "model", data.projections)
    ids = data.image_ids
    first, second, third = data.images.levels
    bad = [
        ((first, second), "2 levels"),
        ((first, second, third[:1]), "level 3 .*expected float32"),
        ((first.astype(np.float64), second, third), "level 1 .*float64"),
        ((second, first, third), "level 1"),
        ((first, np.full_like(second, np.nan), third), "'image-0.jpg', level 2: NaN"),
    ]
    for levels, message in bad:
        with pytest.raises(InputError, match=message):
            index.add(ids, ReducedImages(levels))
    with pytest.raises(InputError, match="1 ids for 2 images"):
        index.add(ids[:1], data.images)
    assert len(ImageIndex.open(index.file.path)) == 0


def test_another_models_projections_are_refused(tmp_path: Path) -> None:
    data, other = sample(SMALL, 2, 1), sample(SMALL, 2, 1, seed=1)
    index = ImageIndex.create(tmp_path / "i.hatidx", SMALL, "weights-1", data.projections)
    with pytest.raises(InputError, match=r"other projections.*weights-1"):
        index.append(data.image_ids, data.images, other.projections)
    swapped = Projections(data.projections.second, data.projections.first)
    with pytest.raises(InputError, match=r"projection of level 1 is \[12, 16\]"):
        ImageIndex.create(tmp_path / "j.hatidx", SMALL, "m", swapped)
    with pytest.raises(InputError, match="weight"):
        Projection(np.zeros((3, 2), np.float32), np.zeros(2, np.float32))


def test_an_index_that_makes_no_sense_is_not_created(tmp_path: Path) -> None:
    data = sample(SMALL, 1, 1)
    path = tmp_path / "i.hatidx"
    with pytest.raises(InputError, match="expected one of float32, float16, bfloat16, int8"):
        ImageIndex.create(path, SMALL, "m", data.projections, "int4")
    with pytest.raises(InputError, match="i2t only"):
        ImageIndex.create(path, replace(SMALL, direction="t2i"), "m", data.projections)
    assert not path.exists()


def test_a_changed_byte_of_an_image_is_detected_and_named(tmp_path: Path) -> None:
    data = sample(SMALL, 3, 1)
    index = image_index(tmp_path / "i.hatidx", data)
    start, size = int(index.file._starts[1]), int(index.file.record_bytes[1])
    content = index.file.path.read_bytes()
    for at in range(start, start + size, 97):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        index.file.path.write_bytes(damaged)
        with pytest.raises(IndexFileError, match=r"record 1 \('image-1\.jpg'\) is damaged"):
            ImageIndex.open(index.file.path).verify()


def test_a_zero_region_has_norm_zero_and_no_direction() -> None:
    assert not pool(np.zeros((2, 3, 4), np.float32)).any()
    rows = np.zeros((1, 2, 3), np.float32)
    rows[0, 1] = [0, 5, 0]
    np.testing.assert_array_equal(pool(rows), [[0, 1, 0]])


def test_pooling_ignores_padding() -> None:
    words = np.array([[[3, 0], [0, 2], [np.nan, np.nan]]], np.float32)
    np.testing.assert_allclose(pool(words, np.array([2])), [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


# ------------------------------------------------------------------------------ caption index


def assert_equal_captions(one: PreparedCaptions, other: PreparedCaptions) -> None:
    np.testing.assert_array_equal(one.pooled, other.pooled)
    for left, right in zip(one.levels, other.levels, strict=True):
        np.testing.assert_array_equal(left.caption_start, right.caption_start)
        np.testing.assert_array_equal(left.words, right.words)
        np.testing.assert_array_equal(left.gram, right.gram)
        assert (left.word_offset is None) == (right.word_offset is None)
        if left.word_offset is not None and right.word_offset is not None:
            np.testing.assert_array_equal(left.word_offset, right.word_offset)


@pytest.mark.parametrize("folded", [True, False])
def test_a_caption_index_holds_prepared_captions(tmp_path: Path, folded: bool) -> None:
    data = sample(MEDIUM, 3, 7)
    projections = data.projections if folded else None
    index = CaptionIndex.create(tmp_path / "c.hatidx", MEDIUM, "model", projections)
    index.add(data.caption_ids, data.texts)
    index = CaptionIndex.open(tmp_path / "c.hatidx")
    index.verify()
    assert index.ids == data.caption_ids
    assert index.folded is folded
    whole = prepare(data.texts, projections)
    assert_equal_captions(index.take(range(7)), whole)
    assert_equal_captions(index.take([4]), whole.one(4))
    parts = [whole.one(position) for position in range(7)]
    assert_equal_captions(PreparedCaptions.concatenate(parts), whole)


@pytest.mark.parametrize("precision", STORAGES)
def test_words_of_a_caption_index_are_stored_in_its_precision(
    tmp_path: Path, precision: str
) -> None:
    data = sample(MEDIUM, 3, 5)
    index = CaptionIndex.create(tmp_path / "c.hatidx", MEDIUM, "model", data.projections, precision)
    index.add(data.caption_ids, data.texts)
    storage = STORAGES[precision]
    exact, block = prepare(data.texts, data.projections), index.take(range(5))
    for stored, level in zip(block.levels, exact.levels, strict=True):
        np.testing.assert_array_equal(stored.words, storage.decode(*storage.encode(level.words)))
        np.testing.assert_array_equal(stored.gram, level.gram)


def test_an_index_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    data = sample(SMALL, 2, 2)
    image_index(tmp_path / "i.hatidx", data)
    CaptionIndex.create(tmp_path / "c.hatidx", SMALL, "m", data.projections)
    with pytest.raises(IndexFileError, match="an index of images; expected one of captions"):
        CaptionIndex.open(tmp_path / "i.hatidx")
    with pytest.raises(IndexFileError, match="an index of captions; expected one of images"):
        ImageIndex.open(tmp_path / "c.hatidx")
