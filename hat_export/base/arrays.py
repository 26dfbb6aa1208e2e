"""Named arrays in a file that is read whole: safetensors, and the ``.npz`` of older bundles."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError

import numpy as np

#: The self-test of the official model takes 2 MB.
MAX_ARRAY_BYTES = 256 << 20


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a ``.safetensors``; equal content gives equal bytes."""
    from safetensors.numpy import save

    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote, or wrote as ``.npz`` once, from anybody's file.

    Returns:
        Arrays by name; they can't be written to.

    Raises:
        ValueError: if it is no such file, or its arrays are not what their headers say.
    """
    if path.suffix == ".npz":
        return _read_npz(path)
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        if path.stat().st_size > MAX_ARRAY_BYTES:
            raise ValueError(f"more than {MAX_ARRAY_BYTES} bytes")
        arrays: dict[str, np.ndarray] = load(path.read_bytes())
    # A kind of number that numpy doesn't have is a KeyError.
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """An ``.npz`` of version 1: no pickles, no bombs.

    numpy alone would make room for whatever a header states before it reads a byte.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(info.file_size for info in members) > MAX_ARRAY_BYTES:
                raise ValueError(f"more than {MAX_ARRAY_BYTES} bytes")
            for info in members:
                with archive.open(info) as file:
                    content = file.read(MAX_ARRAY_BYTES)
                arrays[info.filename.removesuffix(".npy")] = _array(content)
    except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    return arrays


def _array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of format {version}")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (SyntaxError, TypeError, RecursionError, TokenError) as error:
        raise ValueError(f"an array with a damaged header ({error})") from None
    if dtype.hasobject or fortran:
        raise ValueError(f"an array of {dtype}, which isn't read")
    left = content[file.tell() :]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(left):
        raise ValueError(f"an array of {shape} in {len(left)} bytes")
    return np.frombuffer(left, dtype).reshape(shape)
