"""Did it get worse? Two trust reports, question by question, on the same rows.

Every difference is taken row by row, so what is hard or uneven for both is not in it; all questions together
are asked by Holm's procedure, so that of two models that do not differ 95 of 100 diffs name nothing. A shift
or gap between groups is worse where it grows away from 0. Read next: trust_report, trust_line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import Refused
from ..intervals import FEWEST, Estimate, clustered, holm, rarity
from .groups import apart
from .trust_line import shown
from .trust_report import saved, wrapped

Row = dict[str, Any]
Change = Literal["worse", "better", "no measurable difference", "not comparable"]
SIGNED = (
    "swap-shift", "winobias-gap", "bbq-lean", "surer-than-right", "crows-pairs", "winogender-slope",
    "translated-stereotype", "translated-women", "group-gap",
)  # fmt: skip
"""What is as bad below 0 as above."""
UNPAIRED = ("doubt-beats-length", "cost", "winogender-slope")
"""What is no mean over rows."""


@dataclass(frozen=True)
class Changed:
    """One question of both reports."""

    id: str
    question: str
    change: Change
    difference: Estimate
    unit: str
    n: int
    decisions: tuple[str, str]

    @property
    def sentence(self) -> str:
        was, now = self.decisions
        by = f"{shown(self.difference)} {self.unit} on the same {self.n:,} rows; " if self.n else ""
        return f"{self.change}: {self.question} {by}{was} before, {now} now"


@dataclass(frozen=True)
class TrustDiff:
    """What changed from one report to another. It prints itself."""

    before: str
    after: str
    lines: tuple[Changed, ...]

    @property
    def worse(self) -> bool:
        return any(line.change == "worse" for line in self.lines)

    def __str__(self) -> str:
        order = ("worse", "better", "no measurable difference", "not comparable")
        said = [line for one in sorted(self.lines, key=lambda one: order.index(one.change))
                for line in wrapped(one.sentence, 4)]  # fmt: skip
        n = sum(line.change == "worse" for line in self.lines)
        verdict = f"it got worse in {n} of {len(self.lines)} questions" if n else "nothing measurably worse"
        return "\n".join([f"{self.after} beside {self.before}", "", *said, "", f"verdict: {verdict}"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        told = [
            {
                "id": one.id,
                "change": one.change,
                "difference": one.difference.to_dict(),
                "unit": one.unit,
                "n": one.n,
                "before": one.decisions[0],
                "after": one.decisions[1],
            }
            for one in self.lines
        ]
        return {"before": self.before, "after": self.after, "worse": self.worse, "lines": told}


def _gained(rows: list[Row], before: dict[str, Row]) -> np.ndarray:
    """By how much the value of each row is larger than before, (N,)."""
    return np.array([row["value"] - before[row["id"]]["value"] for row in rows], np.float64)


def _groups(rows: list[Row]) -> dict[str, tuple[list[Row], list[Row]]]:
    """The rows of each group beside all others; of two groups one, and none that has too few."""
    names = sorted({row["group"] for row in rows})
    split = {
        name: ([row for row in rows if row["group"] == name], [row for row in rows if row["group"] != name])
        for name in (names[1:] if len(names) == 2 else names)
    }
    return {name: sides for name, sides in split.items() if min(map(len, sides)) >= FEWEST}


def diff(before: Path, after: Path) -> TrustDiff:
    """Hold one saved report against another. Raises Refused where they have no question in common."""
    (was, old, old_rows), (now, new, new_rows) = saved(before), saved(after)
    common = [name for name in new if name in old]
    if not common:
        raise Refused(f"{before} and {after} have no question in common; make both with the same --on")
    asks: dict[str, Callable[[float], Estimate]] = {}
    facts: dict[str, tuple[str, int, float]] = {}
    for name in common:
        kind = name.partition(".")[0]
        one = {row["id"]: row for row in old_rows[name]}
        met = [row for row in new_rows[name] if row["id"] in one and one[row["id"]]["asked"] == row["asked"]]
        if kind == "group-gap":
            for group, (inside, outside) in _groups(met).items():
                gained, others = (_gained(rows, one) for rows in (inside, outside))
                key = f"{name}: accuracy, {group} less others"
                asks[key] = apart(gained, others)
                was_right, others_were = (np.mean([one[row["id"]]["value"] for row in rows])
                                          for rows in (inside, outside))  # fmt: skip
                facts[key] = (name, len(inside), float(100 * (was_right - others_were)))
            continue
        for contrast in [] if kind in UNPAIRED else dict.fromkeys(row.get("contrast", "") for row in met):
            rows = [row for row in met if row.get("contrast", "") == contrast]
            values = _gained(rows, one)
            clusters = [row["cluster"] for row in rows]
            level = float(np.mean([one[row["id"]]["value"] for row in rows])) if kind in SIGNED else 0.0
            unit = 100.0 if kind in SIGNED and np.isin(values, (-100, 0, 100)).all() else 1.0
            scale = unit if kind in SIGNED else 100.0
            key = f"{name}: {contrast}" if contrast else name
            asks[key] = lambda tail, v=values / unit, c=clusters, s=scale: clustered(v, c, tail).times(s)
            facts[key] = (name, len(rows), level)
    levels = dict(zip(asks, holm([rarity(interval) for interval in asks.values()]), strict=True))
    lines = []
    for name in common:
        words = (str(old[name]["decision"]), str(new[name]["decision"]))
        unit = new[name]["unit"].replace("% of", "points of", 1)
        keys = [key for key, (of, _, _) in facts.items() if of == name]
        for key in keys:
            found, (_, n, level) = asks[key](levels[key] / 2), facts[key]
            away = abs(level + found.value) - abs(level) if name.partition(".")[0] in SIGNED else found.value
            differs = found.known and (found.low > 0 or found.high < 0)
            change: Change = "no measurable difference" if not differs else "worse" if away > 0 else "better"
            question = key.partition(": ")[2] or new[name]["question_in_plain_words"]
            lines.append(Changed(name, question, change, found, unit, n, words))
        if not keys:
            question = new[name]["question_in_plain_words"]
            lines.append(Changed(name, question, "not comparable", Estimate(math.nan), unit, 0, words))
    return TrustDiff(was, now, tuple(lines))
