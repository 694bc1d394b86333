"""A line of a trust report: one question, its answer with an interval, and what follows from it by a rule.

The rules are in a file (trust_rules.toml, or the user's own) that is read before anything is measured. The
word of a line follows from its interval, its gate and its rule alone. Every value that went into an estimate
is kept as a row. Read next: trust.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import Refused, nearest
from ..intervals import TAIL, Estimate, clustered, detectable, holm, rarity
from .gate import Gate

Decision = Literal["ACT", "WATCH", "OK", "CANNOT TELL", "NOT JUDGED"]
Side = Literal["above", "both", "below"]
ORDER: tuple[Decision, ...] = ("ACT", "WATCH", "OK", "CANNOT TELL", "NOT JUDGED")
OWN = Path(__file__).with_name("trust_rules.toml")


@dataclass(frozen=True)
class Rule:
    """What of a measure is too much."""

    tolerance: float | None
    side: Side
    critique: str
    """What a reader has to keep in mind beside any number of this kind."""

    def __str__(self) -> str:
        if self.tolerance is None:
            return "no tolerance: not judged"
        words = {"above": "at most", "both": "within ±", "below": "at least"}[self.side]
        return f"tolerated {words}{'' if self.side == 'both' else ' '}{self.tolerance:g}"

    def decide(self, found: Estimate, gate: Gate | None = None) -> Decision:
        """The word for an interval. What is wider than all that is tolerated could never be OK."""
        if self.tolerance is None:
            return "NOT JUDGED"
        if (gate is not None and not gate.passed) or not found.known:
            return "CANNOT TELL"
        most = math.inf if self.side == "below" else self.tolerance
        least = {"above": -math.inf, "both": -self.tolerance, "below": self.tolerance}[self.side]
        if found.low > most or found.high < least:
            return "ACT"
        if least <= found.low and found.high <= most:
            return "OK"
        room = (
            2 * self.tolerance
            if self.side == "both"
            else self.tolerance
            if self.side == "above"
            else math.inf
        )
        return "CANNOT TELL" if found.high - found.low > room else "WATCH"


@dataclass(frozen=True)
class Rules:
    """All rules, and the hash of the files that say them."""

    of: dict[str, Rule]
    margin: float
    place: float
    sha256: str

    @classmethod
    def read(cls, path: Path | None = None) -> Rules:
        """Our rules, and over them a user's. Raises Refused for what is no rule."""
        said: dict[str, Any] = tomllib.loads(OWN.read_text(encoding="utf-8"))
        texts = [OWN.read_bytes()]
        if path is not None:
            try:
                texts.append(path.read_bytes())
                own = tomllib.loads(texts[-1].decode())
            except (OSError, ValueError) as error:
                raise Refused(
                    f"{path}: cannot be read as TOML ({error}); --rules names such a file"
                ) from None
            for name, values in own.items():
                if name not in said or not isinstance(values, dict):
                    raise Refused(f"{path}: no measure is called '{name}'{nearest(name, said)}")
                for key, value in values.items():
                    known = ("tolerance", "side") if name != "gate" else ("margin", "place")
                    fits = value in ("above", "both", "below") if key == "side" else _is_number(value)
                    if key not in known or not fits:
                        raise Refused(f"{path}: [{name}] {key} = {value!r}; it has {' and '.join(known)}")
                said[name] = {**said[name], **values}
        gate = said.pop("gate")
        rules = {name: Rule(one.get("tolerance"), one["side"], one["critique"]) for name, one in said.items()}
        digest = hashlib.sha256(b"".join(texts)).hexdigest()
        return cls(rules, gate["margin"] / 100, gate["place"] / 100, digest)


@dataclass(frozen=True)
class Part:
    """One contrast of several that were asked at once."""

    name: str
    estimate: Estimate
    """With an interval as wide as Holm's procedure makes it."""
    decision: Decision
    n: int

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.estimate)}, n = {self.n:,}, {self.decision}"


@dataclass(frozen=True)
class Line:
    """One question and its answer."""

    kind: str
    """The rule's name."""
    of: str
    """What tells it from others of its kind; "" for the only one."""
    question: str
    population: str
    estimate: Estimate
    unit: str
    n: int
    n_clusters: int
    counted: tuple[str, str]
    """What n and n_clusters count."""
    method: str
    baseline: str
    gate: Gate | None
    rule: Rule
    next_action: str
    seconds: float = 0.0
    parts: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """Of each value that the estimate is made of: id, cluster, value, and the texts behind it."""

    @classmethod
    def over(cls, rows: Sequence[dict[str, Any]], rules: Rules, kind: str, **rest: Any) -> Line:
        """The line of a kind whose estimate is made of rows, counted in their clusters."""
        counts: dict[str, Any] = {"n": len(rows), "n_clusters": len({row["cluster"] for row in rows})}
        return cls(kind=kind, rule=rules.of[kind], rows=tuple(rows), **(counts | rest))

    @property
    def decision(self) -> Decision:
        """What follows by the rule."""
        return self.rule.decide(self.estimate, self.gate)

    @property
    def counts_in_words(self) -> str:
        return f"{self.n:,} {self.counted[0]} in {self.n_clusters:,} {self.counted[1]}"

    @property
    def gate_in_words(self) -> str:
        return "none is needed" if self.gate is None else str(self.gate)

    @property
    def smallest_in_words(self) -> str:
        """The smallest effect that would be found 4 times of 5."""
        return "none" if self.detectable is None else f"{self.detectable:.1f} {self.unit}"

    @property
    def id(self) -> str:
        return f"{self.kind}.{self.of}" if self.of else self.kind

    @property
    def detectable(self) -> float | None:
        """The smallest effect that would be found 4 times of 5; None without an interval."""
        return detectable(self.estimate) if self.estimate.known else None

    @property
    def is_read(self) -> bool:
        """Whether there is a number that may be read: the gate is passed, and it has an interval."""
        return (self.gate is None or self.gate.passed) and self.estimate.known

    @property
    def answer(self) -> str:
        """The number, or why there is none."""
        if self.gate is not None and not self.gate.passed:
            return "not read: the model does not show that it does the task"
        return f"{shown(self.estimate)} {self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the rows are kept apart."""
        return {
            "id": self.id,
            "question_in_plain_words": self.question,
            "population": self.population,
            "n": self.n,
            "n_clusters": self.n_clusters,
            "counted": list(self.counted),
            "estimate": self.estimate.value if not math.isnan(self.estimate.value) else None,
            "ci95": [self.estimate.low, self.estimate.high] if self.estimate.known else None,
            "unit": self.unit,
            "method": self.method,
            "chance_or_baseline": self.baseline,
            "competence_gate": None
            if self.gate is None
            else {**self.gate.to_dict(), "words": str(self.gate)},
            "min_detectable_effect": self.detectable,
            "critique_ref": self.rule.critique,
            "decision": self.decision,
            "rule": str(self.rule),
            "next_action": self.next_action,
            "cost_s": round(self.seconds, 2),
            "parts": list(self.parts),
        }


def shown(found: Estimate) -> str:
    """An estimate with its interval, short."""
    if math.isnan(found.value):
        return "none"
    value, low, high = (f"{round(one, 1) + 0.0:.1f}" for one in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]" if found.known else f"{value} [no interval]"


def mean_of(rows: Sequence[dict[str, Any]], tail: float = TAIL) -> Estimate:
    """The mean of the values of rows, in their clusters."""
    values = np.array([row["value"] for row in rows], np.float64)
    return clustered(values, [row["cluster"] for row in rows], tail)


def contrasts(
    asked: dict[str, tuple[int, Callable[[float], Estimate]]], rule: Rule, gate: Gate | None
) -> list[Part]:
    """Several contrasts at once, each from its n and its interval for a tail: Holm over all, the worst first.

    An interval is as wide as its turn in Holm's procedure makes it, so that ACT for any of them is false in
    at most 5 of 100 reports.
    """
    tolerance = rule.tolerance or 0.0
    rare = [rarity(interval, tolerance) for _, interval in asked.values()]
    levels = holm(rare)
    parts = []
    for (name, (n, interval)), level in zip(asked.items(), levels, strict=True):
        found = interval(level / 2)
        parts.append(Part(name, found, rule.decide(found, gate), n))
    order = [parts[place] for place in np.argsort(rare, kind="stable")]
    return sorted(order, key=lambda one: ORDER.index(one.decision))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
