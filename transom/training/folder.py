"""The folder of a run: which one it is, and what lies where in it (the layout of a run on disk).

    settings.toml  ledger.json  metrics.jsonl  loss.png  checkpoints/step-000120/  best/  model/  faults/
    data/

A new run never writes into the folder of another: without a name it takes the next free one, with a name it
refuses. Read next: lock, state.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from ..errors import Refused
from ..settings import TrainSettings
from . import lock
from .parallelism import World

ROOT = Path("runs")
LONGEST = 60
"""Characters of the name of a folder that a run chooses itself."""


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.toml"
        self.ledger = path / "ledger.json"
        self.metrics = path / "metrics.jsonl"
        self.figure = path / "loss.png"
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"
        self.model = path / "model"
        self.faults = path / "faults"
        self.data = path / "data"

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has begun here."""
        return any(p.exists() for p in (self.metrics, self.checkpoints, self.model, self.settings))

    def leave_nothing(self) -> None:
        """Take away what holds no run, if nothing but locks and beginnings of prepared data lies in it."""
        with suppress(OSError):
            if not self.holds_a_run and all(path.name.startswith(".") for path in self.data.iterdir()):
                shutil.rmtree(self.data)


def open_folder(settings: TrainSettings, world: World, stack: ExitStack) -> tuple[RunFolder, bool]:
    """Return the run's folder, locked by rank 0 until `stack` closes, and whether to resume what is in it."""

    def choose() -> list[str | bool]:
        try:
            path, resuming = choose_folder(settings.out, settings.data.source, settings.resume)
            stack.enter_context(lock.Lock(path))
        except OSError as error:
            place, why = settings.out or ROOT, (error.strerror or str(error)).lower()
            raise Refused(
                f"{str(place)[:200]}: no run can be written there ({why}); choose another --out"
            ) from None
        stack.callback(RunFolder(path).leave_nothing)
        return [str(path), resuming]

    path, resuming = world.on_rank_zero(choose)
    return RunFolder(Path(path)), resuming


def choose_folder(out: Path | None, source: str, resume: bool) -> tuple[Path, bool]:
    """Return the folder of this run and whether to resume what lies there. Raises `Refused`.

    Restarted by its launcher (torchrun --max-restarts), a run goes on in the folder it had.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        for folder in _earlier(out, source):
            if lock.launched_by_my_parent(lock.read(folder)):
                return folder, True
    if out is None:
        if resume:
            raise Refused("resume needs to know which run: add --out runs/NAME")
        return _next_free(ROOT / name_of(source)), False
    file = next((place for place in (out, *out.parents) if place.exists() and not place.is_dir()), None)
    if file is not None:
        raise Refused(f"{file} is a file; --out names the folder of the run")
    if RunFolder(out).holds_a_run and not resume:
        raise Refused(f"{out} holds a run already; go on with it by --resume, or choose another --out")
    if resume and not RunFolder(out).holds_a_run:
        raise Refused(f"{out} holds no run to resume; leave out --resume to start one there")
    return out, resume


def name_of(source: str) -> str:
    """Return a short folder name for a data source: `notes/` -> notes, `hf:user/set` -> set, `-` -> stdin."""
    if source == "-":
        return "stdin"
    stem = Path(source.rpartition(":")[2].rstrip("/")).resolve().name or "run"
    stem = Path(stem).stem or stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:LONGEST].strip("-.") or "run"


def _next_free(path: Path) -> Path:
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if not RunFolder(candidate).holds_a_run and not lock.is_held(candidate):
            return candidate
        number += 1


def _earlier(out: Path | None, source: str) -> Iterator[Path]:
    if out is not None:
        yield out
        return
    pattern = re.compile(re.escape(name_of(source)) + r"(-\d+)?")
    folders = [p for p in ROOT.glob("*") if pattern.fullmatch(p.name)] if ROOT.is_dir() else []
    yield from sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)
