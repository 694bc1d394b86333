"""What a model says of the answers before it learns, computed once and kept beside the prepared data.

DPO measures what each answer gains on the model as it was. Its log-probabilities are numbers, two for each
pair, so no second model is held in memory: they are taken before the first step and kept under a hash of
rows, weights and arithmetic, where a resumed run finds them. Read next: preference_task, data/cache.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..data import cache
from ..data.examples import Preferences
from ..data.tokens import disk_faults_named
from . import state
from .objectives import Preference
from .parallelism import World
from .report import Report

Logprobs = npt.NDArray[np.float32]
TOKENS = 4096, 32768
"""Of a batch, on a CPU and on a GPU."""


def keep_reference(
    objective: Preference, parts: Mapping[str, Preferences], rows: Path, world: World, report: Report
) -> None:
    """Give every part the log-probabilities (n, 2) of its answers by the model as it is.

    parts: by name, train and held out. rows: the folder of their prepared rows, beside which they are kept,
    and which is named after all that decides about them.
    """
    key = {
        "rows": rows.name, "weights": state.fingerprint(objective.model.state_dict()),
        "dtype": str(objective.dtype), "parts": list(parts),
    }  # fmt: skip
    if not world.on_rank_zero(lambda: cache.found(rows.parent, key, _read) is not None):
        began, n = time.monotonic(), sum(part.n_examples for part in parts.values())
        report("note", text=f"reference: what the model says of {n:,} pairs before it learns, taken once")
        said = {name: logprobs_of(objective, part, world) for name, part in parts.items()}
        world.on_rank_zero(lambda: _write(rows.parent, key, said))
        report("note", text=f"reference: taken in {time.monotonic() - began:.1f} s")
    found = cache.found(rows.parent, key, _read)
    assert found is not None
    for name, part in parts.items():
        part.reference = found[name]


@torch.no_grad()
def logprobs_of(objective: Preference, part: Preferences, world: World) -> Logprobs:
    """The log-probabilities (n, 2) of all answers, shared by the ranks."""
    was_training = objective.training
    objective.eval()
    found = np.zeros((part.n_examples, 2))
    batches = part.eval_rows(TOKENS[world.device.type == "cuda"])
    for rows in batches[world.rank :: world.size]:
        found[rows] = objective.logprobs(part.take(rows).to(world.device)).cpu().numpy()
    objective.train(was_training)
    whole = world.sum(found.ravel().tolist())
    return np.array(whole, dtype=np.float32).reshape(found.shape)


def _write(folder: Path, key: dict[str, Any], said: Mapping[str, Logprobs]) -> None:
    def write(home: Path) -> cache.Record:
        hashes = {}
        for name, numbers in said.items():
            with disk_faults_named(home):
                np.save(home / f"{name}.npy", numbers, allow_pickle=False)
            hashes[name] = hashlib.sha256(numbers.tobytes()).hexdigest()
        return {"hashes": hashes}

    cache.once(folder, key, _read, write)


def _read(home: Path, record: cache.Record) -> dict[str, Logprobs]:
    """What `_write` wrote. Raises ValueError where it is not that."""
    found = {}
    for name, digest in record["hashes"].items():
        found[name] = np.load(home / f"{name}.npy", allow_pickle=False)
        if hashlib.sha256(found[name].tobytes()).hexdigest() != digest:
            raise ValueError(f"{home / name}.npy is not what was written")
    return found
