"""Archives of files of rows (.tar.gz, .tgz, .tar, .zip): the rows of all members, one after the other.

The one idea: a member is unpacked into a file of our own name, read like any other, and taken away, so what
a member is called and a link in the archive never name a place on this machine. What unpacks to far more than
the archive has is refused before it fills a disk. A record of an XML member is an element whose parts are
texts of different names, such as <QAPair><Question/><Answer/></QAPair>. Read next: rows.
"""

from __future__ import annotations

import gzip
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from xml.etree import ElementTree

from transom.data.documents import printable
from transom.data.issues import Issues
from transom.data.textfile import SkippedFile, skip_record
from transom.errors import Refused, nearest

ARCHIVES = (".tar", ".tgz", ".zip")
"""By extension, that of .tar.gz being .tar."""
XML, MEMBERS = ".xml", (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".xml")
"""What is read of an archive; other members (licences, read-me files) are left out."""
MOST_BYTES, MOST_TIMES = 1 << 26, 50
"""An archive may unpack to so many bytes, and to so many times its own size besides."""
PIECE = 1 << 20
Reads = Callable[[Path, str], Iterator[dict[str, Any]]]


def in_archive(path: Path) -> tuple[Path, str]:
    """The archive that a path leads into, and what of it is meant: `a.tar.gz/b/c.tsv` is `b/c.tsv` of
    `a.tar.gz`; the path itself and "" where it leads into none.
    """
    for archive in path.parents:
        kind = archive.with_suffix("").suffix if archive.suffix.lower() == ".gz" else archive.suffix
        if kind.lower() in ARCHIVES and archive.is_file():
            return archive, path.relative_to(archive).as_posix()
    return path, ""


def archive_rows(
    path: Path, where: str, issues: Issues, read: Reads, within: str = ""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) of all members, in the order of the archive; numbers count its rows from 1.

    read: the rows of a member, by the file it lies in and its printable name. within: the member, or the
    folder of members, that alone is read. Raises Refused.
    """
    number, n_members, spelled, passed = 0, 0, dict[str, str](), list[str]()
    where = where.removesuffix(f"!{printable(within)}")
    with tempfile.TemporaryDirectory(prefix="transom-member-") as folder:
        try:
            for name, copy in _members(path, where):
                kind = Path(name).suffix.lower()
                if kind not in MEMBERS or Path(name).name.startswith("."):
                    continue
                place = name.removeprefix("./")
                if within and place != within and not place.startswith(f"{within}/"):
                    passed.append(printable(place))
                    continue
                n_members += 1
                member, called = Path(folder) / f"member{kind}", f"{where}!{printable(name)}"
                copy(member)
                with suppress(SkippedFile):
                    for row in xml_rows(member, called, issues) if kind == XML else read(member, called):
                        number += 1
                        if kind == XML:  # as its first record spells them: MedQuAD has Question and question
                            row = {spelled.setdefault(name.lower(), name): text for name, text in row.items()}
                        yield number, row
        except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError,
                NotImplementedError, RuntimeError) as error:  # fmt: skip
            # RuntimeError is what zipfile raises for a member with a password.
            says = printable(str(error)) or type(error).__name__
            raise Refused(f"{where}: not a whole archive that can be read ({says}); make it again") from None
        except OSError as error:
            raise Refused(f"{where}: cannot be unpacked ({error.strerror or error})") from None
    if not n_members and passed:
        has = nearest(within, passed) or f"; it holds {', '.join(passed[:4])}" + ", ..." * (len(passed) > 4)
        raise Refused(f"{where}: there is no '{printable(within)}' in this archive{has}")
    if not n_members:
        raise Refused(f"{where}: no file in this archive holds rows; it takes {', '.join(MEMBERS)}")


def xml_rows(path: Path, where: str, issues: Issues) -> Iterator[dict[str, Any]]:
    """Yield the records of an XML file: elements with two or more texts under different names."""
    data = path.read_bytes()
    try:
        if b"<!ENTITY" in data or b"<!\0E\0N\0T\0" in data:
            raise ElementTree.ParseError("it declares entities, which are not read")
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        skip_record(issues, "broken XML", where, 1, f"not XML that can be read ({printable(str(error))})")
        return
    for element in tree.iter():
        names = [part.tag for part in element]
        if len(names) < 2 or len(set(names)) < len(names) or any(len(part) for part in element):
            continue
        row = {str(part.tag).rpartition("}")[2]: (part.text or "").strip() for part in element}
        if sum(map(bool, row.values())) > 1:
            yield row


class _Counted:
    """A stream that is refused once more than so many bytes came out of it."""

    def __init__(self, stream: BinaryIO, most: int, where: str) -> None:
        self.stream, self.left, self.where = stream, most, where

    def read(self, size: int = -1) -> bytes:
        found = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(found)
        if self.left < 0:
            raise Refused(
                f"{self.where}: unpacks to more than {MOST_TIMES} times its size, as what is made to fill a "
                "disk does; unpack it yourself where you trust it, and name a file of it"
            )
        return found


def _members(path: Path, where: str) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield the name of every regular file, and what copies it; good until the next one is asked for."""
    most = MOST_BYTES + MOST_TIMES * path.stat().st_size
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as packed:
            counted = _Counted(cast(BinaryIO, None), most, where)
            for info in packed.infolist():
                if not info.is_dir():
                    yield info.filename, partial(_from_zip, packed, info, counted)
        return
    with open(path, "rb") if path.suffix.lower() == ".tar" else gzip.open(path) as stream:
        counted = _Counted(cast(BinaryIO, stream), most, where)
        with tarfile.open(fileobj=cast(Any, counted), mode="r|") as packed:
            for member in packed:
                if member.isreg():
                    yield member.name, partial(_copy, packed.extractfile(member))


def _from_zip(packed: zipfile.ZipFile, info: zipfile.ZipInfo, counted: _Counted, to: Path) -> None:
    """Copy one file, through what counts the bytes of all."""
    with packed.open(info) as stream:
        counted.stream = cast(BinaryIO, stream)
        _copy(cast(BinaryIO, counted), to)


def _copy(stream: Any, to: Path) -> None:
    with open(to, "wb") as file:
        while piece := stream.read(PIECE):
            file.write(piece)
