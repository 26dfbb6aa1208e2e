"""Bulk indexing: every source gives the same images, and an interruption loses nothing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from hat_export.bundle.bundle import Bundle
from hat_export.cli.export import app
from hat_export.data.sources import ImageReader, ImageRef, list_images
from hat_export.errors import DatasetError, HatError, IndexFileError, InputError
from hat_export.index.build import (
    IndexingResult,
    encode_here,
    index_captions,
    index_images,
    note_origin,
    open_index,
    origin_of,
)
from hat_export.index.captions import CaptionIndex
from hat_export.index.images import ImageIndex
from hat_export.index.record_file import IndexRecoveryWarning
from hat_export.runtime.backends.opening import open_bundle
from hat_export.runtime.session import Session
from picture_samples import pictures, write_folder, write_tar, write_zip


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Iterator[Session]:
    with open_bundle(tiny_bundle, threads=1, verify=False) as opened:
        yield opened


def build(
    session: Session, bundle: Path, out: Path, *sources: Path, **sizes: int
) -> IndexingResult:
    with open_index(out, ImageIndex, Bundle.read(bundle), session.projections, None) as index:
        assert isinstance(index, ImageIndex)
        refs = list(list_images(sources))
        encode = partial(encode_here, session)
        return index_images(index, refs, encode, **sizes)


def records(path: Path) -> dict[str, bytes]:
    with ImageIndex.open(path) as index:
        assert len(set(index.ids)) == len(index.ids)
        index.verify()
        return {name: index.file.record(n).tobytes() for n, name in enumerate(index.ids)}


def by_base_name(path: Path) -> dict[str, bytes]:
    return {name.rpartition("/")[2]: record for name, record in records(path).items()}


@pytest.mark.parametrize("kind", ["zip", "tar", "list", "parquet"])
def test_every_source_gives_the_records_of_a_folder(
    session: Session, tiny_bundle: Path, tmp_path: Path, kind: str
) -> None:
    made = pictures(9)
    folder = write_folder(tmp_path / "folder", {f"below/{n}": data for n, data in made.items()})
    (folder / "notes.md").write_text("no image")
    build(session, tiny_bundle, tmp_path / "a.hatidx", folder)
    expected = by_base_name(tmp_path / "a.hatidx")
    assert set(expected) == set(made)
    if kind == "zip":
        source = write_zip(tmp_path / "some.zip", made)
    elif kind == "tar":
        source = write_tar(tmp_path / "some.tar", {"caption.txt": b"words", **made})
    elif kind == "list":
        source = tmp_path / "some.txt"
        source.write_text("".join(f"folder/below/{name}\n" for name in made) + "\n")
    else:
        pytest.importorskip("pyarrow", reason="pyarrow isn't installed")
        source = write_parquet(tmp_path / "some.parquet", made)
    result = build(session, tiny_bundle, tmp_path / "b.hatidx", source)
    assert (result.added, result.present, result.skipped) == (9, 0, ())
    found = by_base_name(tmp_path / "b.hatidx")
    if kind == "parquet":  # rows have numbers
        found = dict(zip(made, found.values(), strict=True))
    assert found == expected


def write_parquet(path: Path, content: dict[str, bytes]) -> Path:
    import pyarrow
    from pyarrow import parquet

    rows = [{"bytes": data, "path": name} for name, data in content.items()]
    table = pyarrow.table({"caption": ["text"] * len(rows), "image": rows})
    parquet.write_table(table, path, row_group_size=4)
    return path


def test_broken_images_are_skipped_with_a_reason(
    session: Session, tiny_bundle: Path, tmp_path: Path
) -> None:
    made = pictures(5)
    good = dict(made)
    made |= {"cut.png": made["0000.png"][:60], "empty.jpg": b"", "text.jpg": b"words"}
    folder = write_folder(tmp_path / "images", made)
    listing = tmp_path / "list.txt"
    listing.write_text(
        "\n".join([*(f"images/{n}" for n in made), "missing.png", "images/0000.png"])
    )
    result = build(session, tiny_bundle, tmp_path / "f.hatidx", folder, batch=2, commit=3)
    assert result.added == 5
    assert sorted(one.name for one in result.skipped) == ["cut.png", "empty.jpg", "text.jpg"]
    assert set(records(tmp_path / "f.hatidx")) == set(good)
    result = build(session, tiny_bundle, tmp_path / "l.hatidx", listing)
    reasons = {one.name: one.reason for one in result.skipped}
    assert "No such file" in reasons["missing.png"]
    assert "is empty" in reasons["images/empty.jpg"]
    assert "same name" in reasons["images/0000.png"]


def test_a_lying_or_damaged_archive_is_no_crash(
    session: Session, tiny_bundle: Path, tmp_path: Path
) -> None:
    made = pictures(6, seed=3)
    path = write_zip(tmp_path / "damaged.zip", made)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[1].header_offset + 40
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    result = build(session, tiny_bundle, tmp_path / "d.hatidx", path)
    assert (result.added, len(result.skipped)) == (5, 1)
    tar = write_tar(tmp_path / "short.tar", made)
    ref = [*list_images([tar])][-1]
    tar.write_bytes(tar.read_bytes()[: int(ref.place[0]) + 10])
    with ImageReader() as reader, pytest.raises(InputError, match="the tar ends before"):
        reader.read(ref)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.zip", None, "no such folder or file"),
        ("words.zip", b"words", "not a readable zip"),
        ("words.tar", b"words", "uncompressed tar"),
        ("images.tar.gz", b"words", "unpack it"),
        ("list.txt", b"\xff\xfe\x00", "not a readable list"),
        ("picture.png", b"words", r"expected a folder, \.zip"),
    ],
)
def test_a_source_of_the_wrong_kind_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        list(list_images([tmp_path / name]))


def test_an_oversized_image_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hat_export.data.sources.MAX_ENCODED_BYTES", 10)
    path = write_zip(tmp_path / "big.zip", {"a.png": bytes(11)})
    with ImageReader() as reader, pytest.raises(InputError, match="at most 10"):
        reader.read(next(iter(list_images([path]))))


def test_appending_adds_what_is_new_and_nothing_twice(
    session: Session, tiny_bundle: Path, tmp_path: Path
) -> None:
    made = pictures(10)
    out = tmp_path / "i.hatidx"
    folder = write_folder(tmp_path / "images", dict([*made.items()][:6]))
    assert build(session, tiny_bundle, out, folder).added == 6
    write_folder(folder, made)
    result = build(session, tiny_bundle, out, folder)
    assert (result.added, result.present) == (4, 6)
    build(session, tiny_bundle, tmp_path / "whole.hatidx", folder)
    assert records(out) == records(tmp_path / "whole.hatidx")


def test_deletion_and_compaction(session: Session, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "i.hatidx"
    folder = write_folder(tmp_path / "images", pictures(8))
    build(session, tiny_bundle, out, folder, batch=2, commit=2)
    before = records(out)
    gone = ["0001.jpeg", "0004.png", "0007.jpeg"]
    with ImageIndex.open(out) as index:
        note_origin(index, tiny_bundle, [folder])
        index.all_pooled()
        index.remove(gone)
        assert len(index.all_pooled()) == 5  # type: ignore[arg-type]
        assert index.file.deleted_bytes == 3 * index.file.record_bytes[0]
        with pytest.raises(InputError, match="nothing was deleted"):
            index.remove(["0000.png", "0001.jpeg"])
    left = {name: record for name, record in before.items() if name not in gone}
    assert records(out) == left
    size = out.stat().st_size
    with ImageIndex.open(out) as index:
        index.compact()
        assert index.file.deleted_bytes == 0
        assert origin_of(index).sources == (folder,)
        assert origin_of(index).bundle == tiny_bundle
    assert out.stat().st_size < size
    assert records(out) == left
    result = build(session, tiny_bundle, out, folder)
    assert (result.added, result.present) == (3, 5)
    assert records(out) == before


def test_an_interrupted_deletion_deletes_nothing(
    session: Session, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i.hatidx"
    build(session, tiny_bundle, out, write_folder(tmp_path / "images", pictures(4)))
    whole = out.read_bytes()
    with ImageIndex.open(out) as index:
        index.remove(["0002.png"])
    after = out.read_bytes()
    assert len(after) > len(whole)
    for end in range(len(whole), len(after), 16):
        out.write_bytes(whole[: len(whole)] + after[len(whole) : end])
        with pytest.warns(IndexRecoveryWarning) if end > len(whole) else _nothing():
            index = ImageIndex.open(out)
        assert len(index) == 4
        index.close()


def _nothing() -> object:
    import contextlib

    return contextlib.nullcontext()


def test_an_index_of_another_model_or_precision_is_refused(
    session: Session, tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "i.hatidx"
    bundle = Bundle.read(tiny_bundle)
    open_index(out, ImageIndex, bundle, session.projections, "int8").close()
    with pytest.raises(IndexFileError, match="stores int8, not float32"):
        open_index(out, ImageIndex, bundle, session.projections, "float32")
    with pytest.raises(IndexFileError, match="an index of images; expected one of captions"):
        open_index(out, CaptionIndex, bundle, session.projections, None)
    other = tmp_path / "other.hatidx"
    ImageIndex.create(other, session.spec, "somebody else's", session.projections).close()
    with pytest.raises(IndexFileError, match="was made with another model"):
        open_index(other, ImageIndex, bundle, session.projections, None)


def test_captions_are_indexed_once(session: Session, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    with open_index(
        tmp_path / "c.hatidx", CaptionIndex, bundle, session.projections, None
    ) as index:
        assert isinstance(index, CaptionIndex)
        texts = ["a dog", "a cat on a mat", "a dog", "two people in a boat"]
        result = index_captions(session, texts, index, 2)
        assert (result.added, result.present) == (3, 1)
        assert index_captions(session, texts, index, 2).added == 0
        assert sorted(index.ids) == sorted(set(texts))


def test_a_batch_does_not_change_an_image(
    session: Session, tiny_bundle: Path, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "images", pictures(7))
    build(session, tiny_bundle, tmp_path / "a.hatidx", folder, batch=1, commit=1)
    build(session, tiny_bundle, tmp_path / "b.hatidx", folder, batch=7)
    with ImageIndex.open(tmp_path / "a.hatidx") as a, ImageIndex.open(tmp_path / "b.hatidx") as b:
        for level in (1, 2, 3):
            one, other = (index.level(level, np.arange(7))[0] for index in (a, b))
            # float16 storage: two units in the last place, since a batch may round otherwise.
            assert np.abs(one - other).max() <= 2**-9 * np.abs(one).max()


def test_twenty_kills_lose_and_double_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL at random moments and started again, the index ends up complete."""
    made = pictures(400, seed=5)
    source = write_zip(tmp_path / "images.zip", made)
    out = tmp_path / "i.hatidx"
    command = [sys.executable, "-m", "hat_export.cli.export", "index", str(tiny_bundle)]
    command += [str(source), str(out), "--quiet", "--threads", "1", "--batch", "4", "--commit", "4"]
    chance = random.Random(6)
    held, growth = 0, 0
    for _ in range(20):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            # From the moment at which the index has grown: starting takes longest.
            deadline = time.monotonic() + 60
            while out_size(out) <= growth and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        growth = out_size(out)
        with pytest.warns() if torn(out) else _nothing():  # type: ignore[attr-defined]
            index = ImageIndex.open(out)
        assert len(index) >= held, "what was committed is gone"
        held = len(index)
        index.close()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert 0 < held <= 400
    assert sorted(records(out)) == sorted(f"images.zip/{name}" for name in made)


def out_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def torn(path: Path) -> bool:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IndexRecoveryWarning)
        index = ImageIndex.open(path)
        index.close()
        return index.notice is not None


def test_the_commands_from_images_to_an_emptier_index(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", {**pictures(4), "bad.png": b"words"})
    out, skipped = tmp_path / "i.hatidx", tmp_path / "skipped.jsonl"
    run = CliRunner()
    done = run.invoke(
        app, ["index", str(tiny_bundle), str(folder), str(out), "--skipped", str(skipped), "-q"]
    )
    assert done.exit_code == 0, done.output
    assert "4 added, 1 skipped; 4 images" in done.output
    assert '"name": "bad.png"' in skipped.read_text()
    done = run.invoke(app, ["index-delete", str(out), "0001.jpeg", "--compact"])
    assert "1 deleted; 3 images left" in done.output
    for arguments in (["index-delete", str(out)], ["index-delete", str(out), "nobody"]):
        assert isinstance(run.invoke(app, arguments).exception, HatError)
    arguments = ["index", str(tiny_bundle), str(folder), str(out), "--address", "auto"]
    assert isinstance(run.invoke(app, arguments).exception, InputError)


def test_names_of_another_source_are_refused_not_taken_for_those_that_are_there(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    made = pictures(5)
    first = write_folder(tmp_path / "first", dict([*made.items()][:3]))
    second = write_folder(tmp_path / "second", dict([*made.items()][2:]))
    out = tmp_path / "i.hatidx"
    run = CliRunner()

    def index(*arguments: object) -> Result:
        return run.invoke(app, ["index", str(tiny_bundle), *map(str, arguments), str(out), "-q"])

    assert index(first).exit_code == 0
    before = out.read_bytes()
    refused = index(second)
    assert isinstance(refused.exception, InputError)
    assert "has 1 of its 3 names ('0002.png' ...) from another source" in str(refused.exception)
    assert out.read_bytes() == before
    assert "2 added, 1 were there" in index(second, "--skip-known").output
    assert "0 added, 3 were there" in index(second).output  # its name is known by now


def test_refs_travel(tmp_path: Path) -> None:
    """A reference is all that another process needs."""
    import pickle

    source = write_tar(tmp_path / "some.tar", pictures(2))
    refs: list[ImageRef] = pickle.loads(pickle.dumps(list(list_images([source]))))
    with ImageReader() as reader:
        assert [reader.read(ref) for ref in refs] == list(pictures(2).values())
