"""What a compiled library needs of the machine that loads it, read from its ELF file.

The format: System V Application Binary Interface, chapters 4 and 5; symbol versions as in the
Linux Standard Base, "Symbol Versioning".
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_MAGIC = b"\x7fELF"
_DYNAMIC, _NEEDED, _STRTAB, _VERNEED, _VERNEEDNUM = 2, 1, 5, 0x6FFFFFFE, 0x6FFFFFFF
_SONAME = 14
_LOAD = 1
_GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Library:
    """A shared object, as the dynamic linker sees it."""

    machine: int
    """ELF's number of the processor: 62 is x86-64, 183 is AArch64."""
    name: str
    """What others ask for it by; empty if it says nothing."""
    needed: tuple[str, ...]
    """Libraries that it loads, by name."""
    glibc: tuple[int, int]
    """The newest version of the C library that it asks for; (0, 0) for none."""


def read_library(data: bytes) -> Library | None:
    """Read a 64-bit little-endian ELF file; None where it is no such file, or damaged."""
    if data[:4] != _MAGIC or data[4:6] != b"\x02\x01":
        return None
    try:
        return _read(data)
    except (struct.error, UnicodeDecodeError, ValueError, IndexError):
        return None


def _read(data: bytes) -> Library:
    machine = struct.unpack_from("<H", data, 18)[0]
    headers_at = struct.unpack_from("<Q", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, headers_at + i * size) for i in range(count)]
    loads = [
        (address, offset, length)
        for kind, _, offset, address, _, length in segments
        if kind == _LOAD
    ]

    def offset_of(address: int) -> int:
        for start, offset, length in loads:
            if start <= address < start + length:
                return int(address - start + offset)
        raise ValueError(address)

    entries: list[tuple[int, int]] = []
    for kind, _, offset, _, _, length in segments:
        if kind == _DYNAMIC:
            entries = list(struct.iter_unpack("<qQ", data[offset : offset + length // 16 * 16]))
    values = dict(entries)
    if _STRTAB not in values:
        return Library(machine, "", (), (0, 0))
    strings_at = offset_of(values[_STRTAB])

    def text(at: int) -> str:
        begin = strings_at + at
        return data[begin : data.index(b"\0", begin)].decode()

    versions = (0, 0)
    if _VERNEED in values:
        names = _version_names(data, offset_of(values[_VERNEED]), values.get(_VERNEEDNUM, 0))
        found = (_GLIBC.fullmatch(text(name)) for name in names)
        versions = max(((int(m[1]), int(m[2])) for m in found if m), default=(0, 0))
    needed = tuple(text(value) for tag, value in entries if tag == _NEEDED)
    return Library(machine, text(values[_SONAME]) if _SONAME in values else "", needed, versions)


def _version_names(data: bytes, at: int, count: int) -> list[int]:
    """Where in the string table the names of all needed versions stand."""
    names = []
    for _ in range(count):
        _, number, _, first, following = struct.unpack_from("<HHIII", data, at)
        entry = at + first
        for _ in range(number):
            _, _, _, name, next_entry = struct.unpack_from("<IHHII", data, entry)
            names.append(name)
            entry += next_entry
        at += following
    return names
