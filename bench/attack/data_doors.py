"""Datasets, sources of images, pictures and captions."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zlib
from pathlib import Path
from random import Random

import samples
from doors import Door
from mutations import TEXTS, mutate_bytes, mutate_json, mutate_tar, mutate_zip


class _DatasetDoor(Door):
    def prepare(self, work: Path) -> None:
        self.data, self.bundle = work / samples.DATA, work / samples.BUNDLE
        self.karpathy = json.loads((self.data / "dataset_small.json").read_text())
        self.pictures = samples.pictures()

    def path(self, folder: Path) -> Path:
        return folder

    def open(self, folder: Path) -> None:
        from hat_export.data.preprocess import open_image
        from hat_export.data.readers import read_dataset

        dataset = read_dataset(self.path(folder), "test").take(5)
        assert dataset.entries
        assert all(isinstance(caption, str) for caption in dataset.captions)
        for picture in dataset.limit(2).images():
            open_image(picture)

    def command(self, folder: Path) -> list[str]:
        data = ["--data", str(self.path(folder)), "--no-cache"]
        return ["hat-bench", "parity", str(self.bundle), str(self.bundle), *data]


class KarpathyDoor(_DatasetDoor):
    name = "dataset, Karpathy JSON"
    attack = "faults in the JSON, in names, folders and zips of pictures"

    def make(self, rng: Random, folder: Path) -> str:
        for name, content in self.pictures.items():
            (folder / name).write_bytes(content)
        kind = rng.random()
        if kind < 0.6:
            name, text = mutate_json(rng, self.karpathy)
        else:
            content = json.loads(json.dumps(self.karpathy))
            entry = rng.choice(content["images"])
            if kind < 0.75:
                entry[rng.choice(("filename", "filepath"))] = rng.choice(TEXTS)
                name = "names of pictures"
            elif kind < 0.85:
                rng.choice(entry["sentences"])["raw"] = rng.choice(TEXTS)
                name = "captions"
            elif kind < 0.92:
                name, archive = mutate_zip(rng, self.pictures)
                (folder / "images.zip").write_bytes(archive)
            else:
                name = "link to a picture outside"
                path = folder / entry["filename"]
                path.unlink()
                path.symlink_to("../outside/secret.txt")
            text = json.dumps(content).encode()
        (folder / "dataset_small.json").write_bytes(text)
        return name


class TableDoor(_DatasetDoor):
    name = "dataset, CSV and JSON lines"
    attack = "faults in lines, separators, quotes and encodings"

    def path(self, folder: Path) -> Path:
        return next(path for path in folder.iterdir() if path.name.startswith("data."))

    def make(self, rng: Random, folder: Path) -> str:
        for name, content in self.pictures.items():
            (folder / name).write_bytes(content)
        ending = rng.choice(("csv", "tsv", "jsonl", "txt"))
        names = list(self.pictures)
        if ending == "jsonl":
            rows = [{"image": name, "captions": ["a dog", "a cat"]} for name in names]
            lines = [json.dumps(row).encode() for row in rows]
            attack, lines[rng.randrange(4)] = mutate_json(rng, rng.choice(rows))
            text = b"\n".join(lines)
        else:
            comma = {"csv": ",", "tsv": "\t", "txt": "|"}[ending]
            rows_text = [["image", "caption"], *([name, "a dog"] for name in names)]
            row = rng.choice(rows_text)
            row[rng.randrange(2)] = str(rng.choice(TEXTS))
            text = "\n".join(comma.join(row) for row in rows_text).encode("utf-8", "surrogatepass")
            attack = "odd texts"
            if rng.random() < 0.6:
                attack, text = mutate_bytes(rng, text)
            elif rng.random() < 0.3:
                attack, text = "open quote", text.replace(b"a dog", b'"' + b"x" * 200_000, 1)
        (folder / f"data.{ending}").write_bytes(text)
        return attack


class HuggingFaceDoor(_DatasetDoor):
    name = "dataset, Hugging Face folder"
    attack = "faults in Parquet files, metadata and paths of pictures"
    needs = ("datasets",)

    def prepare(self, work: Path) -> None:
        import datasets

        super().prepare(work)
        datasets.disable_progress_bars()
        os.environ["HF_HUB_OFFLINE"] = "1"
        self.parquet = _parquet(self.pictures)

    def make(self, rng: Random, folder: Path) -> str:
        if rng.random() < 0.5:
            name, content = mutate_bytes(rng, self.parquet)
            (folder / "test-00000-of-00001.parquet").write_bytes(content)
            return name
        if rng.random() < 0.3:
            name, path = (
                "path of a picture outside",
                rng.choice(("../outside/secret.txt", "/etc/passwd")),
            )
            table = _parquet({path: b""}, with_path=True)
            (folder / "test-00000-of-00001.parquet").write_bytes(table)
            return name
        for file, content in self.pictures.items():
            (folder / file).write_bytes(content)
        rows = [{"file_name": file, "text": "a dog"} for file in self.pictures]
        lines = [json.dumps(row).encode() for row in rows]
        name, lines[0] = mutate_json(rng, rows[0])
        (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
        return name


def _parquet(pictures: dict[str, bytes], with_path: bool = False) -> bytes:
    import pyarrow
    from pyarrow import parquet

    images = [
        {"bytes": content or None, "path": name if with_path else None}
        for name, content in pictures.items()
    ]
    table = pyarrow.table({"image": images, "caption": ["a dog"] * len(images)})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


class SourceDoor(Door):
    name = "sources of images"
    attack = "faults in zip, tar, Parquet, lists and folders: bombs, links, devices, paths"

    def prepare(self, work: Path) -> None:
        import pyarrow.parquet  # noqa: F401 - loaded before memory is limited

        self.pictures, self.bundle = samples.pictures(), work / samples.BUNDLE
        self.parquet = _parquet(self.pictures)

    def make(self, rng: Random, folder: Path) -> str:
        kind = rng.choice(("zip", "zip", "tar", "tar", "parquet", "txt", "folder"))
        if kind == "zip":
            name, content = mutate_zip(rng, self.pictures)
        elif kind == "tar":
            name, content = mutate_tar(rng, self.pictures)
        elif kind == "parquet":
            name, content = mutate_bytes(rng, self.parquet)
        elif kind == "txt":
            lines = [
                *self.pictures,
                *rng.choices(TEXTS, k=3),
                "/dev/zero",
                "/dev/stdin",
                ".",
                "x\r",
            ]
            rng.shuffle(lines)
            name, content = "list", "\n".join(lines).encode("utf-8", "surrogatepass")
            if rng.random() < 0.8:
                content = content.decode("utf-8", "ignore").encode()
        else:
            return f"folder: {self._folder(rng, folder / 'x')}"
        (folder / f"x.{kind}").write_bytes(content)
        return f"{kind}: {name}"

    def _folder(self, rng: Random, folder: Path) -> str:
        folder.mkdir()
        for name, content in self.pictures.items():
            (folder / name).write_bytes(content)
        kind = rng.randrange(6)
        if kind == 0:
            (folder / "loop").symlink_to(folder)
            return "link to itself"
        if kind == 1:
            (folder / "x.png").symlink_to(rng.choice(("x.png", "/dev/zero", "/dev/random")))
            return "link to a device or itself"
        if kind == 2:
            os.mkfifo(folder / "x.png")
            return "pipe"
        if kind == 3:
            with (folder / "x.png").open("wb") as file:
                file.truncate(1 << 40)
            return "sparse file of a terabyte"
        if kind == 4:
            (folder / "x.png").mkdir()
            return "folder with the name of a picture"
        with open(os.fsencode(folder) + b"/\xff\xfe.png", "wb") as file:  # noqa: PTH123 - bytes
            file.write(self.pictures["a.png"])
        return "name that isn't UTF-8"

    def open(self, folder: Path) -> None:
        from hat_export.data.preprocess import open_image
        from hat_export.data.sources import ImageReader, list_images
        from hat_export.errors import InputError

        refused = []
        with ImageReader() as reader:
            for ref in list_images([next(folder.iterdir())]):
                try:
                    open_image(reader.read(ref))
                except InputError as error:  # skipped and reported by the command
                    refused.append(error)
        if refused:
            raise refused[0]

    def command(self, folder: Path) -> list[str]:
        paths = [next(folder.iterdir()), folder.parent / "x.hatidx"]
        return ["hat-export", "index", str(self.bundle), *map(str, paths)]


class PictureDoor(Door):
    name = "pictures"
    attack = "damage, bombs, odd modes, animations, rotations, in every format"

    def prepare(self, work: Path) -> None:
        self.index, self.bundle = work / samples.CAPTION_INDEX, work / samples.BUNDLE
        self.formats = _formats()

    def make(self, rng: Random, folder: Path) -> str:
        if rng.random() < 0.1:
            name, content = "bomb", _png_bomb(rng)
        else:
            name = rng.choice(list(self.formats))
            content = self.formats[name]
            if rng.random() < 0.9:
                attack, content = mutate_bytes(rng, content)
                name = f"{name}: {attack}"
        (folder / "x.png").write_bytes(content)
        return name

    def open(self, folder: Path) -> None:
        from hat_export.data.dataset import decode
        from hat_export.data.preprocess import ImagePreprocessor
        from hat_export.errors import DatasetError
        from hat_export.spec import OFFICIAL

        prepare = ImagePreprocessor.from_spec(OFFICIAL)
        path = folder / "x.png"
        with contextlib.suppress(DatasetError):
            prepare([decode(path.read_bytes(), "x")])
        pixels = prepare([path])
        assert pixels.shape == (1, 3, 224, 224)

    def command(self, folder: Path) -> list[str]:
        asked = ["--image", str(folder / "x.png"), "--bundle", str(self.bundle)]
        return ["hat-export", "search", str(self.index), *asked]


def _formats() -> dict[str, bytes]:
    """A small picture in every format and mode that Pillow writes here."""
    from PIL import Image

    made = {}
    for kind in (
        "png",
        "jpeg",
        "gif",
        "webp",
        "bmp",
        "tiff",
        "ppm",
        "jpeg2000",
        "ico",
        "tga",
        "pcx",
    ):
        for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"):
            file = io.BytesIO()
            try:
                picture = Image.linear_gradient("L").resize((24, 20))
                if mode == "I;16":
                    picture = Image.frombytes("I;16", (24, 20), bytes(range(240)) * 4)
                else:
                    picture = picture.convert("RGB" if mode in ("P", "CMYK", "YCbCr") else "L")
                    picture = picture.convert(mode)
                picture.save(file, kind)
            except (OSError, ValueError, KeyError):
                continue
            made[f"{kind} {mode}"] = file.getvalue()
    frames = [Image.new("P", (9, 9), n) for n in range(4)]
    for kind in ("gif", "webp", "png", "tiff"):
        file = io.BytesIO()
        frames[0].save(file, kind, save_all=True, append_images=frames[1:])
        made[f"{kind} animated"] = file.getvalue()
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (30, 10), "red").save(file, "jpeg", exif=exif)
    made["jpeg rotated by EXIF"] = file.getvalue()
    for name, size in (("one pixel", (1, 1)), ("a line", (3000, 1)), ("a column", (1, 3000))):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "png")
        made[name] = file.getvalue()
    return made


def _png_bomb(rng: Random) -> bytes:
    """A PNG of a few kilobytes that states up to a hundred billion pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    width, height = rng.choice(
        ((50_000, 50_000), (300_000, 300_000), (20_000, 8_000), (1 << 30, 1))
    )
    head = struct.pack(
        ">IIBBBBB", width, height, rng.choice((8, 16)), rng.choice((0, 2, 6)), 0, 0, 0
    )
    body = zlib.compress(bytes(5_000_000))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20))) if rng.random() < 0.2 else b""
    parts = (chunk(b"IHDR", head), text, chunk(b"IDAT", body), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class CaptionDoor(Door):
    name = "captions"
    attack = "emoji, right to left, zero width, controls, surrogates, a megabyte, nothing"

    PIECES = (
        "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631",
        "\u200b", "\u202e", "\ufeff", "\0", "\x1b[31m", "\ud800", "\udfff", "\uffff", "\u4e2d",
        "e\u0301\u0302" * 50, "\n", "\r\n", "\u2028", " ", "", "[CLS]", "[MASK]", "[PAD]", "##ing",
        "dog", "A", "\u0130", "\ufb01", "\u1e9e", "1" * 500, "'", '"', "<b>", "&amp;", "\U0010ffff",
        "\u0e01" * 30, "\t", "\x85", "\xad",
    )  # fmt: skip

    def prepare(self, work: Path) -> None:
        from hat_export.runtime.backends.opening import open_bundle

        self.bundle = work / samples.BUNDLE
        self.session = open_bundle(self.bundle, threads=1)

    def make(self, rng: Random, folder: Path) -> str:
        count = rng.choice((0, 1, 3, 30, 30, 200))
        text = "".join(rng.choices(self.PIECES, k=count))
        name = "mixture"
        if rng.random() < 0.05:
            name, text = "a megabyte", (text or "x") * (1_000_000 // max(1, len(text)) + 1)
        raw = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.2:
            name, raw = mutate_bytes(rng, raw or b"x")
        (folder / "captions.txt").write_bytes(raw)
        return name

    def open(self, folder: Path) -> None:
        import numpy as np

        from hat_export.errors import InputError

        raw = (folder / "captions.txt").read_bytes()
        refused = None
        # As a caller of the API may have it, and as a command line or a file gives it.
        texts = [raw.decode("utf-8", way) for way in ("surrogateescape", "replace")]
        for text in [*texts, raw.decode("utf-8", "surrogatepass") if _passes(raw) else "x"]:
            try:
                found = self.session.encode_texts([text, "a dog"])
            except InputError as error:
                refused = error
                continue
            assert len(found) == 2
            assert 2 <= found.lengths[0] <= self.session.spec.max_words
            assert all(np.isfinite(level[0, : found.lengths[0]]).all() for level in found.levels)
        if refused:
            raise refused

    def command(self, folder: Path) -> list[str]:
        paths = [self.bundle, folder / "captions.txt", folder / "x.hatidx"]
        return ["hat-export", "index", *map(str, paths), "--captions"]


def _passes(raw: bytes) -> bool:
    try:
        raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True
