"""Karpathy's JSON with folders and zips, and what is wrong with files that are nearly that."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hat_export.data.dataset import CaptionDataset
from hat_export.data.karpathy import read_karpathy
from hat_export.errors import DatasetError

COLOURS = {"a.png": (255, 0, 0), "b.png": (0, 255, 0), "c.png": (0, 0, 255)}


def entry(name: str, split: str, captions: int = 5, **others: Any) -> dict[str, Any]:
    sentences = [{"raw": f"{name} {index}", "sentid": index} for index in range(captions)]
    return {"filename": name, "split": split, "sentences": sentences, **others}


def write(folder: Path, images: list[Any], **others: Any) -> Path:
    path = folder / "dataset_small.json"
    path.write_text(json.dumps({"images": images, **others}), encoding="utf-8")
    return path


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (4, 4), colour).save(folder / name)


def colours(dataset: CaptionDataset) -> list[Any]:
    return [image.convert("RGB").getpixel((0, 0)) for image in dataset.images()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw(tmp_path / "images")
    write(
        tmp_path,
        [
            entry("a.png", "test", concept="red"),
            entry("b.png", "train"),
            entry("c.png", "test", captions=7),
        ],
    )
    return tmp_path


def test_a_split(folder: Path) -> None:
    dataset = read_karpathy(folder / "dataset_small.json", "test")
    assert dataset.name == "small/test"
    assert [item.name for item in dataset.entries] == ["a.png", "c.png"]
    assert dataset.entries[0].labels["concept"] == "red"
    assert dataset.captions[:2] == ["a.png 0", "a.png 1"]
    assert dataset.owners == [0] * 5 + [1] * 7
    assert colours(dataset) == [COLOURS["a.png"], COLOURS["c.png"]]


def test_a_folder_with_one_json(folder: Path) -> None:
    assert read_karpathy(folder, "train").captions[0] == "b.png 0"


def test_five_captions_of_seven(folder: Path) -> None:
    taken = read_karpathy(folder, "test").take(5)
    assert taken.owners == [0] * 5 + [1] * 5
    assert taken.captions[-1] == "c.png 4"


def test_zip(tmp_path: Path) -> None:
    draw(tmp_path / "drawn")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in COLOURS:
            archive.write(tmp_path / "drawn" / name, name)
    write(tmp_path, [entry("b.png", "test")])
    assert colours(read_karpathy(tmp_path, "test")) == [COLOURS["b.png"]]


def test_filepath_names_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "val2014")
    path = write(tmp_path, [entry("a.png", "test", filepath="val2014")])
    assert read_karpathy(path, "test").entries[0].name == "val2014/a.png"
    assert colours(read_karpathy(path, "test")) == [COLOURS["a.png"]]


def test_folder_of_the_json_missing_on_disk(tmp_path: Path) -> None:
    draw(tmp_path / "flat")
    path = write(tmp_path, [entry("a.png", "test", filepath="flickr30k_images")])
    assert colours(read_karpathy(path, "test", [tmp_path / "flat"])) == [COLOURS["a.png"]]


def test_limit_spreads_over_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(f"{index}.png", "test") for index in range(10)])
    dataset = read_karpathy(path, "test", [tmp_path])
    assert [item.name for item in dataset.limit(3).entries] == ["0.png", "3.png", "6.png"]
    assert dataset.limit(None) is dataset
    assert dataset.limit(11) is dataset
    with pytest.raises(DatasetError, match="limit of 0 images"):
        dataset.limit(0)


def test_missing_image(folder: Path) -> None:
    (folder / "images" / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"a\.png: no such image in .*images"):
        list(read_karpathy(folder, "test").images())


@pytest.mark.parametrize("keep", [0, 10, 45])
def test_broken_image(folder: Path, keep: int) -> None:
    path = folder / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"a\.png: not a readable image"):
        list(read_karpathy(folder, "test").images())


def test_a_name_may_not_leave_the_folder(tmp_path: Path) -> None:
    draw(tmp_path)
    (tmp_path / "inside").mkdir()
    path = write(tmp_path, [entry("../a.png", "test")])
    with pytest.raises(DatasetError, match="points outside of"):
        list(read_karpathy(path, "test", [tmp_path / "inside"]).images())


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such dataset"):
        read_karpathy(tmp_path / "dataset.json", "test")


def test_a_folder_with_two(folder: Path) -> None:
    (folder / "dataset_other.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"expected one dataset\*\.json in this folder, found 2"):
        read_karpathy(folder, "test")


def test_unknown_split(folder: Path) -> None:
    with pytest.raises(DatasetError, match="no image of split 'val'; it has: test, train"):
        read_karpathy(folder, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a readable JSON file"),
        ("[1]", "no list 'images'"),
        ('{"images": {}}', "no list 'images'"),
        ('{"images": [{"split": "test"}]}', "image 0: needs 'filename'"),
        ('{"images": [{"split": "test", "filename": "a", "sentences": []}]}', "needs 'filename'"),
        (
            '{"images": [{"split": "test", "filename": "a", "sentences": [{"text": "b"}]}]}',
            "every sentence needs a string 'raw'",
        ),
    ],
)
def test_other_json(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_karpathy(path, "test")


def test_images_must_be_a_folder_or_a_zip(folder: Path) -> None:
    path = folder / "dataset_small.json"
    with pytest.raises(DatasetError, match="expected a folder or a zip of images"):
        read_karpathy(path, "test", [path])
