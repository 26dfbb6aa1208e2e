"""Read the tensors of a PyTorch file (.ckpt, .pt, .pth) without ever running its pickle's code.

A PyTorch file is a pickle beside raw numbers, and a pickle may name any function for the reader
to import and call. Training frameworks put their own classes there too (Lightning uses callback
classes as dictionary keys), so a strict reader refuses nearly every real training checkpoint. The
reader here imports nothing and calls nothing that a file names:

* The few names that describe tensors (storage types, ``_rebuild_tensor_v2`` and its like,
  ``OrderedDict``) are answered by this module's own harmless stand-ins.
* Names that only serve to run code, reach files, processes or the network (:data:`DENIED_MODULES`,
  :data:`DENIED_NAMES`, anything of ``builtins`` but plain types) make the whole file be refused
  with :class:`~hat_export.errors.UnsafeCheckpointError`: no honest checkpoint carries them, and a
  user had better know. They are refused wherever they stand, called or not.
* Every other name becomes an inert placeholder: it isn't imported, "calling" it gives another
  placeholder, and state given to it is thrown away.

Numbers are read only for the tensors of the state dict (an optimizer's state stays on disk), and
the archive's CRC-32 of each is checked, which ``torch.load`` doesn't do.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from hat_export.errors import CheckpointError, UnsafeCheckpointError

#: Start of a file in PyTorch's format before 1.6: a pickle of the format's magic number.
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
ZIP_MAGIC = b"PK\x03\x04"

#: Top-level modules no name of which may appear in a checkpoint.
DENIED_MODULES = frozenset(
    "_frozen_importlib _imp _io _operator _pickle _posixsubprocess _socket _thread _winapi "
    "asyncio atexit bdb cProfile cffi cloudpickle code codecs codeop commands concurrent ctypes "
    "dill distutils doctest ensurepip faulthandler fileinput ftplib gc glob http imaplib imp "
    "importlib inspect io joblib jsonpickle linecache marshal mmap msvcrt multiprocessing nt "
    "ntpath operator os pdb pickle pickletools pip pkg_resources pkgutil platform poplib posix "
    "posixpath profile pty pydoc requests resource runpy select setuptools shelve shutil signal "
    "site smtplib socket socketserver sqlite3 ssl subprocess sys sysconfig telnetlib tempfile "
    "threading timeit trace traceback types urllib urllib3 uuid venv webbrowser winreg "
    "xmlrpc yaml zipfile zipimport".split()
) | {"functools"}

#: Names of denied modules that only hold data.
HARMLESS = frozenset(
    {
        ("functools", "partial"),
        ("types", "SimpleNamespace"),
        ("uuid", "UUID"),
        ("operator", "index"),
    }
)

#: The only names of ``builtins`` that may appear; even they become placeholders.
HARMLESS_BUILTINS = frozenset(
    "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple "
    "type Ellipsis NotImplemented".split()
)

#: Names refused in any module, as attributes and through re-exports.
DENIED_NAMES = frozenset(
    "__import__ delattr eval exec execfile getattr load_module popen runstring setattr "
    "spawn system".split()
)

#: Functions of ordinary libraries that read further pickles or run code.
DENIED_GLOBALS = frozenset(
    {
        ("numpy", "load"),
        ("pandas", "read_pickle"),
        ("torch", "load"),
        ("torch", "compile"),
        ("torch.serialization", "load"),
        ("torch.jit", "load"),
    }
)

#: Modules of torch that run or fetch code.
DENIED_PREFIXES = ("torch.hub", "torch.utils.cpp_extension", "torch._inductor", "torch._dynamo")

#: Tuples within tuples; torch.save writes four of them.
DEEPEST_TUPLE = 100

STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


class Placeholder:
    """Stands in for an unknown class, function or object of a pickle; does nothing at all."""

    def __new__(cls, *args: object, **keywords: object) -> Placeholder:
        """Take any arguments and forget them."""
        return object.__new__(cls)

    def __init__(self, *args: object, **keywords: object) -> None:
        """Take any arguments and forget them."""

    def __call__(self, *args: object, **keywords: object) -> Placeholder:
        """A call gives a placeholder."""
        return self

    def __setstate__(self, state: object) -> None:
        """Forget the state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Forget the item, for subclasses of dict."""

    def append(self, item: object) -> None:
        """Forget the item, for subclasses of list."""

    def extend(self, items: object) -> None:
        """Forget the items, for subclasses of list."""

    def add(self, item: object) -> None:
        """Forget the item, for subclasses of set."""


@dataclass(frozen=True)
class StorageType:
    """A storage class of torch, reduced to its element type."""

    dtype: torch.dtype


@dataclass(frozen=True)
class StorageRecord:
    """Where numbers of a file are, not read yet.

    Attributes:
        key: Name of the storage in the file.
        dtype: Element type.
        numel: Number of elements.
    """

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        """Size of the numbers in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a pickle describes it: a strided view of a storage."""

    storage: StorageRecord
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Rebuild:
    """Answers the names of torch's rebuild functions."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for a function")


class _RebuildTensor(_Rebuild):
    def __call__(
        self, storage: object, offset: object, size: object, stride: object, *rest: object
    ) -> TensorRecord | Placeholder:
        if not (isinstance(storage, StorageRecord) and isinstance(offset, int)):
            return Placeholder()
        if not (isinstance(size, tuple) and isinstance(stride, tuple)):
            return Placeholder()
        return TensorRecord(storage, offset, size, stride)


class _RebuildParameter(_Rebuild):
    def __call__(self, data: object, *rest: object) -> object:
        return data


def _denied(module: str, name: str) -> bool:
    """Whether a name only makes sense in a file that wants to run something."""
    if (module, name) in HARMLESS:
        return False
    parts = name.split(".")
    root = module.partition(".")[0]
    if root in ("builtins", "__builtins__"):
        return name not in HARMLESS_BUILTINS
    if root in DENIED_MODULES or (module, name) in DENIED_GLOBALS:
        return True
    if f"{module}.".startswith(tuple(f"{prefix}." for prefix in DENIED_PREFIXES)):
        return True
    # A dotted name walks through attributes, and modules have ``os`` among theirs.
    walks = len(parts) > 1 and any(
        part in DENIED_MODULES or part == "builtins" or part.startswith("__") for part in parts
    )
    return walks or any(part in DENIED_NAMES for part in parts)


Opcode = Callable[[Any], None]


def _refuse_opcode(unpickler: Any) -> None:
    raise pickle.UnpicklingError("an opcode that torch.save never writes")


def _depth_checked(load: Opcode) -> Opcode:
    def checked(unpickler: Any) -> None:
        load(unpickler)
        unpickler.check_depth()

    return checked


def _opcodes() -> dict[int, Opcode]:
    """What each opcode does, with the exceptions of this reader."""
    opcodes = dict(pickle._Unpickler.dispatch)
    for opcode in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
        opcodes[opcode[0]] = _depth_checked(opcodes[opcode[0]])
    # They make room for what they state before they read a byte of it.
    for opcode in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        opcodes[opcode[0]] = _refuse_opcode
    return opcodes


class RestrictedUnpickler(pickle._Unpickler):
    """Rebuilds plain containers and tensor records; see the module's policy.

    This is the unpickler in Python, not the one in C: a few bytes make the latter reserve gigabytes
    (for a memo of that number). It is slower, but there is little to a checkpoint's pickle.

    Args:
        file: Positioned at the start of a pickle; left behind its end.
        source: What to call the file in an error message.
    """

    def __init__(self, file: IO[bytes], source: Path) -> None:
        # Protocol 2 writes bytes and text as Python 2 did; no text of a checkpoint is needed.
        super().__init__(file, encoding="latin-1")
        self._source = source
        self._placeholders: dict[tuple[str, str], type[Placeholder]] = {}
        # Tuples are kept, so that no other object gets the id of one.
        self._depths: dict[int, tuple[int, tuple[object, ...]]] = {}
        self.storages: dict[str, StorageRecord] = {}

    dispatch = _opcodes()

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; nothing is imported.

        Raises:
            UnsafeCheckpointError: if the name is one that runs code.
        """
        # torch.save writes protocol 2, which names Python 3's modules as Python 2 did
        # (subprocess is ``commands``); whatever the file says, judge what it would mean today.
        old = (IMPORT_MAPPING.get(module, module), name)
        module, name = NAME_MAPPING.get((module, name), old)
        if _denied(module, name):
            raise UnsafeCheckpointError(
                f"{self._source}: refused, its pickle names {module}.{name}, which can run code; "
                "nothing was run. Get the checkpoint from a source you trust, or as .safetensors"
            )
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGE_DTYPES:
            return StorageType(STORAGE_DTYPES[name])
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if module == "torch._utils" and name in (
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
        ):
            return _RebuildParameter()
        # A class of its own per name: pickle builds instances of classes only.
        return self._placeholders.setdefault(
            (module, name), type("Placeholder", (Placeholder,), {"__doc__": f"{module}.{name}"})
        )

    stack: list[Any]  # of the class in pickle, which declares nothing

    def check_depth(self) -> None:
        """Refuse tuples in tuples in tuples: hashing a deep one overflows the machine's stack."""
        made = self.stack[-1]
        depth = 1 + max((self._depths.get(id(item), (0,))[0] for item in made), default=0)
        if depth > DEEPEST_TUPLE:
            raise pickle.UnpicklingError("tuples nested deeper than in any checkpoint")
        if isinstance(made, tuple):
            self._depths[id(made)] = (depth, made)

    def persistent_load(self, pid: Any) -> StorageRecord | Placeholder:
        """The record of a storage; anything else that is kept outside of the pickle is inert."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            return Placeholder()
        _, kind, key, _, numel = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("views of storages, a format of PyTorch before 0.4")
        if not isinstance(kind, StorageType) or not isinstance(numel, int) or numel < 0:
            return Placeholder()
        return self.storages.setdefault(str(key), StorageRecord(str(key), kind.dtype, numel))


Reader = Callable[[StorageRecord], bytearray]


def read_zip(path: Path) -> dict[str, Tensor]:
    """Tensors of a file that ``torch.save`` of PyTorch 1.6 or newer wrote.

    Args:
        path: A zip archive with ``*/data.pkl`` and ``*/data/*``.

    Returns:
        The state dict's tensors by their names in the file.

    Raises:
        CheckpointError: if the archive is truncated, damaged, or no state dict.
        UnsafeCheckpointError: if the pickle names a function that runs code.
    """
    size = path.stat().st_size
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: truncated or damaged zip archive ({error}); download or copy it again"
        ) from None
    with archive:
        names = archive.namelist()
        pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(
                f"{path}: a zip archive without a data.pkl; expected a checkpoint of torch.save "
                "(if it is an archive around one, unpack it first)"
            )
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in names:
            raise CheckpointError(
                f"{path}: a TorchScript model; expected the training checkpoint, a state dict"
            )

        def stored(name: str) -> zipfile.ZipInfo:
            info = archive.getinfo(name)
            # What isn't compressed can't be larger than the file.
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed, which torch.save never does")
            if info.file_size > info.compress_size or info.file_size > size:
                raise ValueError(f"{name} states {info.file_size} bytes, which aren't there")
            return info

        def read(record: StorageRecord) -> bytearray:
            info = stored(f"{folder}data/{record.key}")
            if info.file_size != record.nbytes:
                raise ValueError(
                    f"{info.filename} has {info.file_size} bytes, expected {record.nbytes}"
                )
            with archive.open(info) as member:
                return _fill(member, record.nbytes)

        try:
            order = f"{folder}byteorder"
            if order in names and archive.read(stored(order)) != b"little":
                raise CheckpointError(
                    f"{path}: saved on a big-endian machine; re-save it on another"
                )
            content = archive.read(stored(pickles[0]))
            root = RestrictedUnpickler(io.BytesIO(content), path).load()
            return _tensors(_state_dict(root, path), read, path)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged or hostile pickle can raise anything
            raise _damaged(path, error) from None


def read_legacy(path: Path) -> dict[str, Tensor]:
    """Tensors of a file in PyTorch's format before 1.6; arguments and errors as in read_zip."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            header = [RestrictedUnpickler(file, path).load() for _ in range(3)]
            if header[2].get("little_endian") is not True:
                raise CheckpointError(
                    f"{path}: saved on a big-endian machine; re-save it on another"
                )
            unpickler = RestrictedUnpickler(file, path)
            root = unpickler.load()
            offsets: dict[str, int] = {}
            for key in RestrictedUnpickler(file, path).load():
                record = unpickler.storages[key]
                if int.from_bytes(file.read(8), "little") != record.numel:
                    raise ValueError(f"storage {key} has another length than its tensors say")
                offsets[key] = file.tell()
                file.seek(record.nbytes, io.SEEK_CUR)
                if file.tell() > size:
                    raise EOFError("the file ends within a tensor")

            def read(record: StorageRecord) -> bytearray:
                file.seek(offsets[record.key])
                return _fill(file, record.nbytes)

            return _tensors(_state_dict(root, path), read, path)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged or hostile pickle can raise anything
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return CheckpointError(f"{path}: truncated or damaged ({reason}); download or copy it again")


def _fill(file: IO[bytes], nbytes: int) -> bytearray:
    """The next ``nbytes`` of a file; at a zip member's end zipfile compares its CRC-32."""
    content = bytearray(nbytes)
    view = memoryview(content)
    done = 0
    while done < nbytes:
        chunk = file.read(min(1 << 24, nbytes - done))
        if not chunk:
            raise EOFError("the file ends within a tensor")
        view[done : done + len(chunk)] = chunk
        done += len(chunk)
    return content


def _state_dict(root: object, path: Path) -> Mapping[str, object]:
    """The state dict of a training checkpoint, or the file's content if it is one itself."""
    if not isinstance(root, Mapping):
        kind = "an object" if isinstance(root, Placeholder) else f"a {type(root).__name__}"
        raise CheckpointError(
            f"{path}: holds {kind}, not a dictionary (a whole pickled model?); save "
            "model.state_dict() with torch.save or as .safetensors"
        )
    state = root.get("state_dict")
    if state is None and any(isinstance(value, TensorRecord) for value in root.values()):
        state = root
    if state is None:
        found = ", ".join(sorted(key for key in root if isinstance(key, str))[:10]) or "nothing"
        raise CheckpointError(f"{path}: no 'state_dict' in it; it has: {found}")
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"{path}: its 'state_dict' is no dictionary from names to tensors; save "
            "model.state_dict()"
        )
    if not state:
        raise CheckpointError(f"{path}: its state_dict is empty")
    return state


def _tensors(state: Mapping[str, object], read: Reader, path: Path) -> dict[str, Tensor]:
    storages: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, record in state.items():
        if not isinstance(record, TensorRecord):
            raise CheckpointError(
                f"{path}: {name} is not a plain dense tensor; save the state_dict of the "
                "unquantized model"
            )
        storage = record.storage
        if storage.key not in storages:
            content = read(storage)
            storages[storage.key] = (
                torch.frombuffer(content, dtype=storage.dtype)
                if content
                else torch.empty(0, dtype=storage.dtype)
            )
        # as_strided refuses a view that reaches beyond the storage.
        tensors[name] = storages[storage.key].as_strided(record.size, record.stride, record.offset)
    return tensors
