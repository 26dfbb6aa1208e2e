"""Bundles: manifests, graphs, other parts, and what is made of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import samples
from doors import Door
from mutations import TEXTS, mutate_bytes, mutate_json

if TYPE_CHECKING:
    import onnx

GRAPHS = ("image.onnx", "text.onnx", "alignment.onnx")


class _BundleDoor(Door):
    def prepare(self, work: Path) -> None:
        self.sound = work / samples.BUNDLE
        self.manifest = json.loads((self.sound / "manifest.json").read_text())

    def copy(self, folder: Path) -> Path:
        """A copy whose files are links, but for those that are changed."""
        bundle = folder / "bundle"
        bundle.mkdir()
        for path in self.sound.iterdir():
            os.link(path, bundle / path.name)
        return bundle

    def open(self, folder: Path) -> None:
        from hat_export.runtime.backends.opening import open_bundle

        with open_bundle(folder / "bundle", threads=1) as session:
            session.encode_texts(["a dog"])

    def command(self, folder: Path) -> list[str]:
        return ["hat-export", "inspect", str(folder / "bundle")]


def replace(path: Path, content: bytes) -> None:
    """Write a file of a copy, not the file that it is a link of."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


class ManifestDoor(_BundleDoor):
    name = "bundle, manifest"
    attack = "faults in manifest.json"

    def make(self, rng: Random, folder: Path) -> str:
        bundle = self.copy(folder)
        name, content = mutate_json(rng, self.manifest)
        if rng.random() < 0.03:
            name, content = "larger than any manifest", b" " * (5 << 20) + content
        replace(bundle / "manifest.json", content)
        return name

    def open(self, folder: Path) -> None:
        from hat_export.bundle.bundle import Bundle
        from hat_export.bundle.inspect import bundle_report

        report = bundle_report(Bundle.read(folder / "bundle"), True)
        report.to_html()
        report.to_markdown()
        super().open(folder)


class HashDoor(_BundleDoor):
    name = "bundle, files"
    attack = "changed, missing and linked files"

    def make(self, rng: Random, folder: Path) -> str:
        bundle = self.copy(folder)
        name = rng.choice(sorted(set(self.manifest["files"])))
        path = bundle / name
        kind = rng.randrange(8)
        if kind == 0:
            path.unlink()
            return "missing"
        if kind == 1:
            path.unlink()
            path.symlink_to(rng.choice((self.sound / name, folder.parent / "outside/secret.txt")))
            return "link"
        if kind == 2:
            path.unlink()
            path.mkdir()
            return "folder"
        if kind == 3:
            path.unlink()
            os.mkfifo(path)
            return "pipe"
        attack, content = mutate_bytes(rng, path.read_bytes())
        if content == path.read_bytes():
            content += b"x"
        replace(path, content)
        return attack

    def open(self, folder: Path) -> None:
        super().open(folder)
        raise AssertionError("a changed file was accepted")


class GraphDoor(_BundleDoor):
    name = "bundle, graphs with right hashes"
    attack = "external data elsewhere, cycles, huge sizes, foreign operators, damage"

    def prepare(self, work: Path) -> None:
        import onnx

        super().prepare(work)
        self.models = {name: onnx.load(self.sound / name) for name in GRAPHS[:2]}

    def make(self, rng: Random, folder: Path) -> str:
        bundle = self.copy(folder)
        file = rng.choice(list(self.models))
        if rng.random() < 0.3:
            name, content = mutate_bytes(rng, (self.sound / file).read_bytes())
        else:
            import onnx

            model = onnx.ModelProto()
            model.CopyFrom(self.models[file])
            name = mutate_graph(rng, model)
            content = model.SerializeToString()
        replace(bundle / file, content)
        text = (bundle / "manifest.json").read_bytes()
        replace(bundle / "manifest.json", text)
        samples.rehash(bundle, file)
        return name


def mutate_graph(rng: Random, model: onnx.ModelProto) -> str:
    """A fault in a graph that stays a protobuf."""
    from onnx import TensorProto, helper

    graph = model.graph
    node, weight = rng.choice(graph.node), rng.choice(graph.initializer)
    kind = rng.randrange(12)
    if kind == 0:
        places = (
            "../outside/secret.txt", "../../outside/secret.txt", "/etc/passwd", "x/../../secret",
            "tokenizer.json", "self_test.safetensors", "/dev/zero", "", "a\0b", "\\\\server\\share",
        )  # fmt: skip
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        size = rng.choice(("4", "-1", str(1 << 62), "x", ""))
        for key, value in (("location", rng.choice(places)), ("offset", "0"), ("length", size)):
            weight.external_data.add(key=key, value=value)
        return "external data elsewhere"
    if kind == 1 and node.input:
        node.input[0] = graph.node[-1].output[0]
        return "cycle"
    if kind == 2:
        weight.dims[:] = rng.choice(([1 << 62], [1 << 40, 1 << 40], [-1], [0], [1 << 31, 4]))
        return "huge sizes"
    if kind == 3:
        node.op_type = rng.choice(("Loop", "If", "Scan", "NonExistent", "", "x" * 100_000))
        return "other operator"
    if kind == 4:
        node.domain = rng.choice(("ai.onnx.ml", "com.evil", "ai.onnx.preview.training", "../x"))
        return "other domain"
    if kind == 5:
        model.opset_import[0].version = rng.choice((0, 1, 999, -1, (1 << 62)))
        return "other opset"
    if kind == 6:
        for _ in range(rng.choice((1, 200_000))):
            graph.node.add(op_type="Identity", input=[graph.node[0].output[0]], output=["q"])
        return "too many nodes, outputs twice"
    if kind == 7:
        del graph.node[rng.randrange(len(graph.node))]
        return "node missing"
    if kind == 8:
        size = helper.make_tensor("size", TensorProto.INT64, [2], [1 << 20, 1 << 20])
        graph.initializer.append(size)
        bomb = helper.make_node("ConstantOfShape", ["size"], ["bomb"])
        graph.node.insert(0, bomb)
        return "constant of a terabyte"
    if kind == 9:
        inner = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
        node.attribute.append(helper.make_attribute("body", inner))
        return "graph within a graph"
    if kind == 10:
        text = str(rng.choice(TEXTS)).encode("utf-8", "replace").decode()
        if node.output:
            node.output[0] = text
        return "other names"
    if kind == 11:
        weight.data_type = rng.choice((0, 2, 7, 8, 16, 17, 23, 99))
    return "other element type"


class PartDoor(_BundleDoor):
    name = "bundle, other parts with right hashes"
    attack = "faults in tokenizer, projections, self-test and spec"

    def prepare(self, work: Path) -> None:
        super().prepare(work)
        self.tokenizer = json.loads((self.sound / "tokenizer.json").read_text())
        self.arrays = {
            name: (self.sound / name).read_bytes()
            for name in ("projections.safetensors", "self_test.safetensors")
        }

    def make(self, rng: Random, folder: Path) -> str:
        bundle = self.copy(folder)
        replace(bundle / "manifest.json", (self.sound / "manifest.json").read_bytes())
        kind = rng.random()
        if kind < 0.3:
            file = "tokenizer.json"
            vocabulary = self.tokenizer["model"]["vocab"]
            few = dict(list(vocabulary.items())[:50])
            small = {**self.tokenizer, "model": {**self.tokenizer["model"], "vocab": few}}
            name, content = mutate_json(rng, small if rng.random() < 0.5 else self.tokenizer)
        elif kind < 0.9:
            file = rng.choice(list(self.arrays))
            name, content = self._damaged(rng, self.arrays[file])
        else:
            manifest = json.loads(json.dumps(self.manifest))
            key = rng.choice(list(manifest["spec"]))
            value = manifest["spec"][key]
            if isinstance(value, int):
                manifest["spec"][key] = rng.choice((value * 2, value + 1, 1 << 30, 1))
            replace(bundle / "manifest.json", json.dumps(manifest).encode())
            return "another spec"
        replace(bundle / file, content)
        samples.rehash(bundle, file)
        return name

    @staticmethod
    def _damaged(rng: Random, sound: bytes) -> tuple[str, bytes]:
        import pickle

        import numpy as np
        from safetensors.numpy import load, save

        kind = rng.randrange(7)
        end = 8 + int.from_bytes(sound[:8], "little")
        if kind == 0:
            arrays = load(sound)
            key = rng.choice(list(arrays))
            types = ("float64", "int8", "uint64", "float16", "bool")
            return "other element type", save(
                {**arrays, key: arrays[key].astype(rng.choice(types))}
            )
        if kind == 1:
            arrays = load(sound)
            key = rng.choice(list(arrays))
            value = arrays[key]
            others = (value[..., :1], value[None], value[:0], value.T, value * np.nan)
            return "other shape or NaN", save(
                {**arrays, key: np.ascontiguousarray(rng.choice(others))}
            )
        if kind == 2:
            name, header = mutate_json(rng, json.loads(sound[8:end]))
            return f"header: {name}", len(header).to_bytes(8, "little") + header + sound[end:]
        if kind == 3:
            size = rng.choice((0, 1, end, len(sound), 1 << 40, (1 << 64) - 1))
            return "false length of the header", size.to_bytes(8, "little") + sound[8:]
        if kind == 4:
            return "a bare pickle", pickle.dumps({"a": 1})
        return mutate_bytes(rng, sound)


class TritonDoor(ManifestDoor):
    name = "bundle, for a Triton repository"
    attack = "faults in manifest.json"
    needs = ("tritonclient",)

    def open(self, folder: Path) -> None:
        from hat_export.bundle.bundle import Bundle
        from hat_export.serving.repository import ServingOptions, write_repository

        write_repository(Bundle.read(folder / "bundle"), folder / "out", ServingOptions())

    def command(self, folder: Path) -> list[str]:
        return ["hat-export", "triton", str(folder / "bundle"), str(folder / "out")]


class EngineCacheDoor(Door):
    name = "cache of TensorRT engines, and engines of a bundle"
    attack = "faults in records, engines and what the manifest says of them"

    def prepare(self, work: Path) -> None:
        self.sound = work / samples.BUNDLE
        self.manifest = json.loads((self.sound / "manifest.json").read_text())
        engine: dict[str, Any] = {
            "file": "image.engine", "log": "image.build.log", "library": "tensorrt-rtx",
            "version": "1.7.1", "targets": [80, 89], "device": "", "tf32": False,
            "profiles": [{"images": [1, 8, 64]}], "attention_expected": 8, "attention_fused": 8,
            "attention_apart": [], "graph_sha256": "0" * 64,
        }  # fmt: skip
        self.manifest["engines"] = {"image": engine}
        self.record = {
            "layers": [{"name": "a", "nodes": ["b"]}], "device": "", "targets": [80],
            "warnings": {"x": 1}, "seconds": 1.5, "sha256": hashlib.sha256(b"x").hexdigest(),
        }  # fmt: skip

    def make(self, rng: Random, folder: Path) -> str:
        bundle = folder / "bundle"
        bundle.mkdir()
        for path in self.sound.iterdir():
            os.link(path, bundle / path.name)
        for name in ("image.engine", "image.build.log"):
            (bundle / name).write_bytes(rng.randbytes(200))
        replace(bundle / "manifest.json", json.dumps(self.manifest).encode())
        samples.rehash(bundle, "image.engine", "image.build.log")
        sound = json.loads((bundle / "manifest.json").read_text())
        name, engines = mutate_json(rng, sound["engines"])
        with contextlib.suppress(ValueError, RecursionError):
            sound["engines"] = json.loads(engines)
        (bundle / "manifest.json").write_text(json.dumps(sound))
        entry = folder / "cache" / "key"
        entry.mkdir(parents=True)
        (entry / "engine").write_bytes(b"x")
        _, record = mutate_json(rng, self.record)
        (entry / "manifest.json").write_bytes(record)
        return name

    def open(self, folder: Path) -> None:
        from hat_export.bundle.bundle import Bundle
        from hat_export.bundle.inspect import bundle_report
        from hat_export.runtime.backends.opening import open_bundle

        bundle_report(Bundle.read(folder / "bundle"), True).to_html()
        self._find(folder / "cache")
        with open_bundle(folder / "bundle", backend="tensorrt", threads=1):
            pass

    @staticmethod
    def _find(folder: Path) -> None:
        from hat_export.tensorrt.cache import EngineCache

        class Library:
            name, version = "tensorrt-rtx", "1.7.1"

        cache = EngineCache.__new__(EngineCache)
        cache._folder, cache._library = folder, Library()  # type: ignore[assignment]
        cache.find("key")

    def command(self, folder: Path) -> list[str]:
        return ["hat-export", "inspect", str(folder / "bundle")]
