"""A checkpoint: the weights, the optimizer's averages and where the run stands, whole or not at all.

The order of data and every random draw are functions of (seed, step), so where a run stands is a handful of
numbers: `Position`. A run resumed from it ends with the same bits as one that never stopped. safetensors and
JSON only, through the commit protocol of checkpoint/folder. Read next: loop.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.folder import NotSaved, commit, latest, recover, retain, sweep, verify
from ..checkpoint.tensors import load_tensors, save_tensors
from ..errors import Refused
from ..model.build import Model
from ..settings import LIMITS, TrainSettings
from ..units import Every
from .evaluate import Best, Score
from .optimizers import Optimizers, whole
from .parallelism import World
from .report import Report

WEIGHTS, OPTIMIZER, POSITION = "weights.safetensors", "optimizer.safetensors", "position.json"
SCORE = "score.json"
TIMES = 10
"""How often something is due in a run when nothing else is said; the last time at its end."""


@dataclass
class Position:
    """Where a run stands after `step` optimizer steps; with the weights, all that a resume needs."""

    step: int = 0
    tokens: int = 0
    """Trained on so far, over all ranks."""
    elapsed: float = 0.0
    """Seconds spent, those before earlier resumes included."""
    began: float = 0.0
    """Seconds that had been spent before the first step."""
    step_seconds: float = 0.0
    """A running average of the time of a step."""
    full_rate: int | None = None
    """The step after which the rate began to fall; the checkpoint of that step is kept (`more_time`)."""
    since: float = 0.0
    """Of its budget."""
    learned: float | None = None
    """A running average of the loss on what is learned from."""
    joules: float = 0.0
    micro: int = 0
    """Windows per micro-batch: kept, because it decides how sums are rounded."""
    dtype: str = "float32"
    skipped: list[int] = field(default_factory=list)
    """Steps that were skipped because they were not finite."""
    marks: dict[str, list[float]] = field(default_factory=dict)
    """When something last happened (held_out, sample, save): [step, elapsed, place in the run]."""
    world_size: int = 1
    data_hash: str = ""
    tokenizer_hash: str = ""
    base_hash: str = ""
    """Of the model that adapters go on, or gains are measured from; "" for none."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the numbers of the run depend on, by dotted name."""
    versions: dict[str, str] = field(default_factory=dict)

    def due(self, what: str, every: Every | None, place: float) -> bool:
        """Tell whether something is due, `place` (0 to 1) into the run; if so it is marked as done."""
        step, elapsed, before = self.marks.get(what, [0, 0.0, 0.0])
        if every is None:
            due = int(place * TIMES) > int(before * TIMES)
        else:
            due = every.due(int(self.step - step), self.elapsed - elapsed)
        if due:
            self.marks[what] = [self.step, self.elapsed, place]
        return due


@dataclass(frozen=True)
class Weights:
    """Whole tensors on the CPU, gathered from all ranks."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def gather(model: Model, optimizers: Optimizers, world: World) -> Weights:
    """Collect weights and optimizer state on rank 0; under FSDP2 every rank takes part."""
    if world.kind != "fsdp" and not world.is_first:
        return Weights({}, {})
    return Weights(gather_model(model, world), optimizers.state())


def gather_model(model: Model, world: World) -> dict[str, Tensor]:
    """Collect the weights alone, those that learn, likewise."""
    if world.kind != "fsdp" and not world.is_first:
        return {}
    return {name: whole(weight) for name, weight in learned(model).items()}


def learned(model: Model) -> dict[str, Tensor]:
    """Return what a run changes, by name: all but the weights that are frozen."""
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {name: weight for name, weight in model.state_dict().items() if name not in frozen}


def at_step(checkpoints: Path, step: int | None) -> Path:
    """Tell where the checkpoint of a step lies."""
    return checkpoints / f"step-{step or 0:06d}"


def assert_finite(weights: dict[str, Tensor]) -> None:
    """Raise `NotSaved` naming the first weight that is not finite: such weights are never committed."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            raise NotSaved(f"weight {name} is not finite; the last checkpoint stays, this one is not written")


def save(checkpoints: Path, weights: Weights, position: Position, keep: int) -> Path:
    """Commit a checkpoint as step-NNNNNN and keep the newest `keep`, among them the last at the full rate.

    Raises `Refused`, `NotSaved`.
    """
    assert_finite(weights.model)
    path = at_step(checkpoints, position.step)
    with commit(path) as folder:
        save_tensors(folder / WEIGHTS, weights.model, {})
        save_tensors(folder / OPTIMIZER, weights.optimizer, {})
        (folder / POSITION).write_text(json.dumps(asdict(position), indent=1, sort_keys=True))
    retain(checkpoints, keep, spare=at_step(checkpoints, position.full_rate).name)
    return path


def save_best(path: Path, weights: dict[str, Tensor], best: Best) -> Path:
    """Commit the weights of the best held-out result, in place of those before. Raises as `save`."""
    assert_finite(weights)
    with commit(path) as folder:
        save_tensors(folder / WEIGHTS, weights, {})
        (folder / SCORE).write_text(json.dumps(asdict(best), indent=1))
    return path


def load_best(path: Path, world: World) -> Best | None:
    """Return what `save_best` wrote, the same for all ranks: weights of this run, even where a resume begins
    before them. None where there are none that are whole.
    """

    def look() -> dict[str, Any] | None:
        recover(path)
        try:
            verify(path)
            return json.loads((path / SCORE).read_text())
        except (Refused, OSError, ValueError):
            return None

    said = world.on_rank_zero(look)
    if said is None:
        return None
    score = said["score"]
    return Best(**{**said, "score": Score(**{**score, "reporting": Score(**score["reporting"])})})


def newest(checkpoints: Path, world: World, report: Report) -> Path | None:
    """Return the newest checkpoint that verifies, the same for all ranks; says which newer ones do not."""

    def look() -> str | None:
        recover(checkpoints)
        sweep(checkpoints)
        path, refused = latest(checkpoints)
        for bad, why in refused:
            report("note", text=f"{bad.name} is not whole and was passed over: {why}")
        return str(path) if path else None

    path = world.on_rank_zero(look)
    return Path(path) if path else None


def load_position(path: Path) -> Position:
    """Read where a checkpoint stands. Raises `Refused` when it is not one of this version."""
    try:
        said = json.loads((path / POSITION).read_text())
        known = {f.name for f in fields(Position)}
        if unknown := set(said) - known:
            raise Refused(
                f"{path / POSITION}: unknown entry '{sorted(unknown)[0]}'; written by another version"
            )
        return Position(**said)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"{path / POSITION}: {error}") from error


def load_weights(path: Path, model: Model) -> None:
    """Put a checkpoint's weights, those that learn, into a model; before it is spread over ranks."""
    tensors = load_tensors(path / WEIGHTS)
    own = learned(model)
    for name in sorted(set(tensors) ^ set(own)):
        raise Refused(
            f"{path / WEIGHTS}: weight {name} is {'unknown here' if name in tensors else 'missing'}"
        )
    for name, weight in own.items():
        if tensors[name].shape != weight.shape or tensors[name].dtype != weight.dtype:
            raise Refused(
                f"{path / WEIGHTS}: {name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, "
                f"the model's is {weight.dtype} {tuple(weight.shape)}"
            )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])


def load_optimizer(path: Path, optimizers: Optimizers) -> None:
    """Put a checkpoint's optimizer state into the optimizers; after the model is spread over ranks."""
    optimizers.load_state(load_tensors(path / OPTIMIZER))


COMPARED_OTHERWISE = frozenset({"data.source", "data.field", "batch.micro", *LIMITS})
"""The data by its hash; the micro-batch is the checkpoint's own; limits by `more_time`."""


def check_unchanged(
    position: Position, settings: TrainSettings, data_hash: str, tokenizer_hash: str, base_hash: str = ""
) -> None:
    """Refuse to resume a run as another one, naming what differs."""
    if position.base_hash != base_hash:
        raise Refused(
            f"{settings.model.weights} does not hold the weights that this run began with, which its adapter "
            "goes on or its gains are measured from; bring them back, or start a new run with another --out"
        )
    if position.data_hash != data_hash:
        raise Refused(
            f"the data changed since this run began ({position.data_hash[:12]} then, {data_hash[:12]} now); "
            f"bring back the old text, or start a new run with another --out"
        )
    if position.tokenizer_hash != tokenizer_hash:
        raise Refused(
            "the tokenizer is not the one that this run began with; resume with that one, or start a new run "
            "with another --out"
        )
    if settings.batch.micro not in (None, position.micro):
        raise Refused(
            f"batch.micro is {settings.batch.micro}, but the run began with {position.micro}; leave it out"
        )
    now = settings.identity()
    for name in sorted((now.keys() | position.settings.keys()) - COMPARED_OTHERWISE):
        if now.get(name) != position.settings.get(name):
            raise Refused(
                f"{name} is {now.get(name)}, but the run was begun with {position.settings.get(name)}; "
                f"resume with the same settings, or start a new run with another --out"
            )


def fingerprint(weights: dict[str, Tensor]) -> str:
    """SHA-256 over the names and bytes of tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0")
        digest.update(weights[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
