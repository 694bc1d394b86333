"""A program that answers rows and dies, or whose workers die, for test_batch.

    batcher.py points FOLDER    die at the k-th step of the file system, for every k, and come to the end
    batcher.py kills FOLDER N   be killed N times at random moments, then come to the end
    batcher.py ray FOLDER       two workers of a Ray cluster, one of which is killed while it works

FOLDER holds a model and rows.jsonl. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.checkpoint.saver import Crash, forked
from transom.errors import Refused
from transom.inference import batch
from transom.inference.batch import Batch

ROWS, OF_RAY = 8, 400
"""Of a shard."""


def job(folder: Path, out: str, n_rows: int = ROWS) -> Batch:
    settings: dict[str, Any] = dict(beam=2, length_penalty=None, max_tokens=12)
    rows, model = folder / "rows.jsonl", str(folder / "model")
    how: dict[str, Any] = dict(settings=settings, deterministic=True, workers=1, n_rows=n_rows)
    return Batch("translate", model, rows, folder / out, **how)


def shards(folder: Path, out: str) -> dict[str, int]:
    """The shards that are there, each by when it was written."""
    parts = folder / f"{out}.parts"
    return {path.name: path.stat().st_mtime_ns for path in parts.glob("[0-9]*.jsonl")}


def kills(folder: Path, n: int) -> dict[str, Any]:
    """Kill runs at random moments, so often or until little is left to do; how many shards each left, and
    whether any was done again.
    """
    dice, seen, left, again = random.Random(0), dict[str, int](), list[int](), 0
    enough = 3 * len(job(folder, "out.jsonl").shards) // 4
    while len(left) < n and len(seen) < enough:
        child = os.fork()
        if child == 0:
            job(folder, "out.jsonl").run()
            os._exit(0)
        began = len(shards(folder, "out.jsonl"))
        while len(shards(folder, "out.jsonl")) == began and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.001)
        time.sleep(dice.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = shards(folder, "out.jsonl")
        again += sum(now.get(name) != when for name, when in seen.items())
        seen = now
        left.append(len(now))
    told: list[str] = []
    written = job(folder, "out.jsonl").run(tell=told.append)
    return {"left": left, "again": again, "rows": written.n_rows, "told": told[:2]}


def points(folder: Path) -> dict[str, Any]:
    """Crash at every point of a small job, and go on; how many points there were, and what came of each."""
    found = list[str]()
    while True:
        crash, real = Crash(len(found)), os.replace

        def move(*args: Any, crash: Crash = crash, real: Any = real) -> None:
            crash.step()
            real(*args)

        def action(_: object, crash: Crash = crash, move: Any = move) -> None:
            crash.install()
            os.replace = move
            job(folder, "out.jsonl").run()

        code, _ = forked(action)
        assert code in (0, 9), code
        out = folder / "out.jsonl"
        before = out.read_text() if out.exists() else None
        if code == 0:
            assert before == found[-1]
            return {"points": len(found), "different": len({*found})}
        job(folder, "out.jsonl").run()
        found.append(out.read_text())
        assert before in (None, found[-1])
        assert sorted(path.name for path in folder.iterdir()) == ["model", "out.jsonl", "rows.jsonl"]
        out.unlink()


def ray(folder: Path) -> dict[str, Any]:
    """Kill a worker at its work; then every worker, until that is too much for the run."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    killed: list[int] = []
    try:
        for out, most in (("one.jsonl", 1), ("all.jsonl", 1000)):
            killed.clear()
            over = threading.Event()
            killer = threading.Thread(target=kill_workers, args=(folder, out, most, over, killed))
            killer.start()
            refused = ""
            try:
                job(folder, out, OF_RAY).run(ray=cluster.address)
            except Refused as error:
                refused = str(error)
            over.set()
            killer.join()
            assert killed and bool(refused) == (most > 1), (killed, refused)
        there = shards(folder, "all.jsonl")
    finally:
        cluster.shutdown()
    job(folder, "all.jsonl", OF_RAY).run()
    return {"refused": refused, "kept": len(there)}


def kill_workers(folder: Path, out: str, most: int, over: threading.Event, killed: list[int]) -> None:
    """Once a shard is there, kill processes that are at work on another, so many."""
    while not over.is_set() and len(killed) < most:
        time.sleep(0.02)
        if shards(folder, out):
            at_work = [pid for pid in below(os.getpid()) if command(pid).startswith("ray::answers")]
            for pid in at_work[: most - len(killed)]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that these started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, frontier = list[int](), {pid}
    while frontier := {child for child, parent in parents.items() if parent in frontier}:
        found += frontier
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


if __name__ == "__main__":
    mode, place = sys.argv[1], Path(sys.argv[2])
    batch.TELL_EVERY = 0.0
    modes = {"points": points, "ray": ray, "kills": lambda folder: kills(folder, int(sys.argv[3]))}
    print(json.dumps(modes[mode](place)))
