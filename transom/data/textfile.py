"""A text file as a stream of characters: strict UTF-8, read in chunks, with the place of every bad byte.

The one idea: a chunk that decodes strictly and holds no NUL costs two passes at memory speed; only a chunk
that does not is looked at line by line. A byte-order mark of UTF-8 is dropped, CR LF is kept, UTF-16 and
UTF-32 are refused by name. Read next: records, sources.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from transom.data.issues import MAX_RECORD_BYTES, Issues
from transom.errors import Refused

CHUNK_BYTES = 1 << 19
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x80-\x9f]")
_UNDECODED = range(0xDC80, 0xDD00)
"""Bytes 0x80 to 0xff as Python holds them where it met them outside of UTF-8 (arguments, names of files)."""

# UTF-32 before UTF-16: the little-endian mark of one begins with the mark of the other.
_FOREIGN_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class SkippedFile(Exception):
    """The rest of this file is left out, as the policy `skip` asks; its fault has been noted."""


@contextmanager
def opened(path: Path, where: str) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, through gzip when its name ends in .gz; failures become Refused."""
    try:
        with open(path, "rb") as raw:
            if path.suffix.lower() == ".gz":
                with gzip.open(raw, "rb") as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield raw
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise Refused(
            f"{where}: not a whole gzip file ({error}); make it again or give the unpacked text"
        ) from None
    except OSError as error:
        raise Refused(f"{where}: cannot be read ({error.strerror or error})") from None


def head_of(path: Path, where: str, size: int = CHUNK_BYTES) -> bytes:
    """The first bytes of a file, without the byte-order mark of UTF-8, from which its layout is told."""
    with opened(path, where) as stream:
        return stream.read(size).removeprefix(codecs.BOM_UTF8)


def without_mark(head: bytes, where: str, issues: Issues) -> bytes:
    """Drop the byte-order mark of UTF-8 from the first bytes of a file; refuse those of UTF-16 and UTF-32."""
    wide = _without_a_mark(head)
    for mark, name in (*_FOREIGN_MARKS, *(((b"", wide),) if wide else ())):
        if head.startswith(mark):
            mend = f"convert it with `iconv -f {name.lower()} -t utf-8`"
            issues.n_skipped_files += 1
            issues.fault(f"{name} files", where, 1, f"byte 0: this is {name}, not UTF-8; {mend}")
            raise SkippedFile
    if head.startswith(codecs.BOM_UTF8):
        issues.n_bom += 1
        return head[len(codecs.BOM_UTF8) :]
    return head


def _without_a_mark(head: bytes) -> str:
    """UTF-16LE or UTF-16BE where every other byte of a beginning is NUL, as of Latin letters there; or ""."""
    nul = [head[at:256:2].count(0) for at in (0, 1)]
    if len(head) < 16 or min(nul) > 4 or max(nul) < 0.3 * len(head[:256]):
        return ""
    return "UTF-16LE" if nul[1] > nul[0] else "UTF-16BE"


def read_text(stream: BinaryIO, where: str, issues: Issues) -> Iterator[str]:
    """Yield the text of a file in pieces of about half a megabyte.

    Raises Refused, with line and byte, at bytes that are not UTF-8 and at NUL bytes, as the policy asks.
    """
    head = stream.read(CHUNK_BYTES)
    data = without_mark(head, where, issues)
    offset, line = len(head) - len(data), 1
    issues.n_bytes += len(head)
    while True:
        if issues.policy == "skip" and data:
            rest = stream.readline(CHUNK_BYTES)  # whole lines, so that a bad one can be left out whole
            issues.n_bytes += len(rest)
            data += rest
        text, used = _decode(data, where, line, offset, issues)
        if text:
            yield text
        line += data.count(b"\n", 0, used)
        offset += used
        fresh = stream.read(CHUNK_BYTES)
        issues.n_bytes += len(fresh)
        tail = data[used:]
        if not fresh:
            if tail:
                yield _bad_chunk(tail, where, line, offset, issues)
            return
        data = tail + fresh


def _decode(data: bytes, where: str, line: int, offset: int, issues: Issues) -> tuple[str, int]:
    """Decode a chunk: its text, and how many of its bytes were used (a character cut at the end is left
    over).
    """
    try:
        text, used = codecs.utf_8_decode(data, "strict", False)
        if b"\0" not in data:
            return text, used
    except UnicodeDecodeError:
        # Leave the start of a cut character for the next chunk here as well.
        used = codecs.utf_8_decode(data, "replace", False)[1]
    return _bad_chunk(data[:used], where, line, offset, issues), used


def _bad_chunk(data: bytes, where: str, line: int, offset: int, issues: Issues) -> str:
    """The text of a chunk that holds bad bytes, by the policy: refused, without its bad lines, or mended."""
    kept: list[str] = []
    for row in _LINES.findall(data):
        fault = bad_byte(row)
        if fault is None:
            kept.append(row.decode())
        else:
            at, kind, says = fault
            issues.fault(kind, where, line, f"byte {offset + at} {says}", mendable=True)
            if issues.policy == "replace":
                text, times = mended(row)
                issues.n_replaced += times
                kept.append(text)
            else:
                issues.n_skipped_bytes += len(row)
        line += row.count(b"\n")
        offset += len(row)
    return "".join(kept)


def bad_byte(data: bytes) -> tuple[int, str, str] | None:
    """The first byte that is not text: its index, the kind of fault, and the sentence that says so."""
    nul = data.find(b"\0")
    try:
        codecs.utf_8_decode(data, "strict", True)
    except UnicodeDecodeError as error:
        if nul < 0 or error.start < nul:
            # Windows-1252 is Latin-1 where that has letters, and quotes and dashes where it has controls.
            fix = "convert the file (iconv -f windows-1252 -t utf-8)"
            return error.start, "bad UTF-8", f"(0x{data[error.start]:02x}) is not UTF-8; {fix}"
    return (
        None if nul < 0 else (nul, "NUL bytes", "is NUL, which text does not hold; remove it (tr -d '\\000')")
    )


def mended(data: bytes) -> tuple[str, int]:
    """Decode with U+FFFD in place of bad and NUL bytes; the text and how many were written."""
    genuine = data.count("\ufffd".encode())
    text = data.decode("utf-8", "replace").replace("\0", "\ufffd")
    return text, text.count("\ufffd") - genuine


def read_lines(stream: BinaryIO, where: str, issues: Issues) -> Iterator[tuple[int, str]]:
    """Yield (line number, text with its newline) of a file of records, each at most 8 MB and valid UTF-8."""
    line, offset = 0, 0
    while row := stream.readline(MAX_RECORD_BYTES + 1):
        line += 1
        here, offset = offset, offset + len(row)
        if line == 1:
            row = without_mark(row, where, issues)
        if len(row) > MAX_RECORD_BYTES:
            limit = f"{MAX_RECORD_BYTES >> 20} MB"
            says = f"the record is longer than {limit}; split it, or give the text as a .txt file"
            skip_record(issues, "over-long records", where, line, says)
            while row and not row.endswith(b"\n"):
                row = stream.readline(MAX_RECORD_BYTES)
                offset += len(row)
            continue
        fault = None if row.isascii() and b"\0" not in row else bad_byte(row)
        if fault is None:
            yield line, row.decode()
            continue
        at, kind, says = fault
        issues.fault(kind, where, line, f"byte {here + at} {says}", mendable=True)
        if issues.policy == "replace":
            text, times = mended(row)
            issues.n_replaced += times
            yield line, text
        else:
            issues.n_records += 1
            issues.n_skipped_records += 1


def plain_lines(stream: BinaryIO, where: str, issues: Issues) -> Iterator[tuple[int, str]]:
    """Yield (line number, text without its line end) of every line, blank ones too.

    A line ends in LF or CR LF, as for every other program; U+2028, NEL, form feed and a lone CR are text.
    """
    for line, text in read_lines(stream, where, issues):
        yield line, text[:-1].removesuffix("\r") if text.endswith("\n") else text


def controls_note(n: int, first: str) -> str:
    """What to say of control characters U+0080 to U+009F in a text, met first at a place."""
    what = f"{n:,} control character{'s' * (n > 1)} from U+0080 to U+009F (first at {first})"
    return (
        f"{what}: Windows-1252 that was read as Latin-1? Convert the first file again (iconv -f windows-1252)"
    )


def n_controls(text: str) -> int:
    """How many control characters of the C1 set a text holds: the marks of Windows-1252 read as Latin-1."""
    return 0 if text.isascii() else len(_CONTROLS.findall(text))


def not_text(text: str) -> str | None:
    """What of a string is no text, in words: half of a surrogate pair, or a byte that is not UTF-8."""
    half = None if text.isascii() else _HALF_PAIR.search(text)
    if half is None:
        return None
    code, at = ord(half[0]), half.start()
    if code in _UNDECODED:
        return f"character {at} is the byte 0x{code - 0xDC00:02x}, which is not UTF-8; write it in UTF-8"
    return f"character {at} is half of a surrogate pair, which is not text; remove it"


def skip_record(issues: Issues, kind: str, where: str, line: int, says: str) -> None:
    """Note a record that has no meaning; raises Refused unless the policy is `skip`."""
    issues.n_records += 1
    issues.n_skipped_records += 1
    issues.fault(kind, where, line, says)
