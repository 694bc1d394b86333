"""Texts for a verb that answers each: the lines of a file or of standard input, or one field of its records.

The one idea: every door reads alike. A line ends in LF or CR LF, a byte-order mark is dropped, what is not
UTF-8 is refused with its line, and a blank line keeps its place, so that answers line up with what was asked.
Read next: textfile, records.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from transom.data.documents import printable
from transom.data.findings import Findings
from transom.data.records import record_texts
from transom.data.rows import RECORDS, file_kind, readable_file
from transom.data.textfile import opened, plain_lines, read_text
from transom.errors import Refused

STANDARD_INPUT = "standard input"


def texts_of(path: Path | None, field: str | None = None) -> list[str]:
    """The lines of a text file or, without one, of standard input; of a table or records, one field.

    Raises Refused, with the line, for what cannot be read, and where there is no text at all.
    """
    findings = Findings(settable=False)
    if path is None:
        name = STANDARD_INPUT
        lines = plain_lines(standard_input(), name, findings)
    else:
        name = readable_file(path, "--input names a text file, a table or records")
        lines = _file_texts(path, name, field, findings)
    texts = [text for _, text in lines]
    if not any(text.strip() for text in texts):
        raise Refused(f"{name}: there is no text in it")
    return texts


def _file_texts(path: Path, name: str, field: str | None, findings: Findings) -> Iterator[tuple[int, str]]:
    if file_kind(path) in RECORDS:
        yield from record_texts(path, name, field, findings)
        return
    if field is not None:
        raise Refused(f"{name}: a text file has no field '{printable(field)}'; leave out --field")
    with opened(path, name) as stream:
        yield from plain_lines(stream, name, findings)


def whole_input() -> str:
    """All that standard input holds, as one text."""
    return "".join(read_text(standard_input(), STANDARD_INPUT, Findings(settable=False)))


def standard_input() -> BinaryIO:
    """The bytes of standard input. Raises Refused where the shell has closed it."""
    if sys.stdin is None:
        raise Refused(f"{STANDARD_INPUT} is closed; give a text, or a file to read")
    return sys.stdin.buffer


def split_lines(text: str) -> list[str]:
    """The lines of a text as its file would have them; a text without a line break is one."""
    return re.split(r"\r?\n", text)
