"""Checkpoints: PyTorch files old and new, safetensors, folders, and pickles that run code."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import samples
from doors import CANARY, Door
from mutations import mutate_bytes, mutate_json, mutate_zip


class _CheckpointDoor(Door):
    """A single file, for the command that exports it."""

    file = "hat.ckpt"

    def prepare(self, work: Path) -> None:
        self.sound = work / samples.CHECKPOINT
        self.spec = (self.sound / "spec.json").read_text()

    def open(self, folder: Path) -> None:
        from hat_export.model.checkpoint import load_hat
        from hat_export.spec import ModelSpec

        load_hat(folder / self.file, ModelSpec.parse(self.spec), self.sound / "vocab.txt")

    def command(self, folder: Path) -> list[str]:
        spec = [
            "--spec",
            str(self.sound / "spec.json"),
            "--vocabulary",
            str(self.sound / "vocab.txt"),
        ]
        return ["hat-export", "onnx", str(folder / self.file), str(folder / "out"), *spec]


class ZipCheckpointDoor(_CheckpointDoor):
    name = "checkpoint, PyTorch zip"
    attack = "faults in archive, pickle and tensors"

    def prepare(self, work: Path) -> None:
        super().prepare(work)
        with zipfile.ZipFile(work / samples.ZIP_CHECKPOINT) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.pickle = next(name for name in self.members if name.endswith("data.pkl"))

    def make(self, rng: Random, folder: Path) -> str:
        members = dict(self.members)
        if rng.random() < 0.5:
            name, members[self.pickle] = mutate_pickle(rng, members[self.pickle])
            content = _stored(members)
        else:
            name, content = mutate_zip(rng, members, stored=True)
        (folder / self.file).write_bytes(content)
        return name


class LegacyDoor(_CheckpointDoor):
    name = "checkpoint, PyTorch before 1.6"
    attack = "faults in pickles and tensors"

    def prepare(self, work: Path) -> None:
        super().prepare(work)
        self.content = (work / samples.LEGACY_CHECKPOINT).read_bytes()

    def make(self, rng: Random, folder: Path) -> str:
        # The pickles are a small part at the beginning, and every fault in them counts.
        end = rng.choice((200, 40_000, len(self.content)))
        name, head = mutate_pickle(rng, self.content[:end])
        (folder / self.file).write_bytes(head + self.content[end:])
        return name


def mutate_pickle(rng: Random, content: bytes) -> tuple[str, bytes]:
    """Faults in a pickle: numbers that stand for sizes, opcodes, names."""
    kind = rng.randrange(5)
    changed = bytearray(content)
    if kind == 0:  # BININT: sizes, strides and offsets of tensors
        places = [
            at for at in range(len(changed) - 6) if changed[at : at + 1] in (b"K", b"M", b"J")
        ]
        if places:
            at = rng.choice(places)
            number = struct.pack("<i", rng.choice((-1, 0, 1 << 20, (1 << 31) - 1, -(1 << 31))))
            changed[at : at + 2] = b"J" + number
        return "sizes of tensors", bytes(changed)
    if kind == 1:
        at = rng.randrange(len(changed))
        changed[at] = rng.choice(
            b"(.0125FGIJKLMNPQRSTUVXabcdeghijlopqrstu}]\x80\x81\x88\x89\x8a\x8b\x8c\x93\x95"
        )
        return "opcodes", bytes(changed)
    if kind == 2:
        number = rng.choice(
            (b"\x8b\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255, b"r\xff\xff\xff\x7f")
        )
        at = rng.randrange(len(changed))
        changed[at:at] = number
        return "huge numbers and memos", bytes(changed)
    if kind == 3:
        old = rng.choice((b"state_dict", b"FloatStorage", b"_rebuild_tensor_v2", b"OrderedDict"))
        new = rng.choice((b"DoubleStorage", b"BoolStorage", b"_rebuild_parameter", b"x", b"os"))
        return "other names", bytes(changed).replace(old, new[: len(old)].ljust(len(old), b"_"), 1)
    return mutate_bytes(rng, content)


def _stored(members: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return memory.getvalue()


class SafetensorsDoor(_CheckpointDoor):
    name = "checkpoint, safetensors"
    attack = "faults in header and offsets"
    file = "hat.safetensors"

    def prepare(self, work: Path) -> None:
        super().prepare(work)
        content = (self.sound / "model.safetensors").read_bytes()
        size = int.from_bytes(content[:8], "little")
        self.header, self.numbers = json.loads(content[8 : 8 + size]), content[8 + size :]

    def make(self, rng: Random, folder: Path) -> str:
        name, header = mutate_json(rng, self.header)
        size = len(header) if rng.random() < 0.8 else rng.choice((0, 1, 1 << 62, len(header) + 9))
        (folder / self.file).write_bytes(size.to_bytes(8, "little") + header + self.numbers)
        return name


class FolderDoor(Door):
    name = "checkpoint folder: spec and vocabulary"
    attack = "faults in spec.json and vocab.txt"

    def prepare(self, work: Path) -> None:
        self.sound = work / samples.CHECKPOINT
        self.spec = json.loads((self.sound / "spec.json").read_text())
        self.vocabulary = (self.sound / "vocab.txt").read_bytes()

    def make(self, rng: Random, folder: Path) -> str:
        shutil.copytree(self.sound, folder / "model")
        if rng.random() < 0.8:
            name, content = mutate_json(rng, self.spec)
            (folder / "model" / "spec.json").write_bytes(content)
            return name
        name, content = mutate_bytes(rng, self.vocabulary)
        (folder / "model" / "vocab.txt").write_bytes(content)
        return name

    def open(self, folder: Path) -> None:
        from hat_export.model.checkpoint import load_hat

        load_hat(folder / "model")

    def command(self, folder: Path) -> list[str]:
        return ["hat-export", "onnx", str(folder / "model"), str(folder / "out")]


class _Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: object, state: Any = None) -> None:
        self.all = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.all


def exploits(canary: Path) -> dict[str, Any]:
    """Objects whose unpickling by ``pickle.load`` makes a file, in all the usual ways."""
    import torch

    touch, source = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    nested = pickle.dumps(_Call(os.system, touch))
    return {
        "os.system": _Call(os.system, touch),
        "os.popen": _Call(os.popen, touch),
        "subprocess.Popen": _Call(subprocess.Popen, ["touch", str(canary)]),
        "subprocess.run": _Call(subprocess.run, ["touch", str(canary)]),
        "builtins.eval": _Call(eval, source),
        "builtins.exec": _Call(exec, source),
        "builtins.open": _Call(open, str(canary), "w"),
        "builtins.__import__": _Call(__import__, "this"),
        "builtins.compile": _Call(compile, source, "x", "exec"),
        "functools.partial": _Call(functools.partial(os.system, touch)),
        "functools.reduce": _Call(functools.reduce, os.system, [touch]),
        "map of a call": _Call(list, _Call(map, os.system, [touch])),
        "pickle in a pickle": _Call(pickle.loads, nested),
        "torch.load": _Call(torch.load, str(canary)),
        "torch.hub": _Call(torch.hub.load, "a/b", "c"),
        "numpy.load": _Call(__import__("numpy").load, str(canary), None, True),
        "numpy object array": __import__("numpy").array([_Call(os.system, touch)], dtype=object),
        "shutil.rmtree": _Call(shutil.rmtree, str(canary.parent / "outside")),
        "path": _Call(Path.touch, canary),
        "state by eval": _Call(Exception, "x", state={"a": _Call(eval, source)}),
        "setattr on a module": _Call(setattr, Path, "ps1", "x"),
        "yaml": _Global("yaml", "unsafe_load", f"!!python/object/apply:os.system ['{touch}']"),
        "yaml loader": _Global("yaml.loader", "UnsafeLoader", "x"),
        "joblib": _Global("joblib", "load", str(canary)),
        "pandas": _Global("pandas", "read_pickle", str(canary)),
        "dotted name": _Global("torch", "os.system", touch),
        "through a private name": _Global("torch.serialization", "os.system", touch),
        "Python 2 names": _Global("commands", "getoutput", touch),
        "posix": _Global("posix", "system", touch),
        "runpy": _Global("runpy", "run_path", str(canary)),
        "code of a function": _Global("types", "FunctionType", "x"),
        "numpy testing": _Global("numpy.testing._private.utils", "runstring", source),
        "torch package": _Global("torch.package", "PackageImporter", str(canary)),
        "torch jit": _Global("torch.jit", "load", str(canary)),
        "torch distributed rpc": _Global("torch.distributed.rpc.internal", "_run_function", source),
        "asyncio": _Global("asyncio.unix_events", "_UnixSubprocessTransport", touch),
        "profile": _Global("cProfile", "runctx", source),
        "timeit": _Global("timeit", "timeit", source),
        "pty": _Global("pty", "spawn", touch),
        "bdb": _Global("bdb", "Bdb.run", source),
        "multiprocessing": _Global("multiprocessing.util", "spawnv_passfds", touch),
        "idlelib": _Global("idlelib.pyshell", "ModifiedInterpreter.runcode", source),
        "lib2to3": _Global("lib2to3.pgen2.pgen", "ParserGenerator.make_label", source),
        "sqlalchemy": _Global("sqlalchemy.util.langhelpers", "_exec_code_in_env", source),
        "ensurepip": _Global("ensurepip", "_run_pip", source),
        "pydoc": _Global("pydoc", "pipepager", touch),
        "webbrowser": _Global("webbrowser", "open", "file:///etc/passwd"),
        "logging config": _Global("logging.config", "_resolve", "os.system"),
        "distutils": _Global("distutils.file_util", "write_file", str(canary)),
    }


class _Global:
    """A call by a name that needn't exist here: written into the pickle by hand."""

    def __init__(self, module: str, name: str, argument: str) -> None:
        self.module, self.name, self.argument = module, name, argument


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes :class:`_Global` as a call."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_call(self, call: _Global) -> None:
        self.write(b"c" + call.module.encode() + b"\n" + call.name.encode() + b"\n")
        self.save((call.argument,))
        self.write(b"R")

    dispatch[_Global] = save_call


class _Module:
    """What torch.save takes for a pickle module."""

    Pickler = _Pickler
    HIGHEST_PROTOCOL = pickle.HIGHEST_PROTOCOL

    @staticmethod
    def dump(value: object, file: Any, protocol: int) -> None:
        _Pickler(file, protocol).dump(value)


class ExploitDoor(_CheckpointDoor):
    name = "checkpoint, exploits"
    attack = "pickles that run code when loaded"

    def make(self, rng: Random, folder: Path) -> str:
        import torch

        found = exploits(folder.parent / CANARY)
        name = rng.choice(list(found))
        payload: Any = found[name]
        for _ in range(rng.randrange(4)):
            payload = rng.choice(
                (
                    [payload],
                    (payload, 1),
                    {"a": payload},
                    {"deep": [1, (payload,)]},
                    [None, payload],
                )
            )
        state = {"vit_model.norm.bias": torch.zeros(3)}
        content: dict[Any, Any] = {"state_dict": state, "epoch": 1}
        key = rng.choice(
            ("state_dict", "callbacks", "hyper_parameters", "optimizer_states", "loops")
        )
        if key == "state_dict":
            state[rng.choice(("x", "vit_model.norm.bias"))] = payload
        else:
            content[key] = payload
        protocol = rng.choice((2, 2, 3, 4))
        path = folder / self.file
        try:
            zipped = rng.random() < 0.6
            torch.save(content, path, _Module, protocol, zipped)
        except Exception:  # torch checks some; by hand then
            members = {"hat/data.pkl": _dumped(content, protocol), "hat/version": b"3\n"}
            path.write_bytes(_stored(members))
        return name

    def open(self, folder: Path) -> None:
        """Every one of them has to be refused, for what it is or for what it isn't."""
        super().open(folder)
        raise AssertionError("a payload was accepted")


def _dumped(content: object, protocol: int) -> bytes:
    memory = io.BytesIO()
    _Pickler(memory, protocol).dump(content)
    return memory.getvalue()
