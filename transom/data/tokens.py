"""A token file: the ids of a corpus on disk, opened in no time and read through the memory map.

Layout: 4,096 bytes of header (magic, length, JSON, zeros), the ids (uint16 or uint32), where documents start
(uint64), and how many bytes each token writes (uint16 per id). Stream: every document is <|endoftext|> t1 ...
tn; the token that opens a document also ends the one before, and boundaries come from the starts, never from
searching for an id. Every size is checked against the file before anything is mapped. Read next: order.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from transom.data.documents import printable
from transom.data.ragged import Ragged
from transom.errors import Refused

VERSION = 1
MAGIC = b"TRANSTOK"
HEADER_BYTES = 4096
_CHUNK_TOKENS = 1 << 20
_WAITING = 1 << 10
_COUNTS = ("version", "n_tokens", "n_documents", "n_bytes", "vocab_size", "eos_id")
_HASHES = ("tokenizer_hash", "data_hash", "content_hash")


@dataclass(frozen=True)
class TokenFile:
    """The ids of a corpus, or of one side of a set of examples, memory-mapped."""

    path: Path
    tokens: npt.NDArray[Any]
    """(n_tokens,) uint16 or uint32."""
    starts: npt.NDArray[np.uint64]
    """(n_documents,): the index of each document's opening token."""
    bytes_per_token: npt.NDArray[np.uint16]
    """(V,): UTF-8 bytes that each token writes."""
    n_tokens: int
    n_documents: int
    n_bytes: int
    """UTF-8 bytes of the text."""
    vocab_size: int
    eos_id: int
    """The token that opens every document."""
    tokenizer_hash: str
    data_hash: str
    content_hash: str
    """SHA-256 of everything after the header."""

    @classmethod
    def open(cls, path: str | Path, *, tokenizer_hash: str | None = None) -> TokenFile:
        """Open a token file, checking header and sizes. Raises Refused when it is broken or of another
        tokenizer.
        """
        path = Path(path)
        where = printable(path)
        try:
            size = path.stat().st_size
            with open(path, "rb") as file:
                header = _header(file.read(HEADER_BYTES), where)
        except OSError as error:
            raise Refused(f"{where}: cannot be read ({error.strerror or error})") from None
        dtype = np.dtype(header["dtype"])
        counts = (header["n_tokens"], header["n_documents"], header["vocab_size"])
        at_starts = _aligned(HEADER_BYTES + counts[0] * dtype.itemsize)
        at_lengths = at_starts + counts[1] * 8
        expected = at_lengths + counts[2] * 2
        if size != expected:
            verb = "was cut short" if size < expected else "has grown"
            raise Refused(
                f"{where}: {size:,} bytes long where its header says {expected:,}; it {verb}: prepare again"
            )
        if tokenizer_hash is not None and header["tokenizer_hash"] != tokenizer_hash:
            raise Refused(f"{where}: was made with another tokenizer; prepare the data again")
        tokens = np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(counts[0],))
        with open(path, "rb") as file:
            file.seek(at_starts)
            starts = np.fromfile(file, dtype="<u8", count=counts[1])
            lengths = np.fromfile(file, dtype="<u2", count=counts[2])
        if starts[0] != 0 or starts[-1] > counts[0] or not (starts[1:] >= starts[:-1]).all():
            raise Refused(f"{where}: the list of documents is broken; prepare the data again")
        fields = {name: header[name] for name in (*_COUNTS[1:], *_HASHES)}
        return cls(path=path, tokens=tokens, starts=starts, bytes_per_token=lengths, **fields)

    def verify(self) -> None:
        """Read the whole file and compare its hash with the header. Raises Refused when a bit has changed."""
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            file.seek(HEADER_BYTES)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != self.content_hash:
            raise Refused(
                f"{printable(self.path)}: its content does not match its hash; prepare the data again"
            )

    def rows(self) -> Ragged:
        """The documents as rows of ids, read through the memory map."""
        return Ragged(np.asarray(self.tokens), np.append(self.starts.astype(np.int64), self.n_tokens))

    def chunks(self, overlap: int = 0) -> Iterator[npt.NDArray[np.int64]]:
        """Read the ids in order in chunks of a million, each beginning with the last `overlap` ids of the
        one before.

        Read from the file and not through the map, whose pages would count as resident memory.
        """
        with open(self.path, "rb") as file:
            for start in range(0, self.n_tokens, _CHUNK_TOKENS):
                low = max(0, start - overlap)
                file.seek(HEADER_BYTES + low * self.tokens.itemsize)
                count = min(start + _CHUNK_TOKENS, self.n_tokens) - low
                yield np.fromfile(file, dtype=self.tokens.dtype, count=count).astype(np.int64)


def _aligned(offset: int) -> int:
    return (offset + 7) // 8 * 8


def _header(block: bytes, where: str) -> dict[str, Any]:
    """The header of a token file, every field checked."""
    if not block.startswith(MAGIC):
        raise Refused(f"{where}: not a token file; prepare the data again")
    length = int.from_bytes(block[8:16], "little")
    try:
        if len(block) < HEADER_BYTES or length > HEADER_BYTES - 16:
            raise ValueError
        header = json.loads(block[16 : 16 + length])
        counts = [header[name] for name in _COUNTS]
        hashes = [header[name] for name in _HASHES]
        valid = all(type(count) is int and count >= 0 for count in counts) and all(
            type(h) is str for h in hashes
        )
        if not valid or header["dtype"] not in ("uint16", "uint32") or not counts[1] or not counts[2]:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refused(f"{where}: its header is broken; prepare the data again") from None
    if header["version"] != VERSION:
        raise Refused(
            f"{where}: format {header['version']}, this Transom reads {VERSION}; prepare the data again"
        )
    return header


class TokenWriter:
    """Writes a token file under a temporary name; `commit` makes it appear whole, leaving without it leaves
    nothing.
    """

    def __init__(
        self, path: str | Path, *, eos_id: int, tokenizer_hash: str, bytes_per_token: npt.NDArray[np.uint16]
    ) -> None:
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")
        self.eos_id, self.tokenizer_hash, self.bytes_per_token = eos_id, tokenizer_hash, bytes_per_token
        self.dtype = np.dtype("<u2" if len(bytes_per_token) <= 1 << 16 else "<u4")
        self.starts = array("Q")
        self.n_tokens = self.n_bytes = 0
        self._opening = np.array([eos_id], dtype=np.uint32)
        self._waiting: list[npt.NDArray[Any]] = []  # short documents are written many at a time
        self._digest = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> TokenWriter:
        with disk_faults_named(self.path):
            self._file = open(self.temporary, "wb")  # noqa: SIM115 (closed by __exit__)
            self._file.write(bytes(HEADER_BYTES))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        self.temporary.unlink(missing_ok=True)

    def begin(self) -> None:
        """Open the next document."""
        self.starts.append(self.n_tokens)
        self.extend(self._opening, 0)

    def add_rows(self, rows: Ragged) -> None:
        """Add documents that have no opening token: rows of ids as they are."""
        self.starts.frombytes((rows.starts[:-1] + self.n_tokens).astype(np.uint64).tobytes())
        self.extend(rows.flat, 0)

    def extend(self, ids: npt.NDArray[Any], n_bytes: int) -> None:
        """Add ids to the open document, which stand for `n_bytes` bytes of text."""
        self._waiting.append(ids)
        self.n_tokens += len(ids)
        self.n_bytes += n_bytes
        if len(self._waiting) > _WAITING or len(ids) > _WAITING:
            self._flush()

    def commit(self, data_hash: str) -> None:
        """Write the tables and the header, flush to the disk, and give the file its name."""
        self._flush()
        size = self.n_tokens * self.dtype.itemsize
        self._write(bytes(_aligned(size) - size))
        self._write(np.asarray(self.starts, dtype="<u8").tobytes())
        self._write(self.bytes_per_token.astype("<u2").tobytes())
        header = {
            "version": VERSION,
            "dtype": "uint16" if self.dtype.itemsize == 2 else "uint32",
            "n_tokens": self.n_tokens,
            "n_documents": len(self.starts),
            "n_bytes": self.n_bytes,
            "vocab_size": len(self.bytes_per_token),
            "eos_id": self.eos_id,
            "tokenizer_hash": self.tokenizer_hash,
            "data_hash": data_hash,
            "content_hash": self._digest.hexdigest(),
        }
        text = json.dumps(header).encode()
        block = MAGIC + len(text).to_bytes(8, "little") + text
        with disk_faults_named(self.path):
            assert self._file is not None
            self._file.seek(0)
            self._file.write(block.ljust(HEADER_BYTES, b"\0"))
            synced(self._file)
            self._file.close()
            os.replace(self.temporary, self.path)
            sync_folder(self.path.parent)

    def _flush(self) -> None:
        if self._waiting:
            self._write(np.concatenate(self._waiting).astype(self.dtype).tobytes())
            self._waiting = []

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        with disk_faults_named(self.path):
            assert self._file is not None
            self._file.write(data)


@contextmanager
def disk_faults_named(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one line that names the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "; make room, or choose another folder" if full else ""
        raise Refused(f"{printable(path)}: cannot be written ({error.strerror or error}){fix}") from None


def synced(file: BinaryIO) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
