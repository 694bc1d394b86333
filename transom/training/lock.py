"""One run per folder: a lock file that names its owner and does not outlive it.

The owner is a process id and the moment that process started, since ids are used again. A lock whose owner
is gone (kill -9, power loss) is taken over. A container that is started again has another host name and its
process ids mean nothing here, but the kernel is the same: it knows whether the owner still holds the file. Of
an owner on another machine nothing can be known, so its lock stands until a person says otherwise. `parent`
is the launcher: a run restarted by `torchrun --max-restarts` finds its own folder by it.
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
from typing import Any, TextIO

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
    """Whether the process that a lock names is still there, as far as its id tells; another host's may be."""
    if "pid" not in owner:
        return False
    if owner.get("host") != socket.gethostname():
        return True
    start = started(int(owner["pid"]))
    return start is not None and start == owner.get("started")


def on_this_kernel(owner: dict[str, Any]) -> bool:
    """Whether an owner ran under the kernel that runs here, if perhaps in another container."""
    boot, mine = str(owner.get("started")).partition(":")[0], str(started(os.getpid())).partition(":")[0]
    return boot == mine


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
        self._file, free = self._taken()
        owner = read(self.folder)
        elsewhere = owner.get("host", socket.gethostname()) != socket.gethostname()
        held = not free or is_held(owner) and not (elsewhere and on_this_kernel(owner))
        if held:
            self._file.close()
            fix = f", or remove {self.path} if that machine is gone" if free and elsewhere else ""
            raise Refused(
                f"{self.folder}: process {owner.get('pid', '?')} on {owner.get('host', 'this machine')} is "
                f"training in this folder; wait for it, choose another --out{fix}"
            )
        self._file.truncate(0)
        self._file.write(json.dumps(self._me()))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self

    def _taken(self) -> tuple[TextIO, bool]:
        """The lock file, and whether no process holds it.

        It is held until this process ends, however it ends: so the kernel tells whether an owner is there.
        """
        while True:
            file = open(self.path, "a+")  # noqa: SIM115 (closed by __exit__)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return file, False
            with suppress(FileNotFoundError):  # its owner may have taken the file away at this moment
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self.path)):
                    return file, True
            file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
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
