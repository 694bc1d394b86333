"""safetensors files, guarded: the header is checked against the file before any parser maps it.

A file is 8 bytes of length N, N bytes of JSON (name -> dtype, shape, offsets), then the numbers back to back.
Reading goes through the Rust parser of `safetensors`, after checks that it leaves out: size of the header,
number of tensors, names that appear twice. Writing is ours, thirty lines: a checkpoint needs equal bytes for
equal weights, but the library orders metadata at random, and reports a full disk as a text without its code.
Source: the format's README, and CVE-2026-7482 for what lying offsets do. Read next: huggingface.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from transom.errors import Refused

from .strict_json import LIMIT, parse_json

MAX_TENSORS = 50_000
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: shape and dtype of every tensor, and its metadata."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors to a safetensors file; equal tensors give equal bytes, whatever the order of the mapping.

    One tensor at a time is copied (from its device, or into rows when it is a transposed view). Write inside
    `commit`: the file is neither synced nor replaced in one step here. Raises Refused for other dtypes.
    """
    entries: dict[str, Any] = {}
    # Wide dtypes first, as the format asks for, so that every tensor starts at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    offset = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in NAMES:
            raise Refused(f"{path}: {name!r} is {tensor.dtype}; only {', '.join(DTYPES)} are written")
        end = offset + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    notes = {"__metadata__": dict(sorted({"format": "pt", **(metadata or {})}.items()))}
    header = json.dumps(notes | entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    Path(path).unlink(missing_ok=True)  # a new file: whoever has the old one mapped keeps it
    with open(path, "xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            flat = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file, as views of the mapped file: nothing is read until it is used.

    Copy what you keep (`parameter.copy_(tensor)`): a view starts at any multiple of its own width, and matrix
    products on memory that is not aligned to 64 bytes may round otherwise. Raises Refused.
    """
    with open_tensors(Path(path), mapped=True) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


@contextmanager
def open_tensors(path: Path, *, mapped: bool = False) -> Iterator[Any]:
    """The checked file, for `get_tensor(name)`: a view of the mapped file, or a copy of that tensor alone."""
    read_header(path)
    try:
        with safe_open(path, framework="pt", backend="mmap" if mapped else "pread") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise Refused(f"{path}: cannot be read as safetensors ({error})") from None


def read_header(path: str | Path) -> Header:
    """Check that a file is what it says, to the byte; raises Refused with the file and what does not hold."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused(f"{path}: not a plain file")
            length = _header_length(file.read(8), status.st_size, path)
            text = file.read(length)
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    if not text.startswith(b"{"):
        raise Refused(f"{path}: its header does not start with '{{'")
    entries = parse_json(text, f"{path}: header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refused(f"{path}: __metadata__ is not a table of texts")
    if len(entries) > MAX_TENSORS:
        raise Refused(f"{path}: {len(entries):,} tensors; at most {MAX_TENSORS:,} are read")
    _check_layout(entries, status.st_size - 8 - length, path)
    return Header(
        {name: tuple(entry["shape"]) for name, entry in entries.items()},
        {name: DTYPES[entry["dtype"]] for name, entry in entries.items()},
        metadata,
    )


def _header_length(first: bytes, size: int, path: Path) -> int:
    length = int.from_bytes(first, "little")
    if size < 8 or length > size - 8:
        raise Refused(f"{path}: cut short; {size:,} bytes do not hold the header that is announced")
    if length > LIMIT:
        raise Refused(f"{path}: a header of {length:,} bytes; at most {LIMIT:,} are read")
    return length


def _check_layout(entries: dict[str, Any], n_bytes: int, path: Path) -> None:
    """Every entry well formed, and the tensors side by side without hole or overlap up to the last byte."""
    spans = sorted((*_check_entry(name, entry, path), name) for name, entry in entries.items())
    at = 0
    for begin, end, name in spans:
        if begin != at:
            raise Refused(
                f"{path}: {name!r} starts at byte {begin:,} of the data, not at {at:,}: a hole or an overlap"
            )
        at = end
    if at != n_bytes:
        raise Refused(f"{path}: its tensors take {at:,} bytes, but {n_bytes:,} are there")


def _check_entry(name: str, entry: Any, path: Path) -> tuple[int, int]:
    if not name or not name.isprintable() or any(character in name for character in "/\\"):
        raise Refused(f"{path}: {name[:80]!r} is not a name for a tensor")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"{path}: {name!r} does not say dtype, shape and data_offsets, and only those")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Refused(f"{path}: {name!r} is of type {str(dtype)[:40]!r}; {', '.join(DTYPES)} are read")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise Refused(f"{path}: {name!r} has a shape or offsets that are not whole numbers")
    if len(offsets) != 2 or len(shape) > 8:
        raise Refused(
            f"{path}: {name!r} has {len(offsets)} offsets and {len(shape)} axes; 2 and at most 8 are read"
        )
    need, begin, end = math.prod(shape) * DTYPES[dtype].itemsize, *offsets
    if end - begin != need:
        raise Refused(
            f"{path}: {name!r} of shape {tuple(shape)} needs {need:,} bytes, its offsets span {end - begin:,}"
        )
    return begin, end
