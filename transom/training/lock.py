"""One run per folder: a lock of the kernel, and beside it a record that names the owner.

The kernel lets go of a lock when its process ends, however it ends (kill -9, power loss, a container that is
started again under another name). Between machines that share a folder it may not hold, so a record of
another machine, under another kernel, stands until a person says otherwise. `parent` is the launcher: a run
restarted by `torchrun --max-restarts` finds its own folder by it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ..errors import Refused

NAME, LOCK = "lock.json", ".lock"


def read(folder: Path) -> dict[str, Any]:
    """Return the record of a folder's owner, or nothing."""
    try:
        owner = json.loads((folder / NAME).read_text())
        return owner if isinstance(owner, dict) else {}
    except (OSError, ValueError):
        return {}


def is_held(folder: Path) -> bool:
    """Tell whether a process trains in a folder; one on another machine may."""
    if not (folder / LOCK).exists():
        return _is_elsewhere(read(folder))
    lock = FileLock(folder / LOCK)
    try:
        with lock.acquire(timeout=0):
            return _is_elsewhere(read(folder))
    except Timeout:
        return True


def launched_by_my_parent(owner: dict[str, Any]) -> bool:
    """Tell whether a record was written by an earlier child of the process that started this one."""
    return owner.get("parent") == _parent()


class Lock:
    """Holds a run folder for this process, as a context; raises `Refused` when another process holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self._lock = FileLock(folder / LOCK, thread_local=False)

    def __enter__(self) -> Lock:
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            self._lock.acquire(timeout=0)
        free, owner = self._lock.is_locked, read(self.folder)
        if not free or _is_elsewhere(owner):
            fix = f", or remove {self.path} if that machine is gone" if free else ""
            self._release()
            raise Refused(
                f"{self.folder}: process {owner.get('pid', '?')} on {owner.get('host', 'this machine')} is "
                f"training in this folder; wait for it, choose another --out{fix}"
            )
        me = {"pid": os.getpid(), "host": socket.gethostname(), "kernel": _kernel(), "parent": _parent()}
        self.path.write_text(json.dumps(me))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Refused):
            self.path.write_text(json.dumps({"parent": _parent()}))  # for a restart to find
        else:
            self.path.unlink(missing_ok=True)
        self._release()
        with suppress(OSError):  # a run refused at once leaves no empty folder
            self.folder.rmdir()

    def _release(self) -> None:
        """Take the lock's file away while it is held: whoever opened it before makes another one."""
        if self._lock.is_locked:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.release()


def _is_elsewhere(owner: dict[str, Any]) -> bool:
    """Tell whether an owner ran on another machine, which is no container of this one."""
    here = socket.gethostname(), _kernel()
    another_kernel = not here[1] or owner.get("kernel") != here[1]
    return owner.get("host", here[0]) != here[0] and another_kernel


def _kernel() -> str:
    """Return the name of the running kernel's boot, the same in all containers; "" where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _parent() -> dict[str, Any]:
    """Return the process that started this one, told from others that have had its id."""
    pid = os.getppid()
    try:  # the program's name stands in brackets and may hold spaces: count fields after the last one
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
        started = listed.stdout.strip()
    return {"pid": pid, "started": started, "kernel": _kernel()}
