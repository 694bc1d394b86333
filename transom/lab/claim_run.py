"""A claim put to the test: its arms measured seed by seed, kept as they come, then read, judged and drawn.

Every point is a file of its own, written whole, so that a run that was stopped goes on where it was; a point
of other settings is measured anew. `result.json` has the falsifier before there is a number to hold against
it. Read next: report.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..errors import Refused
from ..hardware import Hardware
from ..output import write_whole
from ..units import counted
from .claim import Claim, Point, Settings, judge

RESULT, FIGURE = "result.json", "figure.svg"


@dataclass(frozen=True)
class Result:
    """What came of one claim: `record` is what result.json holds."""

    record: dict[str, Any]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        return self.record

    def __str__(self) -> str:
        found = self.record
        rows = [f"  {name:<58} {shown(reading)}" for name, reading in found["readings"].items()]
        planted = f"\nplanted: {found['planted']}" if found["planted"] else ""
        return "\n".join([
            f"{found['number']}. {found['claim']}{planted}", *rows,
            f"{found['verdict'].upper()}: {found['sentence']}", f"Not shown: {found['not_shown']}.",
            f"{found['mode']}, {len(found['seeds'])} seeds, "
            f"{found['seconds']:.0f} s: {self.folder / FIGURE}",
        ])  # fmt: skip


def run_claim(
    claim: Claim, out: Path, *, quick: bool, planted: bool = False, seeds: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Result:  # fmt: skip
    """Measure what is still missing, judge, and write result.json and figure.svg below `out`.

    planted: with the claim's cause taken away. seeds: how many, instead of the claim's own number. Raises
    Refused.
    """
    if planted and claim.plant is None:
        raise Refused(f"lab {claim.name}: this claim has no single cause to take away; leave --planted out")
    if seeds is not None and seeds < 2:
        raise Refused(f"seeds is {seeds}; an interval over seeds needs at least 2")
    n_seeds = list(range(seeds or claim.n_seeds[not quick]))
    mode = ("quick" if quick else "full") + ("-planted" if planted else "")
    folder = out / claim.name / mode
    settings = claim.settings(quick, planted)
    head: dict[str, Any] = {
        "name": claim.name, "number": claim.number, "claim": claim.statement, "textbook": claim.textbook,
        "expected": claim.expected, "protocol": claim.protocol, "not_shown": claim.not_shown,
        "mode": "quick: exploratory" if quick else "full", "planted": claim.planted if planted else "",
        "falsifier": [one.to_dict() for one in claim.predictions],
        "controls": [asdict(control) for control in claim.controls],
        "seeds": n_seeds, "settings": settings, **versions(),
        "rerun": " ".join(["transom lab", claim.name, *["--quick"] * quick, *["--planted"] * planted]),
    }  # fmt: skip
    made(folder)
    write_json(folder / RESULT, {**head, "verdict": "not yet measured"})
    points, seconds = {}, 0.0
    for name, arm in settings.items():
        points[name], spent = _arm(claim, name, arm, n_seeds, folder / "points", say)
        seconds += spent
    readings = claim.read(points)
    verdict = judge(claim, readings)
    record = {
        **head, "seconds": seconds, "readings": {name: found.to_dict() for name, found in readings.items()},
        "outcomes": list(verdict.outcomes), "controls_failed": list(verdict.failed), "verdict": verdict.word,
        "sentence": verdict.sentence(claim, quick), "points": points,
    }  # fmt: skip
    write_whole(folder / FIGURE, claim.draw(points))
    write_json(folder / RESULT, record)
    return Result(record, folder)


def _arm(
    claim: Claim, name: str, arm: Settings, seeds: Sequence[int], folder: Path, say: Callable[[str], None]
) -> tuple[list[Point], float]:
    """The points of one arm, those that are missing measured together, and the seconds that all took."""
    made(folder)
    files = {seed: folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}.json" for seed in seeds}
    kept = {seed: found for seed, path in files.items() if (found := _kept(path, arm))}
    missing = [seed for seed in seeds if seed not in kept]
    if missing:
        started = time.perf_counter()
        measured = claim.measure(arm, missing)
        each = (time.perf_counter() - started) / len(missing)
        say(f"lab {claim.name}: {name}, {counted(len(missing), 'seed')}: {each * len(missing):.0f} s")
        for seed, point in zip(missing, measured, strict=True):
            kept[seed] = {"settings": dict(arm), "seconds": each, "point": {"seed": seed, **point}}
            write_json(files[seed], kept[seed])
    found = [kept[seed] for seed in seeds]
    return [one["point"] for one in found], sum(one["seconds"] for one in found)


def _kept(path: Path, arm: Settings) -> dict[str, Any] | None:
    """A point measured before under the same settings, or None."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(found, dict) and found.get("settings") == json.loads(json.dumps(dict(arm)))
    return found if same else None


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write plain values; what is not a finite number is null."""
    plain = json.loads(json.dumps(record), parse_constant=lambda _: None)
    write_whole(path, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def made(folder: Path) -> None:
    """Make a folder. Raises Refused where there can be none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder}: cannot be made ({error.strerror}); --out names a folder") from None


def versions() -> dict[str, Any]:
    """What it ran on."""
    ours = {"transom": __version__, "python": platform.python_version()}
    return {"versions": {**ours, "torch": torch.__version__, "numpy": np.__version__},
            "cpu": Hardware.detect("cpu").name, "threads": torch.get_num_threads()}  # fmt: skip


def shown(reading: dict[str, float | None]) -> str:
    """A reading in a few digits."""
    value, low, high = (reading[end] for end in ("value", "low", "high"))
    if value is None:
        return "not measured"
    return f"{value:.3g}" + ("" if low is None or high is None else f"  ({low:.3g} to {high:.3g})")
