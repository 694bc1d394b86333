"""Where text comes from: files, folders, standard input, the hub, the standard library, all as one stream of
documents.

The one idea: a source is a list of files, each with a reader, and can be read again from the start as often
as needed, a part at a time, so that a corpus larger than memory works. Read next: documents, textfile,
records, check.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from transom.data.archives import ARCHIVES
from transom.data.documents import Document, divided, in_parts, printable
from transom.data.issues import Issues, Policy, as_policy
from transom.data.lines import STANDARD_INPUT, standard_input
from transom.data.records import json_lines, record_file
from transom.data.rows import PARQUET, RECORDS, HubRows, RowFile, file_kind
from transom.data.samples import STDLIB, stdlib_files
from transom.data.tables import separator_of
from transom.data.textfile import SkippedFile, head_of, opened, read_text
from transom.errors import Refused

Reader = Callable[[Any, str | None, Issues], Iterator[Document]]


def text_file(file: RowFile, _field: str | None, issues: Issues) -> Iterator[Document]:
    """A text, code or Markdown file: one document, or those between its lines `<|endoftext|>`."""

    def pieces() -> Iterator[str]:
        with opened(file.path, file.where) as stream:
            yield from read_text(stream, file.where, issues)

    n_documents = 0
    for line, stream in divided(pieces(), issues.division):
        head: list[str] = []
        for piece in stream:
            head.append(piece)
            if piece.strip():
                n_documents += 1
                yield Document(file.where, line, in_parts(chain(head, stream), issues.rough_cut))
                break
    issues.n_empty += not n_documents


_NOT_TEXT = frozenset(
    re.findall(
        r"\S+",
        ".png .jpg .jpeg .gif .bmp .tif .tiff .webp .ico .svgz .psd .pdf .ps .eps .doc .docx .xls .xlsx "
        ".ppt .pptx .odt .zip .tar .tgz .bz2 .xz .zst .7z .rar .whl .egg .jar .class .pyc .pyo .pyd .so "
        ".dll .dylib .exe .o .a .obj .lib .bin .dat .db .sqlite .sqlite3 .pkl .npy .npz .pt .pth .ckpt "
        ".safetensors .gguf .onnx .h5 .hdf5 .arrow .mp3 .mp4 .m4a .wav .flac .ogg .avi .mov .mkv .webm "
        ".ttf .otf .woff .woff2 .eot .iso .img .wasm .tokens",
    )
)
_RUN = ("settings.toml", "metrics.jsonl")
_MODEL = ("config.json", "model.safetensors")
_NOT_FOLDERS = frozenset(["__pycache__", "node_modules", "venv", "site-packages"])
_SNIFFED_BYTES = 1 << 16


@dataclass(frozen=True)
class Entry:
    """One file of a source, and how it is read."""

    file: RowFile | HubRows
    reader: Reader


@dataclass
class Source:
    """Text to read: a name, and a stream of documents that can be read again and again."""

    name: str
    entries: list[Entry]
    field: str | None = None
    on_error: Policy = "error"
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    """Files of the folder that are no text, counted by reason."""

    @property
    def n_bytes(self) -> int | None:
        """Bytes of text to expect, where the size on disk tells it (None for gzip, Parquet and the hub)."""
        files = [entry.file for entry in self.entries if isinstance(entry.file, RowFile)]
        if len(files) < len(self.entries) or any(
            file.path.suffix.lower() in (".gz", PARQUET, *ARCHIVES) for file in files
        ):
            return None
        return sum(file.state[0] for file in files)

    def documents(self, issues: Issues | None = None) -> Iterator[Document]:
        """Stream the documents in a fixed order; each must be read before the next is asked for.

        What is met on the way is counted in `issues`. Raises Refused, with the place, as `on_error` asks.
        """
        issues = issues if issues is not None else Issues()
        issues.policy = self.on_error
        for entry in self.entries:
            issues.n_files += 1
            try:
                yield from entry.reader(entry.file, self.field, issues)
            except SkippedFile:
                continue

    def fingerprint(self) -> str:
        """A hash that changes when a file is added, removed, resized or written to; reads no text."""
        digest = hashlib.sha256(repr((self.field, self.on_error)).encode())
        for entry in self.entries:
            file = entry.file
            if isinstance(file, HubRows):
                facts: object = file.fingerprint()
            else:
                facts = file.content or (str(file.path.absolute()), file.within, *file.state)
            digest.update(repr(facts).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def open_source(
    spec: str | Path | list[str] | list[Path], *, field: str | None = None, on_error: str = "error"
) -> Source:
    """Open text by name: a file, a folder, a list of these, `-` (standard input), `hf:NAME` or `stdlib`.

    Nothing is read yet but names and the first bytes of a folder's files. `field` names the text field of
    records. Raises Refused where there is nothing to read.
    """
    policy = as_policy(on_error)
    if isinstance(spec, list):
        if not spec:
            raise Refused("no data is named: give a file, a folder, '-', 'hf:NAME' or 'stdlib'")
        return _joined([open_source(part, field=field, on_error=on_error) for part in spec])
    name = str(spec)
    if name == STDLIB:
        root, files = stdlib_files()
        entries = [
            Entry(RowFile(path, f"{STDLIB}/{path.relative_to(root).as_posix()}"), text_file) for path in files
        ]
        return Source(STDLIB, entries, on_error=policy)
    if name == "-":
        file = spooled_input()
        records = record_file if file.kind in RECORDS else json_lines
        return Source(STANDARD_INPUT, [Entry(file, text_file if field is None else records)], field, policy)
    if name.startswith("hf:"):
        hub = HubRows(printable(name), _hub_data(name))
        return Source(hub.where, [Entry(hub, record_file)], field, policy)
    return _from_path(Path(name), field, policy)


def _joined(sources: list[Source]) -> Source:
    if any(isinstance(entry.file, HubRows) for source in sources for entry in source.entries):
        raise Refused("a list of sources holds files and folders only; name a data set of the hub alone")
    left_out: dict[str, int] = {}
    for source in sources:
        for reason, count in source.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    entries = [entry for source in sources for entry in source.entries]
    first = sources[0]
    return Source(
        ", ".join(source.name for source in sources), entries, first.field, first.on_error, left_out
    )


def open_rows(spec: str, instead: str) -> RowFile | HubRows:
    """Open rows by name: a file, `-` (standard input) or `hf:NAME`.

    Raises Refused for what cannot be read; `instead` is the fix.
    """
    if spec == "-":
        return spooled_input()
    if spec.startswith("hf:"):
        return HubRows(printable(spec), _hub_data(spec))
    return RowFile.named(Path(spec), instead)


_AHEAD: weakref.WeakKeyDictionary[Any, RowFile] = weakref.WeakKeyDictionary()


def spooled_input(*, ahead: bool = False) -> RowFile:
    """Standard input as a temporary file that lives as long as what is returned, and can be read again.

    The file has the extension that its first lines look like. ahead: the next call gets the same.
    """
    stdin = sys.stdin
    file = _AHEAD.pop(stdin, None) if stdin is not None else None
    if file is None:
        folder = Path(tempfile.mkdtemp(prefix="transom-input-"))
        path, digest = folder / "standard-input", hashlib.sha256()
        with open(path, "wb") as spool:
            stream = standard_input()
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                spool.write(chunk)
        file = RowFile(path.rename(path.with_suffix(looks_like(path))), STANDARD_INPUT, digest.hexdigest())
        weakref.finalize(file, shutil.rmtree, folder, ignore_errors=True)
    if ahead:
        _AHEAD[stdin] = file
    return file


def looks_like(path: Path, where: str = STANDARD_INPUT) -> str:
    """The extension of a file whose first lines look like rows, or "" for running text."""
    head = head_of(path, where, _SNIFFED_BYTES)
    if head.startswith(b"PAR1"):
        return ".parquet"
    text = head.decode("utf-8", "ignore")
    lines = text.splitlines(keepends=True)
    whole = len(head) < _SNIFFED_BYTES
    lines = lines if whole or len(lines) < 2 else lines[:-1]
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(next((line for line in lines if line.strip()), "")), dict):
            return ".jsonl"
    if re.match(r"\s*\[\s*\{", text):
        return ".json"
    separator = separator_of(lines, whole=whole)
    return "" if not separator else ".tsv" if separator == "\t" else ".csv"


def _hub_data(name: str) -> Any:
    """`hf:NAME` or `hf:NAME:CONFIGURATION`: the split `train` of a data set of the hub (extra: datasets)."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Refused(f"{printable(name)}: data sets of the hub need: pip install 'transom[data]'") from None
    dataset, _, configuration = name.removeprefix("hf:").partition(":")
    try:
        return datasets.load_dataset(dataset, configuration or None, split="train")
    except Exception as error:  # the library raises many kinds: network, permission, names, formats
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refused(
            f"{printable(name)}: the hub's data set cannot be opened ({printable(first)})"
        ) from None


def _from_path(path: Path, field: str | None, policy: Policy) -> Source:
    if os.path.isdir(path):  # which no name is too long for
        return _from_folder(path, printable(path), field, policy)
    file = RowFile.named(path, "give text, JSONL, CSV or Parquet")
    name, kind = file.where, file.kind
    if kind in _NOT_TEXT and kind not in RECORDS:
        raise Refused(f"{name}: not a text file; give text, JSONL, CSV or Parquet")
    reader = record_file if kind in RECORDS else text_file
    return Source(name, [Entry(file, reader)], field, policy)


def _from_folder(root: Path, name: str, field: str | None, policy: Policy) -> Source:
    """Every text file of a folder in sorted order; with a field named, its files of records instead."""
    if _is_run(root) or all((root / part).is_file() for part in _MODEL):
        raise Refused(
            f"{name}: a run or a model, not text; to begin with its weights: "
            f"transom train DATA --model.weights {shlex.quote(str(root))}"
        )
    entries: list[Entry] = []
    left_out: dict[str, int] = {}
    for path in _files(root, left_out):
        kind = file_kind(path)
        is_records = kind in RECORDS and kind not in ARCHIVES and (field is not None or kind != ".json")
        if field is not None:
            reason = None if is_records else "files without fields"
        elif is_records:
            reason = "data files (name one of them, or --data.field to read the text of their records)"
        elif path.is_symlink() and not path.exists():
            reason = "broken links"
        elif not path.is_file() or not os.access(path, os.R_OK):
            reason = "unreadable files"
        else:
            reason = "binary files" if kind in _NOT_TEXT or _looks_binary(path) else None
        if reason is None:
            reader = record_file if field is not None else text_file
            entries.append(Entry(RowFile(path, printable(path)), reader))
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    if not entries:
        rest = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise Refused(f"{name}: no text files in this folder ({rest})")
    return Source(name, entries, field, policy, left_out)


def _is_run(folder: Path) -> bool:
    """Tell whether a folder is a run of Transom, whose settings and model card are no text to learn."""
    return all((folder / part).is_file() for part in _RUN)


def _files(root: Path, left_out: dict[str, int]) -> Iterator[Path]:
    """Files below `root` sorted by path; hidden ones, caches, packages and runs are left out and counted."""
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        keep = [n for n in folders if not n.startswith(".") and n not in _NOT_FOLDERS]
        left_out["hidden and installed folders"] = (
            left_out.get("hidden and installed folders", 0) + len(folders) - len(keep)
        )
        folders[:] = [n for n in keep if not _is_run(Path(folder, n))]
        if len(folders) < len(keep):
            left_out["runs of Transom"] = left_out.get("runs of Transom", 0) + len(keep) - len(folders)
        shown = [n for n in names if not n.startswith(".")]
        left_out["hidden files"] = left_out.get("hidden files", 0) + len(names) - len(shown)
        found.extend(Path(folder, name) for name in shown)
    for reason in [reason for reason, count in left_out.items() if not count]:
        del left_out[reason]
    return iter(sorted(found, key=lambda path: path.relative_to(root).parts))


def _looks_binary(path: Path) -> bool:
    """Whether the first bytes hold NUL and are no text but for that (a stray NUL is a fault to report)."""
    if path.suffix.lower() == ".gz":
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_SNIFFED_BYTES)
    except OSError:
        return False
    if b"\0" not in head or head.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return False  # UTF-16 and UTF-32 are refused by name when they are read
    try:
        codecs.utf_8_decode(head, "strict", False)
    except UnicodeDecodeError:
        return True
    return head.count(b"\0") > len(head) // 100
