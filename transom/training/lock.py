"""One run per folder: a lock file that names its owner and does not outlive it.

The owner is a process id and the moment that process started, since ids are used again. A lock whose owner
is gone (kill -9, power loss) is taken over. `parent` is the launcher: a run restarted by `torchrun
--max-restarts` finds its own folder by it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import Refused

NAME = "lock.json"


def started(pid: int) -> str | None:
    """When process `pid` started, in a form to compare; None when there is no such process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The name of the program stands in brackets and may hold spaces: count fields after the last one.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else f"{boot}:{fields[19]}"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    listed = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.strip() or None


def read(folder: Path) -> dict[str, Any]:
    """What the lock of a folder says, or nothing."""
    try:
        owner = json.loads((folder / NAME).read_text())
        return owner if isinstance(owner, dict) else {}
    except (OSError, ValueError):
        return {}


def is_held(owner: dict[str, Any]) -> bool:
    """Whether the process that a lock names is still there. Another host's is taken to be."""
    if "pid" not in owner:
        return False
    if owner.get("host") != socket.gethostname():
        return True
    start = started(int(owner["pid"]))
    return start is not None and start == owner.get("started")


def launched_by_my_parent(owner: dict[str, Any]) -> bool:
    """Whether a lock was written by an earlier child of the process that started this one."""
    parent = owner.get("parent") or {}
    return parent.get("pid") == os.getppid() and parent.get("started") == started(os.getppid())


class Lock:
    """Holds a run folder for this process, as a context; raises `Refused` when another process holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME

    def __enter__(self) -> Lock:
        self.folder.mkdir(parents=True, exist_ok=True)
        # The flock makes look-and-take one action; the lock itself is the content, which can be read.
        with open(self.path, "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            owner = read(self.folder)
            if is_held(owner):
                raise Refused(
                    f"{self.folder}: process {owner['pid']} on {owner['host']} is training in this folder; "
                    f"wait for it or choose another --run.out"
                )
            file.truncate(0)
            file.write(json.dumps(self._me()))
            file.flush()
            os.fsync(file.fileno())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if read(self.folder).get("pid") != os.getpid():
            return
        if error is not None and not isinstance(error, Refused):
            self.path.write_text(json.dumps({"parent": self._me()["parent"]}))  # for a restart to find
        else:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # a run refused at once leaves no empty folder
                self.folder.rmdir()

    @staticmethod
    def _me() -> dict[str, Any]:
        parent = os.getppid()
        return {
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "host": socket.gethostname(),
            "parent": {"pid": parent, "started": started(parent)},
        }
