"""Two models on the same examples: what each scores, by how much they differ, and what that is worth.

Every difference is taken example by example, so what makes an example hard for both is not in it, and the
words follow from its interval alone: `better` or `harmed` only where all of it lies on one side of nothing.
Read next: against, page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..intervals import Estimate
from .report import cut

Verdict = Literal["better", "no measurable improvement", "harmed"]
BETTER, NONE, HARMED = "better", "no measurable improvement", "harmed"
SHOWN = 3
"""Examples in a terminal."""


@dataclass(frozen=True)
class Measure:
    """One measure of both models. What is called before is the model that the other is held against."""

    name: str
    """What is measured: accuracy, BLEU, nats per token."""
    unit: str
    """What a difference is counted in."""
    before: Estimate
    """The score of the model that the other is held against."""
    after: Estimate
    """The score of the model in question."""
    difference: Estimate
    """After less before, on the same examples."""
    n: int
    """So many were compared."""
    of: str = "texts"
    """What n counts."""
    more_is_better: bool = True
    """Whether a larger score is the better one."""
    wins: int | None = None
    """Of those n, on so many the model is the better of the two."""
    losses: int | None = None
    """And on so many the worse."""
    digits: int = 1
    """Behind the point, in print."""
    suffix: str = ""
    """What stands behind a score: %."""
    repeats: bool = False
    """Whether it says in another unit what the one before says."""
    harm: str = HARMED
    """What is said where it lies on the wrong side: nothing was harmed where the two are strangers."""
    elsewhere: bool = False
    """Whether it is of other examples than the task's own: what was forgotten."""
    judged: bool = True
    """Whether it says that a model is better or harmed; what it costs (time, size) does not."""

    @property
    def gain(self) -> Estimate:
        """The difference, above 0 where the model is the better one."""
        return self.difference if self.more_is_better else self.difference.times(-1)

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say."""
        gain = self.gain
        if gain.known and gain.low > 0:
            return BETTER
        return HARMED if gain.known and gain.high < 0 else NONE

    @property
    def word(self) -> str:
        """The verdict, in the words of what is not judged too."""
        if self.judged:
            return self.harm if self.verdict == HARMED else self.verdict
        if self.difference.low == self.difference.high == 0:
            return "equal"
        if self.difference.known and self.difference.low * self.difference.high > 0:
            return "more" if self.difference.value > 0 else "less"
        return "no measurable difference"

    @property
    def sentence(self) -> str:
        """The verdict with its numbers."""
        return (
            f"{self.word}: {self.name} {self.shown(self.after)} beside {self.shown(self.before)}, {self.by}"
        )

    @property
    def by(self) -> str:
        """By how much, with interval and n."""
        gap, n = self.difference, f"n = {self.n:,} {self.of}"
        if not gap.known:
            return f"{n}: too few that tell the two apart for an interval"
        if gap.low == gap.high == 0:
            return f"exactly equal ({n})"
        between = f"95% interval {gap.low:+.{self.digits}f} to {gap.high:+.{self.digits}f}"
        return f"{self.gap()} ({between}; {n})"

    def gap(self) -> str:
        """Write the difference, with its unit."""
        return f"{self.difference.value:+,.{self.digits}f} {self.unit}".strip()

    def shown(self, score: Estimate) -> str:
        """Write a score of one of the two."""
        return f"{score.value:,.{self.digits}f}{self.suffix}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "name": self.name, "unit": self.unit, "before": self.before.to_dict(),
            "after": self.after.to_dict(), "difference": self.difference.to_dict(), "n": self.n,
            "of": self.of, "more_is_better": self.more_is_better, "wins": self.wins, "losses": self.losses,
            "verdict": self.word,
        }  # fmt: skip


@dataclass(frozen=True)
class Example:
    """One example with what both made of it."""

    where: str
    """file:line"""
    asked: str
    """What both were given."""
    wanted: str
    """The right answer; empty where there is nothing but the text itself."""
    before: str
    """What the other model made of it."""
    after: str
    """What the model in question made of it."""
    gain: float
    """Above 0 where the model is the better of the two."""


@dataclass(frozen=True)
class Comparison:
    """A model held against another on the same examples. It prints itself."""

    task: str
    """What both do, by the names of `--task`."""
    model: str
    """The folder or name of the model in question."""
    against: str
    """That of the other one."""
    test: str
    """What both answered."""
    measures: tuple[Measure, ...]
    """The task's own first: the one that decides."""
    examples: tuple[Example, ...] = ()
    """The worst for the model first."""
    notes: tuple[str, ...] = ()
    """What a reader should know besides."""
    sides: tuple[str, str] = ("before", "after")
    """What the other model and the one in question are called in a table."""

    @property
    def verdict(self) -> Verdict:
        """One word for all: that of the first measure, unless another one of the task's own is harmed, or
        any is and the first is no better.
        """
        first, harmed = self.measures[0].verdict, self._others(HARMED)
        return HARMED if any(not one.elsewhere or first == NONE for one in harmed) else first

    @property
    def lead(self) -> Measure:
        """The measure that the verdict is of: the first one, or one that is harmed."""
        first = self.measures[0]
        if first.verdict == self.verdict:
            return first
        return min(self._others(HARMED), key=lambda one: one.elsewhere)

    @property
    def sentences(self) -> list[str]:
        """What the verdict is of, what the first measure says, and every other one that is better or harmed,
        harm first.
        """
        return [sentence for _, sentence in self.told]

    @property
    def told(self) -> list[tuple[Measure, str]]:
        """The same with the measure that each sentence is about."""
        lead, first = self.lead, self.measures[0]
        others = [first, *self._others(HARMED), *self._others(BETTER)]
        return [(one, one.sentence) for one in (lead, *(one for one in others if one is not lead))]

    def _others(self, verdict: Verdict) -> list[Measure]:
        """What is said of everything but the first measure."""
        told = [one for one in self.measures[1:] if one.judged and not one.repeats]
        return [one for one in told if one.verdict == verdict]

    @property
    def headline(self) -> str:
        """The verdict in one line, with what is better or harmed besides."""
        lead, first = self.lead, self.measures[0]
        harmed = [one.name for one in self._others(HARMED) if one is not lead]
        parts = [f"{lead.word}: {lead.name} {lead.by}"]
        if first is not lead and first.verdict == BETTER:
            parts.append(f"{first.word}: {first.name}")
        return "; ".join([*parts, *[f"{first.harm}: {', '.join(harmed)}"] * bool(harmed)])

    def with_(self, *measures: Measure, notes: Sequence[str] = ()) -> Comparison:
        """The same with more measures, of other examples."""
        return replace(self, measures=(*self.measures, *measures), notes=(*self.notes, *notes))

    def beside(self, before: str, after: str) -> Comparison:
        """The same of two that are strangers: one is better or worse, and none was harmed."""
        measures = tuple(replace(one, harm="worse") for one in self.measures)
        return replace(self, measures=measures, sides=(before, after))

    def table(self) -> list[list[str]]:
        """The measures as rows of text, the head first."""
        rows = [["", *self.sides, "difference", "95% interval", "n", "won, lost", "verdict"]]
        for one in self.measures:
            gap, digits = one.difference, one.digits
            between = f"{gap.low:+.{digits}f} to {gap.high:+.{digits}f}" if gap.known else "too few"
            won = "" if one.wins is None else f"{one.wins:,}, {one.losses:,}"
            rows.append([one.name, one.shown(one.before), one.shown(one.after),
                         one.gap(), between, f"{one.n:,} {one.of}", won,
                         one.word])  # fmt: skip
        return rows

    def _worst(self) -> list[str]:
        """The first examples, for a terminal."""
        lines = []
        for one in self.examples[:SHOWN]:
            told = dict(zip(("asked", "wanted", *self.sides), (one.asked, one.wanted, one.before, one.after),
                            strict=True))  # fmt: skip
            wide = max(map(len, told))
            lines += [
                f"  {one.where}",
                *(f"    {name:<{wide}}  {cut(said)}" for name, said in told.items() if said),
            ]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "task": self.task, "model": self.model, "against": self.against, "test": self.test,
            "verdict": self.verdict, "sentences": self.sentences,
            "measures": [measure.to_dict() for measure in self.measures],
            "examples": [vars(example) for example in self.examples], "notes": list(self.notes),
        }  # fmt: skip

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        """The verdict and the table, for a notebook."""
        from ..insight.html import fragment
        from .page import pictures

        return {"text/html": fragment(pictures(self)[:2]), "text/plain": self.headline}

    def __str__(self) -> str:
        lines = [f"{self.model} against {self.against}, on {self.test}", "", *_columns(self.table()), ""]
        if self.examples:
            lines += ["worst for the model first", *self._worst(), ""]
        first, *others = self.sentences
        return "\n".join([*lines, *self.notes, f"verdict: {first}", *[f"         {one}" for one in others]])


def worst_first(examples: Sequence[Example]) -> tuple[Example, ...]:
    """Examples on which the two differ, the worst for the model first; those of equal gain as they came."""
    return tuple(sorted((one for one in examples if one.gain), key=lambda example: example.gain))


def wins_and_losses(gains: NDArray[Any]) -> tuple[int, int]:
    """On how many examples (N,) the model is the better of the two, and on how many the worse."""
    return int((np.asarray(gains) > 0).sum()), int((np.asarray(gains) < 0).sum())


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as aligned lines; columns that are empty are left out."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    wide = {i: max(len(row[i]) for row in rows) for i in kept}
    return ["  ".join(f"{row[i]:<{wide[i]}}" for i in kept).rstrip() for row in rows]
