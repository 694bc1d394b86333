"""A run that is given another limit: from where it goes on; and one that has nothing left to do.

Until its rate begins to fall, a run that warms up, stays and decays does not depend on its length (Hu et al.
2024, MiniCPM). The checkpoint of that step is kept: from there a run goes on as if it had been begun with the
other limit, and what it learned while its rate fell is taken back. Read next: budget, state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.folder import remove, verify
from ..errors import Refused
from ..settings import LIMITS, TrainSettings, load
from ..units import format_time
from .budget import Budget
from .display import clock
from .folder import RunFolder
from .parallelism import World
from .report import Event, Report, history
from .run import Run
from .state import Position, at_step, load_best, load_position
from .task import Feed


def finished(folder: RunFolder, settings: TrainSettings, report: Report) -> Run | None:
    """Return the run of a folder that ended by itself, where nothing else is asked for; say what could be."""
    try:
        kept, events = load(TrainSettings, file=folder.settings), history(folder.metrics)
    except (OSError, Refused):
        return None
    end: Event = events[-1] if events else {}
    ended = end.get("event") == "end" and not (end["interrupted"] or end.get("unsaved"))
    newest = at_step(folder.checkpoints, end.get("step"))
    whole = newest.is_dir() and folder.model.is_dir()
    if not (ended and whole) or kept.identity() != settings.identity():
        return None
    ((name, value),) = limit_of(kept.identity()).items()
    more = another_run(folder, kept)
    if start_of_more(folder, newest, load_position(newest)) is not None:
        spent = math.ceil(end["elapsed"]) if name == "budget" else 0
        twice = kept.with_({name: 2 * max(kept[name], spent)}).identity()[name]
        more = f"transom train --out {folder.path} --resume --{name} {twice}"
    text = f"nothing is left to do: {folder.path} ended by its {name} of {value}. More of it: {more}"
    report("note", end["step"], text=text)
    return Run.of_events(folder.path, kept.task, events)


def refuse_limit(folder: RunFolder, checkpoint: Path, position: Position, settings: TrainSettings) -> None:
    """Raise Refused for another limit that a run has reached already, or cannot be given; reads no data.

    Of epochs `go_on_from` tells: how many steps they are is in the data.
    """
    limit, before = limit_of(settings.identity()), limit_of(position.settings)
    if limit == before:
        return
    (name, value), (was, length) = *limit.items(), *before.items()
    if settings.steps is not None and settings.steps <= position.step:
        raise _reached(name, value, f"{position.step:,} steps are done already")
    if settings.tokens is not None and settings.tokens <= position.tokens:
        raise _reached(name, value, f"{position.tokens:,} tokens are learned already")
    if settings.budget is not None and settings.budget <= position.elapsed:
        raise _reached(name, value, f"the run has taken {clock(position.elapsed)} already")
    if start_of_more(folder, checkpoint, position) is None:
        falls = "its rate falls from the start (optim.schedule)"
        why = "no checkpoint is left from before its rate fell"
        raise Refused(
            f"{name} is {value}, but the run was begun with {was} {length}, and "
            f"{why if settings.optim.schedule == 'wsd' else falls}; start a new one from "
            f"its weights: {another_run(folder, settings)}"
        )


def _reached(name: str, value: Any, done: str) -> Refused:
    return Refused(f"{name} is {value}, but {done}; give it more, or start a new run with another --out")


def go_on_from(
    folder: RunFolder,
    checkpoint: Path,
    position: Position,
    settings: TrainSettings,
    feed: Feed,
    world: World,
    report: Report,
) -> tuple[Path, Position]:
    """Return the checkpoint to go on from, and where that stands: the newest; under another limit than the
    run was begun with, the last before its rate fell. `refuse_limit` came before. Raises `Refused`.
    """
    limit, before = limit_of(settings.identity()), limit_of(position.settings)
    if limit == before:
        return checkpoint, position

    # Both limits as budgets: how far the run is in the one it was begun with, and in the one asked for.
    (name, value), (was, length) = *limit.items(), *before.items()
    lengths = feed.tokens_per_step, feed.steps_per_epoch
    asked, begun = (Budget.of(settings.with_(one), *lengths) for one in (limit, before))
    asked = replace(asked, began=position.began)
    begun = replace(begun, began=position.began, since=position.since)
    if asked.steps is not None and asked.steps <= position.step:
        raise _reached(name, value, f"{position.step:,} steps are done already")
    optim, start = settings.optim, start_of_more(folder, checkpoint, position)
    assert start is not None, "refuse_limit came before"

    # What was learned while the rate fell is taken back: later checkpoints go, and best weights among them.
    text = f"{name} is {value} from now on, instead of {was} {length}"
    if start != checkpoint:
        taken_back, position = position.step, load_position(start)
        text += (
            f"; what was learned after step {position.step:,} of {taken_back:,}, while the rate fell, is "
            f"taken back, and {folder.model} is replaced with the next save"
        )
        later = [path for path in folder.checkpoints.glob("step-*") if path.name > start.name]
        best = load_best(folder.best, world)
        later += [folder.best] if best is not None and best.step > position.step else []
        world.on_rank_zero(lambda: [remove(path) for path in later][:0])
    report("note", position.step, text=text)

    # Where it stands in the new limit; a rate that has risen does not rise again.
    stands = position.step, position.elapsed, position.step_seconds
    place = asked.position(*stands)
    risen = begun.position(*stands) >= begun.warmup(optim.warmup or 0, optim.warmup_steps or 0, stands[2])
    marks = {what: [*mark[:2], place] for what, mark in position.marks.items()}
    return start, replace(position, full_rate=None, since=place if risen else 0.0, marks=marks)


def start_of_more(folder: RunFolder, checkpoint: Path, position: Position) -> Path | None:
    """Return the checkpoint from which a run, at `position` in its newest, may get another limit, or None."""
    start = checkpoint if position.full_rate is None else at_step(folder.checkpoints, position.full_rate)
    try:
        verify(start)
    except Refused:
        return None
    return start if position.settings["optim.schedule"] == "wsd" else None


def soon(settings: TrainSettings, budget: Budget, position: Position, reserve: float) -> str:
    """Return the limit that ends a run after a tenth more, where its rate has not fallen yet, else "".

    Tiny Shakespeare, 96 wide, stopped at step 150 of 400, means of 3 seeds (2026-11-29), held-out nats:
    4.32; after 15 more steps at the full rate 4.30, after 15 in which it falls 4.05.
    """
    if position.full_rate is not None or settings.optim.schedule != "wsd":
        return ""
    if budget.steps is not None:
        steps = position.step + math.ceil(position.step / 10)
        return f"--steps {steps}" if steps < budget.steps else ""
    seconds = 5 * math.ceil((1.1 * position.elapsed + reserve) / 5)
    return f"--budget {format_time(seconds)}" if seconds < (budget.time or 0) else ""


def another_run(folder: RunFolder, settings: TrainSettings) -> str:
    """Return the command that begins another run with the weights of this one."""
    source = settings.data.source
    return f"transom train {source} --model.weights {folder.model} --out {folder.path}-more"


def limit_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the one limit among settings by dotted name."""
    return {name: settings[name] for name in LIMITS if settings.get(name) is not None}
