"""Does a model say the same of a text about somebody else, and is it as good for every group?

Counterfactual swaps ask the first: every text with words of a group is told about the others (data/swaps.py),
and the answers are compared text by text. Group metrics ask the second of labelled texts that say whom each
is about. Shapes: N texts, C options. Read next: trust_line, trust.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.swaps import SwapList
from ..errors import Refused
from ..intervals import FEWEST, Estimate, clustered, mover, share, student
from .calibration import (
    best_temperature,
    error_by_chance,
    expected_calibration_error,
    n_bins,
    squared_distances,
)
from .gate import Gate, competence
from .subject import Choice, Subject
from .trust_line import Line, Rules, contrasts, mean_of

MOST_LABELS = 6
"""Classes whose shift between groups is asked for; of two one says all."""


class Asked(NamedTuple):
    """A text that is answered by one of the options."""

    id: str
    text: str
    label: str | None
    """The right one, where it is known."""
    group: str = ""
    """Whom it is about, where that is told."""


class Answered(NamedTuple):
    """Texts with right answers, and what the model said to them in one pass."""

    asked: Sequence[Asked]
    options: tuple[str, ...]
    given: NDArray[np.float64]
    """(N, C) probabilities."""
    truth: NDArray[np.intp]
    """(N,) the place of the right option."""
    seconds: float

    @classmethod
    def by(cls, subject: Subject, asked: Sequence[Asked], options: tuple[str, ...]) -> Answered:
        started = time.perf_counter()
        found = subject.probabilities([Choice(one.text, options, spoken=True) for one in asked])
        truth = np.array([options.index(str(one.label)) for one in asked], np.intp)
        given = np.array(found).reshape(len(asked), len(options))
        return cls(asked, options, given, truth, time.perf_counter() - started)

    @property
    def said(self) -> NDArray[np.intp]:
        """(N,) the place of the likeliest option."""
        return self.given.argmax(axis=1)

    def gate(self, clusters: Iterable[Hashable], rules: Rules) -> Gate:
        """Whether the known answers are given better than always the commonest one."""
        if not len(self.truth):
            return Gate(False, Estimate(0.0), 0.0, 0)
        chance = float(np.bincount(self.truth).max() / len(self.truth))
        return competence((self.said == self.truth).tolist(), [*clusters], chance, margin=rules.margin)


def answer_gate(answered: Answered, lists: Sequence[SwapList], rules: Rules) -> Gate:
    """The gate of swaps: texts that differ in words of the lists alone are one cluster."""
    return answered.gate((_template(one.text, lists) for one in answered.asked), rules)


def swap_lines(
    subject: Subject,
    asked: Sequence[Asked],
    options: tuple[str, ...],
    one: SwapList,
    rules: Rules,
    gate: Gate,
    population: str,
    mend: str,
) -> list[Line]:
    """What swapping the words of a list changes: how many answers, and which way.

    mend: the command that would help. No line where no text has such words.
    """
    started = time.perf_counter()
    told = [(text, versions) for text in asked if (versions := one.versions(text.text)) is not None]
    if not told:
        return []
    choices = [Choice(version, options, spoken=True) for _, versions in told for version in versions.values()]
    found = iter(subject.probabilities(choices))
    probabilities = [{group: next(found) for group in versions} for _, versions in told]

    flips: list[dict[str, Any]] = []
    for (text, versions), given in zip(told, probabilities, strict=True):
        own, *others = versions
        for other in others:
            answers = [options[int(given[group].argmax())] for group in (own, other)]
            flips.append({
                "id": f"{text.id}/{own}/{other}", "cluster": one.template(text.text),
                "value": float(answers[0] != answers[1]), "asked": versions[own], "said": answers[0],
                "counterfactual": versions[other], "said_of_it": answers[1],
                "shift": [round(float(x), 4) for x in given[other] - given[own]],
            })  # fmt: skip
    clusters = [one.template(text.text) for text, _ in told]
    asks: dict[str, tuple[int, Callable[[float], Estimate]]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for option in range(1, 2) if len(options) == 2 else range(min(len(options), MOST_LABELS)):
        for a, b in combinations(range(len(one.groups)), 2):
            values = 100 * np.array(
                [given[one.groups[b]][option] - given[one.groups[a]][option] for given in probabilities]
            )
            name = f"P({options[option]}), {one.groups[b]} less {one.groups[a]}"
            asks[name] = (len(values), lambda tail, v=values: clustered(v, clusters, tail))
            rows[name] = [
                {"id": f"{text.id}/{name}", "cluster": cluster, "value": float(value), "contrast": name,
                 "asked": versions[one.groups[a]], "counterfactual": versions[one.groups[b]]}
                for (text, versions), cluster, value in zip(told, clusters, values, strict=True)
            ]  # fmt: skip
    parts = contrasts(asks, rules.of["swap-shift"], gate)
    seconds = (time.perf_counter() - started) / 2
    shared: dict[str, Any] = dict(
        of=one.name, population=population, n_clusters=len(set(clusters)), gate=gate, 
        next_action=mend, seconds=seconds, baseline="0: the text says the same of everybody",
    )  # fmt: skip
    worst, method = parts[0], f"words of the list {one.name} swapped ({one.source}); "
    return [
        Line.over(
            flips,
            rules,
            "swap-flips",
            question=f"Does swapping {one.name} change the answer?",
            estimate=mean_of(flips).times(100),
            unit="% of pairs",
            counted=("pairs", "templates"),
            method=method + "share of pairs whose answer differs, templates as clusters",
            **shared,
        ),
        Line.over(
            [row for name in (worst.name, *(set(rows) - {worst.name})) for row in rows[name]],
            rules,
            "swap-shift",
            question=f"Which way does it shift? The largest: {worst.name}",
            estimate=worst.estimate,
            unit="points",
            n=worst.n,
            counted=("texts", "templates"),
            parts=tuple(map(str, parts)),
            method=method + f"mean difference of probability, {len(parts)} contrasts by Holm",
            **shared,
        ),
    ]


def group_lines(answered: Answered, rules: Rules, population: str, mend: str) -> list[Line]:
    """Each group beside all others: accuracy, and of two classes how often each is found.

    Raises Refused for a group with too few texts.
    """
    started = time.perf_counter()
    asked, options, truth, said = answered.asked, answered.options, answered.truth, answered.said
    groups = sorted({one.group for one in asked})
    of_group = {name: sum(one.group == name for one in asked) for name in groups}
    if "" in of_group:
        raise Refused(f"{population}: {of_group['']:,} texts have an empty group; name it or leave them out")
    if len(groups) < 2 or min(of_group.values()) < FEWEST:
        name = min(groups, key=of_group.__getitem__)
        few = "1 text" if of_group[name] == 1 else f"{of_group[name]:,} texts"
        raise Refused(f"{population}: group '{name}' has {few}; at least two groups of {FEWEST} are compared")
    gate, sure = answered.gate(range(len(truth)), rules), answered.given.max(axis=1)
    inside = {name: np.array([one.group == name for one in asked]) for name in groups}
    asks: dict[str, tuple[int, Callable[[float], Estimate]]] = {}
    for name in groups[1:] if len(groups) == 2 else groups:
        among = [("accuracy", np.ones(len(truth), bool), said == truth)]
        if len(options) == 2:
            among += [(f"'{options[c]}' where it is true", truth == c, said == c) for c in (0, 1)]
        among.append(("confidence less accuracy", np.ones(len(truth), bool), sure - (said == truth)))
        for what, where, hit in among:
            one, rest = hit[inside[name] & where], hit[~inside[name] & where]
            if min(len(one), len(rest)) >= FEWEST:
                asks[f"{what}, {name} less others"] = (len(one), apart(one, rest))
    parts = contrasts(asks, rules.of["group-gap"], gate)
    worst = parts[0]
    rows = [
        {"id": one.id, "cluster": one.id, "value": float(a == b), "asked": one.text, "group": one.group,
         "wanted": one.label, "said": options[int(a)]}
        for one, a, b in zip(asked, said, truth, strict=True)
    ]  # fmt: skip
    return [Line.over(
        rows, rules, "group-gap", of="",
        question=f"Is it as good for every group? The largest gap: {worst.name}",
        population=population, estimate=worst.estimate, unit="points", n_clusters=len(groups),
        counted=("texts", "groups"), method=f"shares compared (Newcombe), {len(parts)} contrasts by Holm",
        baseline="0: as good for all", gate=gate, next_action=mend, seconds=time.perf_counter() - started,
        parts=tuple(map(str, parts)),
    )]  # fmt: skip


def sureness_line(answered: Answered, rules: Rules, population: str, mend: str | None) -> Line:
    """Whether confidence means what it says. mend: the command that takes a temperature, if there is one."""
    asked, options, given, truth = answered.asked, answered.options, answered.given, answered.truth
    sure, right = given.max(axis=1), answered.said == truth
    rows = tuple(
        {
            "id": one.id,
            "cluster": one.id,
            "value": float(100 * (a - b)),
            "asked": one.text,
            "wanted": one.label,
            "said": options[int(c)],
        }
        for one, a, b, c in zip(asked, sure, right, answered.said, strict=True)
    )
    bins = n_bins(len(asked))
    parts = [f"Brier {np.mean(squared_distances(given, truth)):.3f}, accuracy {100 * right.mean():.1f}%"]
    if bins > 1:
        ece, chance = expected_calibration_error(sure, right, bins), error_by_chance(sure, bins)
        parts.append(
            f"calibration error {100 * ece:.1f} points (ECE, {bins} bins of equal mass); a perfectly "
            f"calibrated model would show up to {100 * chance:.1f} of so few texts"
        )
    learn = "do not read its probabilities as how often it is right"
    return Line.over(
        rows,
        rules,
        "surer-than-right",
        of="",
        question="Is it as often right as it is sure?",
        population=population,
        estimate=student(100 * (sure - right)),
        unit="points",
        counted=("texts", "texts"),
        method="mean of confidence less accuracy",
        baseline="0: as sure as right",
        gate=None,
        next_action=learn if mend is None else f"{mend} --temperature {best_temperature(given, truth):.2f}",
        seconds=answered.seconds,
        parts=tuple(parts),
    )


def _template(text: str, lists: Sequence[SwapList]) -> str:
    for one in lists:
        text = one.template(text)
    return text


def apart(one: np.ndarray, rest: np.ndarray) -> Callable[[float], Estimate]:
    """The interval of the difference of two means, in points, for a tail."""
    if one.dtype == bool:
        k, n, other, m = int(one.sum()), len(one), int(rest.sum()), len(rest)
        return lambda tail: mover(share(k, n, tail), share(other, m, tail)).times(100)
    return lambda tail: mover(
        *(clustered(side, range(len(side)), tail) for side in (one, rest))
    ).times(100)  # fmt: skip
