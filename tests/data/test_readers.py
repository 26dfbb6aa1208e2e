"""Datasets as people have them: JSONL, CSV, Hugging Face folders, zips and folders."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from hat_export.data.readers import FORMS, read_dataset
from hat_export.errors import BackendUnavailableError, DatasetError

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, name in enumerate(NAMES):
        Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / name)
    return folder


def check(dataset, names: tuple[str, ...], captions: int) -> None:
    """Pictures in order, each with captions that name it."""
    assert len(dataset.entries) == len(names)
    reds = [image.convert("RGB").getpixel((0, 0))[0] for image in dataset.images()]
    assert reds == [NAMES.index(name) for name in names]
    for entry, name in zip(dataset.entries, names, strict=True):
        assert entry.captions == tuple(f"{name}, no. {n}" for n in range(captions))


def test_jsonl_by_image(pictures: Path) -> None:
    lines = [
        {"image": name, "captions": [f"{name}, no. {n}" for n in range(5)], "split": split}
        for name, split in zip(NAMES, ("test", "train", "test"), strict=True)
    ]
    path = pictures / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    check(read_dataset(path, "test"), ("a.png", "c.png"), 5)
    with pytest.raises(DatasetError, match="no line of split 'val'; it has: test, train"):
        read_dataset(path, "val")


def test_jsonl_by_caption(pictures: Path) -> None:
    path = pictures.parent / "pairs.jsonl"
    lines = [{"file_name": name, "text": f"{name}, no. {n}"} for n in range(2) for name in NAMES]
    path.write_text("\n".join(map(json.dumps, lines)))
    check(read_dataset(path, "test", [pictures]), NAMES, 2)


@pytest.mark.parametrize(("delimiter", "name"), [(",", "x.csv"), ("|", "x.csv"), ("\t", "x.tsv")])
def test_csv(pictures: Path, delimiter: str, name: str) -> None:
    """Flickr30K's results.csv has image_name| comment_number| comment; quotes hold commas."""
    path = pictures / name
    rows = [delimiter.join(("image_name", " comment_number", " comment"))]
    rows += [
        delimiter.join((picture, f" {n}", f' "{picture}, no. {n}"'))
        for picture in NAMES
        for n in range(5)
    ]
    path.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    check(read_dataset(path, "test"), NAMES, 5)


def test_csv_with_numbered_captions(pictures: Path) -> None:
    path = pictures / "wide.csv"
    rows = ["filename;caption_0;caption_1", *(f"{n};{n}, no. 0;{n}, no. 1" for n in NAMES)]
    path.write_text("\n".join(rows))
    check(read_dataset(path, "test"), NAMES, 2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "{", "line 1 is no JSON"),
        ("x.jsonl", "[1]", "line 1 is no JSON object"),
        ("x.jsonl", '{"caption": "b"}', "line 1: no picture; expected a column image"),
        ("x.jsonl", '{"image": "a"}', "line 1: no caption; expected a column captions"),
        ("x.jsonl", '{"image": "a", "captions": [1]}', "expected a list of texts"),
        ("x.jsonl", '{"image": "a", "captions": 1}', "got int"),
        ("x.jsonl", "", "no line in it"),
        ("x.csv", "image,caption\na.png,b,c", "line 2 has more fields.*put quotes"),
        ("x.xml", "", r"not a form of dataset that is known; those are: .*\.jsonl"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path / name, "test")


def karpathy(folder: Path, filepath: str | None) -> Path:
    images = [
        {"filename": name, "split": "test", "sentences": [{"raw": f"{name}, no. 0"}]}
        | ({"filepath": filepath} if filepath else {})
        for name in NAMES
    ]
    path = folder / "dataset_flickr30k.json"
    path.write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    return path


def test_coco_in_its_folder_and_in_the_one_above(pictures: Path, tmp_path: Path) -> None:
    path = karpathy(tmp_path, "val2014")
    root = tmp_path / "coco"
    root.mkdir()
    pictures.rename(root / "val2014")
    for images in (root, root / "val2014"):
        check(read_dataset(path, "test", [images]), NAMES, 1)


def test_flickr_where_the_archive_has_a_folder(pictures: Path, tmp_path: Path) -> None:
    path = karpathy(tmp_path, None)
    with zipfile.ZipFile(tmp_path / "flickr30k-images.zip", "w") as archive:
        for name in NAMES:
            archive.write(pictures / name, f"flickr30k-images/{name}")
            archive.writestr(f"__MACOSX/flickr30k-images/{name}", b"")
    check(read_dataset(path, "test"), NAMES, 1)  # found beside the JSON
    unpacked = tmp_path / "unpacked"
    (unpacked / "flickr30k_images").parent.mkdir()
    pictures.rename(unpacked / "flickr30k_images")
    check(read_dataset(path, "test", [unpacked]), NAMES, 1)


def test_two_pictures_that_could_be_meant(pictures: Path, tmp_path: Path) -> None:
    path = karpathy(tmp_path, None)
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for folder in ("one", "two"):
            archive.write(pictures / "a.png", f"{folder}/a.png")
    with pytest.raises(DatasetError, match=r"2 pictures that end so \(one/a\.png, two/a\.png\)"):
        list(read_dataset(path, "test", [tmp_path / "both.zip"]).images())


def test_hugging_face_without_the_library(pictures: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (pictures / "metadata.jsonl").write_text("{}")
    with pytest.raises(BackendUnavailableError, match=r"pip install 'hat-export\[datasets\]'"):
        read_dataset(pictures, "test")


@pytest.fixture
def hugging_face(pictures: Path, tmp_path: Path, monkeypatch):
    """A dataset with its pictures' bytes inside, and the library; caches go to a test's folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    rows = {
        "image": [str(pictures / name) for name in NAMES],
        "caption": [[f"{name}, no. {n}" for n in range(2)] for name in NAMES],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    )
    return datasets, datasets.Dataset.from_dict(rows, features=features)


def test_save_to_disk(hugging_face, tmp_path: Path) -> None:
    datasets, rows = hugging_face
    rows.save_to_disk(tmp_path / "one")
    check(read_dataset(tmp_path / "one", "test"), NAMES, 2)
    datasets.DatasetDict({"test": rows, "val": rows.select([1])}).save_to_disk(tmp_path / "split")
    check(read_dataset(tmp_path / "split", "val"), ("b.png",), 2)
    with pytest.raises(DatasetError, match="no split 'train'; it has: test, val"):
        read_dataset(tmp_path / "split", "train")
    with pytest.raises(DatasetError, match="holds its pictures itself"):
        read_dataset(tmp_path / "one", "test", [tmp_path])


def test_parquet(hugging_face, tmp_path: Path) -> None:
    _, rows = hugging_face
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "test-00000-of-00001.parquet")
    rows.select([1]).to_parquet(folder / "val-00000-of-00001.parquet")
    check(read_dataset(tmp_path, "test"), NAMES, 2)
    # The rows name files; those of a stranger could name any.
    outside = read_dataset(tmp_path / "set", "test")
    with pytest.raises(DatasetError, match="a picture outside of"):
        next(outside.images())


def test_imagefolder(hugging_face, pictures: Path) -> None:
    lines = [{"file_name": name, "text": [f"{name}, no. {n}" for n in range(3)]} for name in NAMES]
    (pictures / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    check(read_dataset(pictures, "test"), NAMES, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # In pyarrow's parser these end the process.
        (b'{"text":' * 100_000 + b"1" + b"}" * 100_000, "line 1 is nested too deeply"),
        (b"[" * 200_000 + b"]" * 200_000, "line 1 is nested too deeply"),
        (b'{"file_name": "a.png"', "line 1 is no JSON"),
        (b"\xff\xfe", "line 1 is no JSON"),
    ],
)
def test_an_imagefolder_of_a_stranger(
    hugging_face, pictures: Path, line: bytes, message: str
) -> None:
    (pictures / "metadata.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DatasetError, match=message):
        read_dataset(pictures, "test")


def test_an_imagefolders_metadata_is_a_file(hugging_face, pictures: Path) -> None:
    os.mkfifo(pictures / "metadata.jsonl")
    with pytest.raises(DatasetError, match="not a regular file"):
        read_dataset(pictures, "test")


def test_one_form_fits_a_path(pictures: Path) -> None:
    """Which reader takes a path doesn't hang on the order of the table, but for the last entry."""
    (pictures / "karpathy").mkdir()
    (pictures / "karpathy" / "dataset_x.json").write_text("{}")
    (pictures / "saved").mkdir()
    (pictures / "saved" / "dataset_info.json").write_text("{}")
    paths = [pictures / name for name in ("x.json", "x.JSONL", "x.csv", "karpathy", "saved")]
    fitting = [[form.name for form in FORMS[:-1] if form.fits(path)] for path in paths]
    assert [len(names) for names in fitting] == [1] * len(paths)
    assert len({names[0] for names in fitting}) == len(paths)
