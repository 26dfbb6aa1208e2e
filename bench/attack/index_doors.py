"""Indexes, and the caches of features and scores that are made of them."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import samples
from doors import Door
from mutations import NUMBERS, mutate_bytes, mutate_json

PAGE, HEAD = 4096, 64


class IndexDoor(Door):
    attack = "faults in header, commit slots, segments and records, checksums made right"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = f"index of {kind}"

    def prepare(self, work: Path) -> None:
        from hat_export.runtime.backends.opening import open_bundle

        images = self.kind == "images"
        self.bundle = work / samples.BUNDLE
        path = work / (samples.IMAGE_INDEX if images else samples.CAPTION_INDEX)
        self.content = path.read_bytes()
        self.picture = work / samples.DATA / "a.png"
        self.session = open_bundle(self.bundle, threads=1)

    def make(self, rng: Random, folder: Path) -> str:
        name, content = mutate_index(rng, self.content)
        (folder / "x.hatidx").write_bytes(content)
        return name

    def open(self, folder: Path) -> None:
        from hat_export.bundle.bundle import Bundle
        from hat_export.index.query import (
            OpenSearch,
            check_model,
            found_captions,
            found_images,
            hits_page,
            open_index_file,
        )

        # As open_search does, which loads the model each time.
        with open_index_file(folder / "x.hatidx") as index:
            check_model(index, Bundle.read(self.bundle, verify=False))
            opened = OpenSearch(index, self.session)
            for limit in (None, 2):
                if self.kind == "images":
                    hits = found_images(opened, "a dog", 2, limit)
                    hits_page(opened, "a dog", hits, "")
                else:
                    hits = found_captions(opened, self.picture, 2, limit)
                    hits_page(opened, self.picture, hits, "")
            index.verify()

    def command(self, folder: Path) -> list[str]:
        search = ["a dog"] if self.kind == "images" else ["--image", str(self.picture)]
        index = str(folder / "x.hatidx")
        return ["hat-export", "search", index, *search, "--bundle", str(self.bundle)]


def mutate_index(rng: Random, sound: bytes) -> tuple[str, bytes]:
    """A fault in an index; in most of them checksums are made right behind it."""
    kind = rng.randrange(6)
    if kind == 0:
        return mutate_bytes(rng, sound)
    content = bytearray(sound)
    if kind == 1:  # the metadata
        _, _, header, length, _ = struct.unpack_from("<8sIIII", content)
        metadata = json.loads(content[3 * PAGE : 3 * PAGE + length])
        name, text = mutate_json(rng, metadata)
        padded = text + bytes(-len(text) % HEAD)
        body = content[header:]
        after = 3 * PAGE + len(padded)
        preamble = struct.pack("<8sIIII36x", b"HATIDX\r\n", 1, after, len(text), zlib.crc32(padded))
        content[3 * PAGE :] = padded + body
        content[:HEAD] = _sealed(preamble)
        for slot in (PAGE, 2 * PAGE):
            values = list(struct.unpack_from("<8sQQQQ", content, slot))
            if values[0] == b"HATCOMIT":
                values[4] += after - header
                content[slot : slot + HEAD] = _sealed(struct.pack("<8sQQQQ20x", *values))
        return f"metadata: {name}", bytes(content)
    if kind == 2:  # the preamble or a commit slot
        at = rng.choice((0, PAGE, 2 * PAGE))
        field, size = (8 + 4 * rng.randrange(4), 4) if at == 0 else (8 + 8 * rng.randrange(4), 8)
        value = (rng.choice(NUMBERS) + rng.choice((-1, 0, 1))) % (1 << (8 * size))
        content[at + field : at + field + size] = value.to_bytes(size, "little")
        content[at : at + HEAD] = _sealed(bytes(content[at : at + HEAD - 4]))
        return "numbers of the header", bytes(content)
    segments = _segments(content)
    at, payload, listing = rng.choice(segments)
    if kind == 3:  # the head of a segment
        field = 8 + 8 * rng.randrange(3)
        value = (rng.choice(NUMBERS) + rng.choice((-1, 0, 1))) % (1 << 64)
        content[at + field : at + field + 8] = value.to_bytes(8, "little")
        content[at : at + HEAD] = _sealed(bytes(content[at : at + HEAD - 4]))
        return "numbers of a segment", bytes(content)
    if kind == 4:  # the directory of a segment
        first = at + HEAD + payload
        _, directory = mutate_bytes(rng, bytes(content[first : first + listing]))
        directory = directory[:listing].ljust(listing, b"\0")
        content[first : first + listing] = directory
        content[at + 32 : at + 36] = struct.pack("<I", zlib.crc32(directory))
        if rng.random() < 0.3:
            content[at : at + 8] = rng.choice((b"HATSEGMT", b"HATDELET", b"HATNOTES", b"HATOTHER"))
        content[at : at + HEAD] = _sealed(bytes(content[at : at + HEAD - 4]))
        return "directory of a segment", bytes(content)
    at, payload, _ = max(segments, key=lambda segment: segment[1])  # records
    for _ in range(rng.choice((1, 4, 64))):
        place = at + HEAD + rng.randrange(min(payload, rng.choice((8, 64, payload))))
        content[place : place + 4] = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
    return "numbers of records", bytes(content)


def _segments(content: bytearray) -> list[tuple[int, int, int]]:
    at = struct.unpack_from("<I", content, 12)[0]
    found = []
    while at + HEAD <= len(content):
        _, _, payload, listing = struct.unpack_from("<8sQQQ", content, at)
        found.append((at, payload, listing))
        at += HEAD + payload + listing
    return found


def _sealed(block: bytes) -> bytes:
    return block + struct.pack("<I", zlib.crc32(block))


class CacheDoor(Door):
    name = "cache of features and scores"
    attack = "faults in every file of it"

    def prepare(self, work: Path) -> None:
        from hat_export.data.readers import read_dataset
        from hat_export.runtime.backends.opening import open_bundle

        self.data, self.bundle = work / samples.DATA, work / samples.BUNDLE
        self.session = open_bundle(self.bundle, threads=1)
        self.dataset = read_dataset(self.data, "test").take(2)
        self.cache = work / "cache"
        self.scores: Any = None
        self._use(self.cache)

    def make(self, rng: Random, folder: Path) -> str:
        cache = Path(shutil.copytree(self.cache, folder / "cache"))
        path = rng.choice(sorted(path for path in cache.rglob("*") if path.is_file()))
        if path.suffix == ".hatidx":
            name, content = mutate_index(rng, path.read_bytes())
        elif path.suffix == ".json":
            name, content = mutate_json(rng, json.loads(path.read_text()))
        else:
            name, content = mutate_bytes(rng, path.read_bytes())
        path.write_bytes(content)
        return f"{path.suffix}: {name}"

    def open(self, folder: Path) -> None:
        self._use(folder / "cache")

    def _use(self, cache: Path) -> None:
        import numpy as np

        from hat_export.parity.embeddings import DatasetDigests, encode_dataset, encoder_keys
        from hat_export.parity.scores import Scorer, score_levels

        cache.mkdir(exist_ok=True)
        keys = encoder_keys(self.bundle, self.session)
        digests = DatasetDigests.read(self.dataset)
        with encode_dataset(self.session, keys, self.dataset, digests, cache) as encoded:
            scorer = Scorer.of(self.session.spec)
            found = np.array(score_levels(encoded, encoded, scorer, cache, 1).total)
        if self.scores is None:
            self.scores = found
        # What is made of a damaged cache has to be what was there before, to the last bit.
        assert np.array_equal(found, self.scores)

    def command(self, folder: Path) -> list[str]:
        sides = [str(self.bundle), str(self.bundle)]
        options = ["--data", str(self.data), "--cache", str(folder / "cache")]
        return ["hat-bench", "parity", *sides, *options]
