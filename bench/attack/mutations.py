"""Malformed bytes, JSON and archives, made from sound ones."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

#: A malformed input: the name of the attack, and the bytes.
Malformed = tuple[str, bytes]

#: Sizes and counts that programs get wrong.
NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1)

#: Texts that programs get wrong.
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\x1b[2J\x1b]0;title\x07",
    "../../outside/secret.txt",
    "/etc/passwd",
    "..",
    "C:\\x",
    "\u202ertl\u200b\u200d\ufeff",
    "\U0001f600" * 50,
    "<script>alert(1)</script>",
    "x" * 100_000,
    "e\u0301" * 5000,
    "%s%n{0}{}",
    "nan",
    "1e999",
)

#: Values of another type or size than any reader expects.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1 << 31,
    1 << 63,
    -(1 << 63),
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    [],
    {},
    [[]],
    [None],
    {"": {}},
    [0] * 10_000,
    {"x": 1},
    *TEXTS,
)


def mutate_bytes(rng: Random, sound: bytes) -> Malformed:
    """One to four faults in some bytes."""
    content, names = bytearray(sound), []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        name, fault = rng.choice(_BYTE_FAULTS)
        content = bytearray(fault(rng, content))
        names.append(name)
    return names[0], bytes(content)


def _place(rng: Random, content: bytearray) -> int:
    # Heads and tails hold the structure of most formats.
    end = max(1, len(content))
    near = rng.choice((64, 512, 4096, end))
    at = rng.randrange(min(near, end))
    return at if rng.random() < 0.7 else end - 1 - at


def _flip(rng: Random, content: bytearray) -> bytearray:
    if content:
        content[_place(rng, content)] ^= 1 << rng.randrange(8)
    return content


def _number(rng: Random, content: bytearray) -> bytearray:
    size = rng.choice((1, 2, 4, 8))
    value = (rng.choice(NUMBERS) + rng.choice((-1, 0, 1))) % (1 << (8 * size))
    at = _place(rng, content)
    content[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))
    return content


def _truncate(rng: Random, content: bytearray) -> bytearray:
    return content[: _place(rng, content)]


def _delete(rng: Random, content: bytearray) -> bytearray:
    at = _place(rng, content)
    del content[at : at + rng.choice((1, 2, 8, 64, 4096))]
    return content


def _insert(rng: Random, content: bytearray) -> bytearray:
    at = _place(rng, content)
    content[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64, 4096)))
    return content


def _repeat(rng: Random, content: bytearray) -> bytearray:
    at = _place(rng, content)
    part = content[at : at + rng.choice((1, 8, 64, 4096))]
    content[at:at] = part * rng.choice((1, 2, 50))
    return content


def _blank(rng: Random, content: bytearray) -> bytearray:
    at, size = _place(rng, content), rng.choice((4, 64, 4096))
    content[at : at + size] = rng.choice((b"\0", b"\xff", b" ")) * size
    return content


def _magic(rng: Random, content: bytearray) -> bytearray:
    content[:8] = rng.choice((b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"\x80\x02", b"{}", b"\0" * 8))
    return content


_BYTE_FAULTS: tuple[tuple[str, Callable[[Random, bytearray], bytearray]], ...] = (
    ("bit flip", _flip),
    ("wrong number", _number),
    ("wrong number", _number),
    ("truncated", _truncate),
    ("bytes removed", _delete),
    ("bytes inserted", _insert),
    ("bytes repeated", _repeat),
    ("blanked", _blank),
    ("wrong magic", _magic),
)


def mutate_json(rng: Random, sound: Any) -> Malformed:
    """A fault in a JSON value or in its text; four of five keep it JSON."""
    draw = rng.random()
    if draw < 0.2:
        return _broken_text(rng, dump(sound))
    value = json.loads(json.dumps(sound))
    name = "value"
    for _ in range(rng.choice((1, 1, 2))):
        name, value = _fault_at(rng, value)
    return name, dump(value)


def dump(value: Any) -> bytes:
    """JSON that may hold NaN and lone surrogates, which are written as escapes."""
    return json.dumps(value).encode()


def _fault_at(rng: Random, root: Any) -> tuple[str, Any]:
    holders: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            holders.append((value, key))
            if isinstance(inner, (dict, list)):
                collect(inner)

    if isinstance(root, (dict, list)):
        collect(root)
    if not holders or rng.random() < 0.02:
        return "root of another type", deepcopy(rng.choice(VALUES))
    # Every level is as likely as another: a manifest has hundreds of leaves and few keys on top.
    holder, key = rng.choice(holders if rng.random() < 0.6 else holders[: len(root) * 2])
    kind = rng.randrange(7)
    if kind == 0:
        del holder[key]
        return "key removed", root
    if kind == 1 and isinstance(holder, dict):
        holder[str(rng.choice(TEXTS))] = holder[key]
        return "key added", root
    if kind == 2 and isinstance(holder, dict):
        holder[str(rng.choice(TEXTS))] = holder.pop(key)
        return "key renamed", root
    if kind == 3:
        other, place = rng.choice(holders)
        try:
            holder[key] = other[place]
            json.dumps(root)
        except (LookupError, ValueError, RecursionError):
            holder[key] = None
        return "value of another key", root
    if kind == 4:
        holder[key] = [holder[key]]
        return "wrapped in a list", root
    if kind == 5 and isinstance(holder[key], (int, float)):
        holder[key] = rng.choice((-1, 0, 1 << 20, 1 << 31, 1 << 40, 10**30, float("nan"), 1e300))
        return "wrong number", root
    holder[key] = deepcopy(rng.choice(VALUES))  # the next fault may be within it
    return "value of another type", root


def _broken_text(rng: Random, text: bytes) -> Malformed:
    kind = rng.randrange(9)
    if kind == 0:
        return "truncated", text[: rng.randrange(len(text))]
    if kind == 1:
        return "deep nesting", b"[" * 200_000 + b"]" * 200_000
    if kind == 2:
        return "deep nesting", b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    if kind == 3:
        return "duplicate keys", text.replace(b"{", b'{"format": null, "version": -1, ', 1)
    if kind == 4:
        return "other encoding", text.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))
    if kind == 5:
        return "not UTF-8", text[:50] + b"\xff\xfe\xc0" + text[50:]
    if kind == 6:
        return "garbage behind", text + rng.choice((b"x", b"\0", b"{}", b"]"))
    if kind == 7:
        return "huge number", text.replace(b"1", b"1" * 5000, 1)
    return mutate_bytes(rng, text)


def mutate_zip(rng: Random, members: dict[str, bytes], stored: bool = False) -> Malformed:
    """A zip with a fault in its structure, around sound members."""
    method = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    sound = make_zip(members, method)
    kind = rng.randrange(12)
    name = rng.choice(list(members))
    if kind == 0:
        return "path traversal", make_zip({f"../../outside/{name}": members[name]}, method)
    if kind == 1:
        return "absolute path", make_zip({f"/tmp/{name}": members[name]}, method)
    if kind == 2:
        return "zip bomb", make_zip({**members, name: bytes(300 << 20)}, zipfile.ZIP_DEFLATED)
    if kind == 3:
        return "overlapping entries", _overlapping(sound, rng)
    if kind == 4:
        return "duplicate entries", _doubled(members, name, method)
    if kind == 5:
        return "link", _linked(members, name)
    if kind == 6:
        return "false sizes", _central(sound, rng, 20, "<II")
    if kind == 7:
        return "false checksum", _central(sound, rng, 16, "<I")
    if kind == 8:
        return "encrypted or odd flags", _central(sound, rng, 8, "<H")
    if kind == 9:
        return "unknown method", _central(sound, rng, 10, "<H")
    if kind == 10:
        left = {key: value for key, value in members.items() if key != name}
        return "member missing", make_zip(left, method)
    return mutate_bytes(rng, sound)


def make_zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip in memory."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return memory.getvalue()


def _directory(content: bytes) -> list[int]:
    """Where the entries of a zip's central directory are."""
    found, at = [], content.find(b"PK\x01\x02")
    while at >= 0:
        found.append(at)
        at = content.find(b"PK\x01\x02", at + 4)
    return found


def _central(content: bytes, rng: Random, offset: int, layout: str) -> bytes:
    changed = bytearray(content)
    values = [rng.choice(NUMBERS) & 0xFFFF for _ in layout[1:]]
    if layout[1] == "I":
        values = [rng.choice(NUMBERS) & 0xFFFFFFFF for _ in layout[1:]]
    struct.pack_into(layout, changed, rng.choice(_directory(content)) + offset, *values)
    return bytes(changed)


def _overlapping(content: bytes, rng: Random) -> bytes:
    """Every entry's data at the place of the first's."""
    changed = bytearray(content)
    entries = _directory(content)
    first = content[entries[0] + 42 : entries[0] + 46]
    for at in entries[1:] or entries:
        changed[at + 42 : at + 46] = first if rng.random() < 0.8 else rng.randbytes(4)
    return bytes(changed)


def _doubled(members: dict[str, bytes], name: str, method: int) -> bytes:
    import warnings

    memory = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(memory, "w", method) as archive:
        warnings.simplefilter("ignore")
        for key, content in (*members.items(), (name, b"another")):
            archive.writestr(key, content)
    return memory.getvalue()


def _linked(members: dict[str, bytes], name: str) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for key, content in members.items():
            info = zipfile.ZipInfo(key)
            if key == name:
                info.external_attr = 0o120777 << 16
                content = b"../../outside/secret.txt"
            archive.writestr(info, content)
    return memory.getvalue()


def mutate_tar(rng: Random, members: dict[str, bytes]) -> Malformed:
    """A tar with a fault in its structure."""
    kind = rng.randrange(9)
    kinds = {
        0: ("link", tarfile.SYMTYPE),
        1: ("hard link", tarfile.LNKTYPE),
        2: ("device", tarfile.CHRTYPE),
        3: ("pipe", tarfile.FIFOTYPE),
    }
    memory = io.BytesIO()
    if kind in kinds:
        name, type_ = kinds[kind]
        with tarfile.open(fileobj=memory, mode="w") as archive:
            for key, content in members.items():
                info = tarfile.TarInfo(key)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            info = tarfile.TarInfo("other.png")
            info.type, info.linkname = type_, "../../outside/secret.txt"
            info.devmajor, info.devminor = 1, 5
            archive.addfile(info)
        return name, memory.getvalue()
    sound = make_tar(members)
    if kind == 4:
        name = next(iter(members))
        return "path traversal", make_tar({f"../../outside/{name}": members[name]})
    if kind == 5:
        changed = bytearray(sound)
        field = rng.choice(
            (b"77777777777", b"\x80\x00\x00\x7f" + b"\xff" * 8, b"-0000000001", b"x")
        )
        changed[124 : 124 + len(field)] = field
        _checksum(changed)
        return "false size", bytes(changed)
    if kind == 6:
        return "tar bomb", make_tar({f"{n}.png": b"" for n in range(3000)})
    if kind == 7:
        return "compressed", zlib.compress(sound)
    return mutate_bytes(rng, sound)


def make_tar(members: dict[str, bytes]) -> bytes:
    """A tar in memory."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return memory.getvalue()


def _checksum(header: bytearray) -> None:
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
