"""A program that saves and dies, for test_commit and test_disk_full; without torch, so it forks in no time.

    saver.py points FOLDER swap|move   die at the k-th step of the file system, for every k
    saver.py kills FOLDER N            be killed N times at random moments
    saver.py full FOLDER LIMIT|-       save 0.1 MB, then 1 MB, with a limit on the size of a file or without

Prints one JSON object.
"""

from __future__ import annotations

import builtins
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from unittest import mock

from transom.checkpoint import folder as protocol
from transom.checkpoint.folder import NotSaved, commit, latest, recover, retain, sweep, verify

SIZES = {"weights.safetensors": 60_000, "optimizer.safetensors": 60_000, "state/position.json": 600}


def write(folder: Path, number: int, step=lambda: None) -> None:
    """Three files that hold `number`, each written in two halves."""
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with open(folder / name, "wb") as file:
            half = number.to_bytes(4, "little") * (size // 8)
            file.write(half)
            file.flush()
            step()
            file.write(half)


def number_in(folder: Path) -> int:
    """The number that a verified folder holds, the same in every file."""
    verify(folder)
    found = {int.from_bytes((folder / name).read_bytes()[-4:], "little") for name in SIZES}
    assert len(found) == 1, found
    return found.pop()


class Crash:
    """Counts the steps of the file system, and at the k-th one ends the process as a power cut would.

    What was written but not yet synced to the disk is lost: it is cut to half.
    """

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        self.unsynced: set[str] = set()

    def step(self) -> None:
        if self.count == self.at:
            for path in self.unsynced:
                if os.path.exists(path):
                    os.truncate(path, os.path.getsize(path) // 2)
            os._exit(9)
        self.count += 1

    def install(self) -> None:
        real_open = builtins.open

        def opened(path, mode="r", *args, **kwargs):
            if "w" in mode or "x" in mode:
                self.step()
                self.unsynced.add(os.path.abspath(path))
            return real_open(path, mode, *args, **kwargs)

        def synced(handle):
            self.step()
            self.unsynced.discard(os.readlink(f"/proc/self/fd/{handle}"))

        def moved(real):
            def move(source, target, **kwargs):
                self.step()
                done = real(source, target, **kwargs)
                swap = {str(source): str(target), str(target): str(source)}
                self.unsynced = {_under(path, swap) for path in self.unsynced}
                return done

            return move

        def counted(real):
            def call(*args, **kwargs):
                self.step()
                return real(*args, **kwargs)

            return call

        builtins.open, os.fsync = opened, synced
        os.rename, protocol.exchange = moved(os.rename), moved(protocol.exchange)
        os.mkdir, os.unlink, os.rmdir = counted(os.mkdir), counted(os.unlink), counted(os.rmdir)


def _under(path: str, moves: dict[str, str]) -> str:
    for source, target in moves.items():
        if path.startswith(source + os.sep):
            return target + path[len(source) :]
    return path


def scenario(parent: Path, acknowledge, step) -> None:
    """Three checkpoints of which two are kept, and a model folder that is written three times over."""
    for number in (1, 2, 3):
        with commit(parent / "checkpoints" / f"step-{number:06d}") as folder:
            write(folder, number, step)
        acknowledge("checkpoint", number)
        retain(parent / "checkpoints", 2)
        with commit(parent / "model") as folder:
            write(folder, number, step)
        acknowledge("model", number)


def forked(action) -> tuple[int, dict[str, int]]:
    """Run `action(acknowledge)` in a child; its exit code, and what it acknowledged before it ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        action(lambda what, number: os.write(writer, f"{what} {number}\n".encode()))
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as pipe:
        said = dict(line.split() for line in pipe)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), {what: int(n) for what, n in said.items()}


def check(parent: Path, acknowledged: dict[str, int], swap: bool) -> None:
    """What a reader finds after a crash, before and after the next start clears up."""
    checkpoints, model = parent / "checkpoints", parent / "model"
    if "model" in acknowledged:
        if not swap:
            recover(model)
        assert acknowledged["model"] <= number_in(model) <= 3
    for tidy in (False, True):
        if tidy:
            sweep(parent)
            sweep(checkpoints)
            left = [*parent.rglob(".tmp-*"), *parent.rglob(".old-*"), *parent.rglob(".gc-*")]
            assert not left, left
            for folder in checkpoints.iterdir() if checkpoints.exists() else ():
                verify(folder)  # nothing half-removed under a name of its own
        newest, refused = latest(checkpoints)
        assert not refused, refused
        if "checkpoint" in acknowledged:
            assert newest is not None and number_in(newest) >= acknowledged["checkpoint"]
    with commit(model) as folder:  # and saving goes on
        write(folder, 4)
    assert number_in(model) == 4


def points(parent: Path, swap: bool) -> dict[str, object]:
    """Crash at every point; how many there were."""
    if not swap:
        protocol.exchange = lambda first, second: False
    k = 0
    while True:
        crash = Crash(k)

        def action(acknowledge, crash=crash):
            crash.install()
            scenario(parent, acknowledge, crash.step)

        code, acknowledged = forked(action)
        assert code in (0, 9), code
        if code == 0:
            assert acknowledged == {"checkpoint": 3, "model": 3}
            kept = sorted(path.name for path in (parent / "checkpoints").iterdir())
            assert kept == ["step-000002", "step-000003"], kept
            assert sorted(path.name for path in parent.iterdir()) == ["checkpoints", "model"]
            return {"points": k}
        check(parent, acknowledged, swap)
        shutil.rmtree(parent)
        k += 1


def kills(parent: Path, n: int) -> dict[str, object]:
    """Kill a process that saves in a loop, at random moments; the newest number, and what was lost."""
    dice = random.Random(0)
    acknowledged = lost = unusable = 0
    for _ in range(n):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            sweep(parent)
            newest, _ = latest(parent)
            number = 0 if newest is None else number_in(newest)
            while True:
                number += 1
                with commit(parent / f"step-{number:06d}") as folder:
                    write(folder, number)
                os.write(writer, f"{number}\n".encode())
                retain(parent, 2)
        os.close(writer)
        time.sleep(dice.uniform(0.002, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(reader, encoding="ascii") as pipe:
            acknowledged = max([acknowledged, *(int(line) for line in pipe)])
        newest, refused = latest(parent)
        unusable += bool(refused)
        lost += acknowledged > (0 if newest is None else number_in(newest))
    return {"kills": n, "saved": acknowledged, "lost": lost, "unusable": unusable}


def full(parent: Path, limit: int | None) -> dict[str, object]:
    """Save until there is no room; what was said, and what is left."""
    with commit(parent / "model") as folder:
        write(folder, 1)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    said = ""
    try:
        with mock.patch.dict(SIZES, {"weights.safetensors": 960_000}), commit(parent / "model") as folder:
            write(folder, 2)
    except NotSaved as error:
        said = str(error)
    return {
        "said": said,
        "left": sorted(path.name for path in parent.iterdir()),
        "holds": number_in(parent / "model"),
    }


if __name__ == "__main__":
    mode, parent, extra = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    # A kill leaves the system's memory of files as it is: the order of syncs matters here, not the disk.
    os.fsync = lambda handle: None
    if mode == "points":
        outcome = points(parent, swap=extra == "swap")
    elif mode == "kills":
        outcome = kills(parent, int(extra))
    else:
        outcome = full(parent, None if extra == "-" else int(extra))
    print(json.dumps(outcome))
