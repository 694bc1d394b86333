"""What a GGUF file says of itself, checked against the file before anything in it is used.

magic, version, counts -> metadata (keys and typed values) -> names, shapes, types and offsets of tensors ->
padding -> the numbers, back to back. Every count is held against the bytes that are left before it is
believed, so that a lying header costs neither memory nor time (CVE-2026-7482 is what lying offsets do).
Source: docs/gguf.md of ggml, and gguf.cpp, which wants tensors in order without hole or overlap.
Read next: gguf_tokenizer, checkpoint.gguf_families, checkpoint.gguf_weights.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from transom.data.documents import printable
from transom.errors import Refused

SUFFIX = ".gguf"
MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MOST_TENSORS = 50_000
MOST_KEYS = 10_000
MOST_ITEMS = 1 << 22
"""Of one list; the largest vocabularies have 262,144 tokens and twice as many merges."""
MOST_TEXT = 1 << 24
"""Bytes of one text."""
MOST_METADATA = 1 << 28
"""Bytes of names and values together."""

BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}  # fmt: skip
"""Number of a type of tensor -> its name, how many weights a block of it holds, in how many bytes."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Number of a type of value -> its letter in `struct`; 8 is a text, 9 a list."""
TEXT, LIST, FLOAT32 = 8, 9, 6


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: its shape as torch has it, rows first, its type and its bytes in the file."""

    shape: tuple[int, ...]
    kind: str
    begin: int
    n_bytes: int


@dataclass(frozen=True)
class GGUFFile:
    """The checked header of a file."""

    path: Path
    metadata: dict[str, Any]
    """Values by key; a list of numbers or of texts is a list."""
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The name that keys of the model begin with; empty where none is said."""
        said = self.metadata.get("general.architecture")
        return said if isinstance(said, str) else ""


def is_gguf(path: Path) -> bool:
    """Whether a model is one GGUF file: told by its name, as other tools do."""
    return path.suffix == SUFFIX and path.is_file()


def read_gguf(path: Path) -> GGUFFile:
    """Read and check a header; raises Refused in one line with the file and what does not hold.

    A vocabulary takes a tenth of a second to read, and several rooms ask for it: the last one is kept.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise Refused(f"{printable(path)}: cannot be read ({error.strerror})") from None
    return _read(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _read(path: Path, identity: tuple[int, ...]) -> GGUFFile:
    with mapped(path) as data:
        return _Header(path, data).read()


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a plain file for reading; raises Refused where that cannot be done."""
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{printable(path)}: not a plain file")
            if not status.st_size:
                raise Refused(f"{printable(path)}: an empty file, not GGUF")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except OSError as error:
        raise Refused(f"{printable(path)}: cannot be read ({error.strerror})") from None


class _Header:
    """Goes through a header once, from its first byte to its last."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0
        self.where = "its first bytes"

    def read(self) -> GGUFFile:
        if self.data[:4] != MAGIC:
            raise self.refuse("does not begin with GGUF; it is damaged, or another kind of file")
        self.at = 4
        version = self.number("I")
        if version not in VERSIONS:
            big = " (or the file is big-endian)" if version & 0xFFFF == 0 else ""
            raise self.refuse(f"GGUF version {version}{big}; 2 and 3 are read")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        if n_tensors > MOST_TENSORS or n_keys > MOST_KEYS:
            raise self.refuse(
                f"announces {n_tensors:,} tensors and {n_keys:,} keys; at most {MOST_TENSORS:,} and "
                f"{MOST_KEYS:,} are read"
            )
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.name("a key", metadata)
            self.where = f"key {key}"
            metadata[key] = self.value(self.number("I"))
        entries: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
        for _ in range(n_tensors):
            name = self.name("a tensor", entries)
            self.where = f"tensor {name}"
            entries[name] = self.entry()
        return GGUFFile(self.path, metadata, self.placed(entries, metadata))

    def entry(self) -> tuple[tuple[int, ...], str, int, int]:
        """One tensor: shape, type, bytes, offset from where the numbers begin."""
        n_axes = self.number("I")
        if not 1 <= n_axes <= 4:
            raise self.refuse(f"{n_axes:,} axes; 1 to 4 are read")
        axes = [self.number("Q") for _ in range(n_axes)]
        if not all(0 < axis < 2**48 for axis in axes) or math.prod(axes) >= 2**48:
            raise self.refuse(f"shape {axes[::-1]}; every axis is at least 1, and no file holds so many")
        number, offset = self.number("I"), self.number("Q")
        if number not in BLOCKS:
            raise self.refuse(f"type {number}; read are {', '.join(name for name, _, _ in BLOCKS.values())}")
        kind, weights, size = BLOCKS[number]
        if axes[0] % weights:
            raise self.refuse(f"rows of {axes[0]:,}; {kind} packs {weights} at a time")
        return tuple(axes[::-1]), kind, math.prod(axes) // weights * size, offset

    def placed(
        self, entries: dict[str, tuple[tuple[int, ...], str, int, int]], metadata: dict[str, Any]
    ) -> dict[str, StoredTensor]:
        """Where every tensor lies: one after the other, and inside of the file."""
        self.where = "key general.alignment"
        step = metadata.get("general.alignment", ALIGNMENT)
        if type(step) is not int or not 1 <= step <= 1 << 20 or step & (step - 1):
            raise self.refuse("a power of two up to 1,048,576 belongs there")
        first = at = self.at + -self.at % step
        found = {}
        for name, (shape, kind, n_bytes, offset) in entries.items():
            self.where = f"tensor {name}"
            if first + offset != at:
                raise self.refuse(f"begins at byte {first + offset:,}, not at {at:,}: a hole or an overlap")
            if at + n_bytes > len(self.data):
                raise self.refuse(
                    f"ends at byte {at + n_bytes:,}; the file has {len(self.data):,}: cut short"
                )
            found[name] = StoredTensor(shape, kind, at, n_bytes)
            at += n_bytes + -n_bytes % step
        return found

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            return self.items()
        return self.scalar(kind)

    def scalar(self, kind: int) -> Any:
        if kind not in SCALARS:
            raise self.refuse(f"type {kind}, and there is none such")
        value = self.number(SCALARS[kind])
        # The decimal that people wrote: 1e-05, where the nearest float32 is 9.999999747378752e-06.
        return float(str(np.float32(value))) if kind == FLOAT32 else value

    def items(self) -> list[Any]:
        kind, n = self.number("I"), self.number("Q")
        if kind == LIST or kind not in SCALARS and kind != TEXT:
            raise self.refuse(f"a list of type {kind}; lists of numbers and of texts are read")
        size = 8 if kind == TEXT else struct.calcsize(SCALARS[kind])
        if n > MOST_ITEMS or n * size > len(self.data) - self.at:
            raise self.refuse(f"announces {n:,} items; the file ends before, or more than {MOST_ITEMS:,}")
        if kind == TEXT:
            return [self.text() for _ in range(n)]
        return np.frombuffer(self.take(n * size), np.dtype(SCALARS[kind]).newbyteorder("<")).tolist()

    def name(self, what: str, known: dict[str, Any]) -> str:
        """The name of what comes next, which no other has."""
        name = self.text()
        if not name or len(name) > 200 or not name.isprintable() or any(c in name for c in "/\\"):
            raise self.refuse(f"then {printable(name[:80])!r} is no name for {what}")
        if name in known:
            raise self.refuse(f"then {name} stands there twice")
        return name

    def text(self) -> str:
        n = self.number("Q")
        if n > MOST_TEXT:
            raise self.refuse(f"a text of {n:,} bytes; at most {MOST_TEXT:,} are read")
        try:
            return self.take(n).decode()
        except UnicodeDecodeError as error:
            raise self.refuse(f"a text that is not UTF-8 at byte {error.start}") from None

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.data):
            raise self.refuse(f"cut short: {n:,} bytes are announced, {len(self.data) - self.at:,} are left")
        if self.at + n > MOST_METADATA:
            raise self.refuse(f"a header of more than {MOST_METADATA:,} bytes")
        found = self.data[self.at : self.at + n]
        self.at += n
        return found

    def refuse(self, why: str) -> Refused:
        return Refused(f"{printable(self.path)}: {self.where}: {why}")
