"""What each rank of a test of several processes runs: `ranks.py JSON`, with settings and a fault."""

from __future__ import annotations

import json
import os
import signal
import sys

import torch

from transom.errors import Refused
from transom.settings import TrainSettings, load
from transom.training import gradient, loop


def main() -> int:
    torch.set_num_threads(1)
    said = json.loads(sys.argv[1])
    fault, at, once = said.get("fault"), said.get("at", 0), said.get("once", False)
    rank, first_try = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    take = gradient.take_gradient

    def faulty(*given):  # type: ignore[no-untyped-def]
        step = given[6]
        if rank == 1 and step == at and fault is not None and (first_try or not once):
            if fault == "raise":
                raise ValueError("a fault of rank 1")
            os.kill(os.getpid(), getattr(signal, fault))
        return take(*given)

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
    sys.exit(main())
