"""What each rank of a test of several processes runs: `ranks.py JSON`, with settings and a fault.

A launcher starts it as a program; without one, ranks are forked from a server that has torch already.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch

from transom.errors import Refused
from transom.settings import TrainSettings, load
from transom.training import gradient, loop

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torch.distributed", "transom.training.loop"])


def start(text: str, environment: dict[str, str], said: Path) -> multiprocessing.process.BaseProcess:
    """Start a rank; what it prints goes to `said` with .out and .err."""
    os.environ["PYTHONPATH"] = environment["PYTHONPATH"]  # for what the server loads ahead
    process = SERVER.Process(target=_rank, args=(text, environment, str(said)))
    process.start()
    return process


def _rank(text: str, environment: dict[str, str], said: str) -> None:
    os.environ.update(environment)
    for number, ending in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(said + ending, os.O_WRONLY | os.O_CREAT), number)
    sys.exit(main(text))


def main(text: str) -> int:
    torch.set_num_threads(1)
    said = json.loads(text)
    fault, at, once = said.get("fault"), said.get("at", 0), said.get("once", False)
    rank, first_try = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    take = gradient.take_gradient

    def faulty(objective, parts, n_targets, named, world, seed, step, *rest):  # type: ignore[no-untyped-def]
        if rank == 1 and step == at and fault is not None and (first_try or not once):
            if fault == "raise":
                raise ValueError("a fault of rank 1")
            os.kill(os.getpid(), getattr(signal, fault))
        return take(objective, parts, n_targets, named, world, seed, step, *rest)

    loop.take_gradient = faulty
    try:
        run = loop.train(load(TrainSettings, said["settings"]))
    except Refused as refusal:
        print(f"transom: {refusal}", file=sys.stderr)
        return 2
    if rank == 0:
        print("RESULT " + json.dumps({**run.to_dict(), "events": run.metrics}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
