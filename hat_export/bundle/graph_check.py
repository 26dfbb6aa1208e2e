"""Is a file an ONNX graph that may be handed to a runtime? Looked at without any ONNX library.

A bundle's graphs come from strangers, and what loads them are large native programs. So the file is
walked first, as protobuf on the wire: weights are skipped over, not read. What exporters of this
project never write is refused: weights in other files, graphs within graphs (loops), functions,
foreign operators, sizes that the file has no room for, and nodes out of order, cycles among them.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

#: The official image encoder has 222 nodes.
MOST_NODES = 100_000
#: Operator sets of exported, packed and quantized graphs.
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft", "hat_export", "trt"})
#: int4 has two values in a byte.
VALUES_PER_BYTE = 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Buffer = memoryview


def check_graph(path: Path, data: Mapping[str, int]) -> None:
    """Refuse a file that is no graph as this project writes it.

    Args:
        path: The file.
        data: Files beside it that may hold weights of it, with their sizes in bytes.

    Raises:
        ValueError: saying what is wrong.
        OSError: if it can't be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("an empty file")
        # Let go of when nothing refers to it, which an exception's frames do for a while.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _check_model(memoryview(content), data)


def _check_model(model: Buffer, data: Mapping[str, int]) -> None:
    graphs = []
    for field, value in _fields(model):
        if field == 7:
            graphs.append(_part(value))
        elif field in (20, 25):
            raise ValueError("functions or training parts in it")
        elif field == 8:
            _check_domain(dict(_fields(_part(value))).get(1, b""))
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs in it")
    _check_nodes(graphs[0], data, len(model))


def _check_nodes(graph: Buffer, data: Mapping[str, int], size: int) -> None:
    nodes = [_part(value) for field, value in _fields(graph) if field == 1]
    if len(nodes) > MOST_NODES:
        raise ValueError(f"{len(nodes)} nodes; expected at most {MOST_NODES}")
    known = {""}
    for field, value in _fields(graph):
        if field == 5:
            known.add(_check_tensor(_part(value), data, size))
        elif field == 11:
            known.add(_text(dict(_fields(_part(value))).get(1, b"")))
        elif field == 15:
            raise ValueError("sparse weights in it")
    for node in nodes:
        outputs = []
        for field, value in _fields(node):
            if field == 1 and _text(value) not in known:
                raise ValueError(f"nodes in a cycle or out of order at {_text(value)[:80]!r}")
            if field == 2:
                outputs.append(_text(value))
            elif field == 5:
                _check_attribute(_part(value), data, size)
            elif field == 7:
                _check_domain(value)
        if any(name and name in known for name in outputs):
            raise ValueError(f"{outputs[0][:80]!r} is computed twice")
        known.update(outputs)


def _check_domain(value: Buffer | bytes | int) -> None:
    if _text(value) not in DOMAINS:
        raise ValueError(f"operators of {_text(value)[:80]!r} in it")


def _check_attribute(attribute: Buffer, data: Mapping[str, int], size: int) -> None:
    for field, value in _fields(attribute):
        if field in (6, 11):
            raise ValueError("a graph within a graph, such as a loop")
        if field in (22, 23):
            raise ValueError("sparse weights in it")
        if field in (5, 10):
            _check_tensor(_part(value), data, size)


def _check_tensor(tensor: Buffer, data: Mapping[str, int], size: int) -> str:
    """Name of a tensor whose place and size are right."""
    dims: list[int] = []
    name, places = "", {}
    external = False
    for field, value in _fields(tensor):
        if field == 1:
            dims += [value] if isinstance(value, int) else _packed(_part(value))
        elif field == 8:
            name = _text(value)
        elif field == 13:
            entry = dict(_fields(_part(value)))
            places[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
        elif field == 14:
            external = value != 0
    room = size
    if external or places:
        location = places.get("location", "")
        if location not in data:
            raise ValueError(f"weights in {location[:80]!r}, which is no file of this graph")
        room = data[location]
        offset, length = int(places.get("offset") or 0), int(places.get("length") or 0)
        if offset < 0 or length < 0 or offset + length > room:
            raise ValueError(f"weights beyond the end of {location}")
    # Sizes above 2^63 are negative ones.
    if any(dim >> 63 for dim in dims) or math.prod(dims) > VALUES_PER_BYTE * room:
        raise ValueError(f"sizes {dims[:8]} of {name[:80]!r}, for which there is no room")
    return name


def _fields(content: Buffer) -> Iterator[tuple[int, Buffer | int]]:
    """Numbers and values of a message's fields."""
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        field, kind = tag >> 3, tag & 7
        # A parser that keeps 32 bits of a longer tag would see another field than this one.
        if not 0 < field < 1 << 29:
            raise ValueError("not a protobuf")
        if kind == _VARINT:
            value, at = _varint(content, at)
            yield field, value
            continue
        if kind == _BYTES:
            size, at = _varint(content, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("not a protobuf")
        if size > end - at:
            raise ValueError("cut off")
        yield field, content[at : at + size]
        at += size


def _varint(content: Buffer, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(content):
            raise ValueError("cut off")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
    raise ValueError("not a protobuf")


def _packed(content: Buffer) -> list[int]:
    values, at = [], 0
    while at < len(content):
        value, at = _varint(content, at)
        values.append(value)
    return values


def _part(value: Buffer | int) -> Buffer:
    if isinstance(value, int):
        raise ValueError("not an ONNX graph")
    return value


def _text(value: Buffer | bytes | int) -> str:
    if isinstance(value, int):
        raise ValueError("not an ONNX graph")
    return bytes(value).decode("utf-8", "backslashreplace")
