"""What a committed folder holds: `manifest.json` lists every file with its size and SHA-256.

safetensors takes a flipped bit in its payload without a word; the hash is what notices. The manifest is
written last, so a folder that has one was complete, and a folder that differs from it was damaged or edited.
Source: the checkpoint integrity file of Megatron-LM. Read next: folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.data.in_folder import inside
from transom.errors import Refused

from .strict_json import read_json

MANIFEST = "manifest.json"
VERSION = 1
WEIGHTS = ".safetensors"
EDITED = f"restore it from a copy; if you edited the folder yourself, delete its {MANIFEST}"


@dataclass(frozen=True)
class Entry:
    """One file of a committed folder: its size in bytes and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


def seal(folder: Path) -> None:
    """Sync every file below `folder` to the disk, then write and sync the manifest, then the directories."""
    files = files_below(folder)
    if MANIFEST in files:
        raise Refused(f"{folder / MANIFEST}: this name belongs to the manifest; save under another one")
    listed = {}
    for name, path in files.items():
        sync(path)
        listed[name] = {"sha256": _sha256(path), "size": path.stat().st_size}
    manifest = {"transom_manifest": VERSION, "digest": _digest(listed), "files": listed}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1))
        file.flush()
        os.fsync(file.fileno())
    for directory, _, _ in os.walk(folder, topdown=False):
        sync(Path(directory))


def verify(folder: str | Path, *, hashes: bool = True) -> None:
    """Check that a folder holds exactly what was committed; raises Refused naming a file that differs.

    With `hashes=False` only names and sizes are compared, which reads no content. Hidden files are not ours
    and are passed over.
    """
    folder = Path(folder)
    listed, present = read_manifest(folder), files_below(folder)
    for name in sorted(listed):
        if name not in present:
            raise Refused(f"{folder}: {name!r} is missing, though the folder was saved with it; {EDITED}")
    for name in sorted(present):
        hidden = any(part.startswith(".") for part in name.split("/"))
        if name not in listed and name != MANIFEST and not hidden:
            raise Refused(f"{folder / name}: not among the files that were saved here; remove it")
    for name, entry in sorted(listed.items()):
        _check(present[name], entry, hashes)


def verify_read(folder: Path, suffixes: tuple[str, ...]) -> None:
    """Check the listed files of these suffixes; what else lies in the folder, or changed there, is no matter.

    A folder without a manifest of ours passes: then there is nothing to compare with.
    """
    path = folder / MANIFEST
    if not path.exists() or not {"transom_manifest", "digest"} & read_json(inside(folder, MANIFEST)).keys():
        return  # many folders on the hub carry a manifest.json of another kind
    for name, entry in sorted(read_manifest(folder).items()):
        if name.endswith(suffixes):
            if not (folder / name).is_file():
                raise Refused(f"{folder}: {name!r} is missing, though the folder was saved with it; {EDITED}")
            _check(folder / name, entry, hashes=True)


def fingerprint(model: Path) -> str:
    """What tells the weights of a model from others: SHA-256 over the names and hashes of their files.

    A folder that was committed here has them in its manifest; of another one, or of a single file, the files
    are read.
    """
    manifest = model / MANIFEST
    if manifest.exists() and "transom_manifest" in read_json(inside(model, MANIFEST)):
        hashes = {name: entry.sha256 for name, entry in read_manifest(model).items()}
    else:
        files = [model] if model.is_file() else sorted(model.glob(f"*{WEIGHTS}"))
        hashes = {path.name: _sha256(path) for path in files}
    said = sorted(
        f"{name} {value}" for name, value in hashes.items() if model.is_file() or name.endswith(WEIGHTS)
    )
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Entry]:
    """The files that a folder was committed with; raises Refused without that list, or for a damaged one."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder")
    if not path.is_file():
        raise Refused(f"{folder}: not a complete save; it has no {MANIFEST}")
    manifest = read_json(inside(folder, MANIFEST))
    listed = manifest.get("files")
    if manifest.get("transom_manifest") != VERSION or not isinstance(listed, dict):
        raise Refused(f"{path}: not a manifest of version {VERSION}")
    keys_match = manifest.keys() == {"transom_manifest", "digest", "files"}
    if not keys_match or manifest["digest"] != _digest(listed):
        raise Refused(f"{path}: damaged; its own digest does not match; {EDITED}")
    return {name: _entry(entry, path) for name, entry in listed.items()}


def _entry(value: Any, path: Path) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"size", "sha256"}:
        raise Refused(f"{path}: an entry has no size and sha256")
    return Entry(**value)


def files_below(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its relative name, sorted; raises Refused for links, pipes and devices."""
    found: dict[str, Path] = {}
    for directory, below, names in os.walk(folder):
        for name in (*below, *names):
            path = Path(directory, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise Refused(f"{path}: not a plain file; a saved folder holds no links, pipes or devices")
            if path.is_file():
                found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))


def sync(path: Path) -> None:
    """Have the system write a file or directory to the disk before this returns."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle for that; it journals directory changes itself
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check(path: Path, entry: Entry, hashes: bool) -> None:
    size = path.stat().st_size
    if size != entry.size:
        raise Refused(f"{path}: {size:,} bytes long, but {entry.size:,} were saved; {EDITED}")
    if hashes and _sha256(path) != entry.sha256:
        raise Refused(f"{path}: damaged; its SHA-256 is not the one that was saved; {EDITED}")


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror})") from None


def _digest(listed: dict[str, Any]) -> str:
    """SHA-256 of the list itself, so that damage to the manifest is told from damage to a file."""
    return hashlib.sha256(json.dumps(listed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
