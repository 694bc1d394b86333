"""Prepared data on disk, kept under a name that is made of everything it depends on: committed or absent.

The one idea: whoever asks again for the same finds it at once; of two processes that ask at the same time one
works and the other waits; and one that is killed leaves nothing half. Read next: prepare, prepare_examples.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from transom.data.tokens import disk_faults_named, sync_folder, synced

Found = TypeVar("Found")
Record = dict[str, Any]

_RECORD = "prepared.json"


def found(folder: Path, settings: Record, find: Callable[[Path, Record], Found]) -> Found | None:
    """What was prepared with these settings below `folder`, or None where there is nothing whole.

    `find` opens a folder with its record; what it raises for a damaged one means that there is none.
    """
    home = _home(folder, settings)
    try:
        record = json.loads((home / _RECORD).read_text("utf-8"))
        return find(home, record) if record["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # a damaged cache is made again; Refused is a ValueError


def once(
    folder: Path, settings: Record, find: Callable[[Path, Record], Found], make: Callable[[Path], Record]
) -> tuple[Found, bool]:
    """What these settings make below `folder`, and whether it was there from before.

    `make` fills a temporary folder and gives the record, of plain values; the folder takes its name when all
    of it is on the disk. Raises Refused where that cannot be written to.
    """
    before = found(folder, settings, find)
    if before is not None:  # without the lock, which a folder that one may only read has no place for
        return before, True
    home = _home(folder, settings)
    with disk_faults_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(home.with_name(f".{home.name}.lock"))).acquire()
    with lock:
        before = found(folder, settings, find)
        if before is not None:
            return before, True
        temporary = home.with_name(f".tmp-{home.name}")
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed; we hold the lock
        try:
            with disk_faults_named(home):
                temporary.mkdir()
            record = json.dumps({"settings": settings, **make(temporary)}, indent=2) + "\n"
            with disk_faults_named(home):
                (temporary / _RECORD).write_text(record, "utf-8")
                for path in sorted(temporary.iterdir()):
                    with open(path, "r+b") as file:
                        synced(file)
                sync_folder(temporary)
                shutil.rmtree(home, ignore_errors=True)
                os.replace(temporary, home)
                sync_folder(home.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return find(home, json.loads(record)), False


def _home(folder: Path, settings: Record) -> Path:
    return folder / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
