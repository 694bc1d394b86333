"""What a model makes up: wrong answers, answers where there is none, answers that its text does not carry.

Questions are the user's own, or ours: well-known facts, names that nobody has, and an invented world that no
model can know, told in a passage. An answer is right where it holds one of the right ones word for word.
Read next: verifier, trust.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from ..inference.request import Completion
from ..intervals import FEWEST, TAIL, Estimate, corrected, spread
from ..retrieval.words import by_character
from .gate import Gate, competence
from .subject import Question, Subject
from .trust_line import Line, Rules, mean_of
from .verifier import CHECKED, Errors, support

_SILENT = re.compile(
    r"\b(?:(?:do not|don't|does not|doesn't|did not|not|cannot|can't|could not) (?:know|say|tell|sure|"
    r"mentioned|stated|specified|given|known|answer|be (?:answered|determined|known))|unknown|unsure|"
    r"no (?:answer|information)|not an AI|(?:do not|don't) have|unable to|there is no|does not exist|"
    r"doesn't exist)\b",
    re.I,
)
COVERAGES = (1.0, 0.8, 0.6, 0.4, 0.2)


def is_silent(answer: str) -> bool:
    """Whether an answer says that it is none."""
    return not answer.strip() or _SILENT.search(answer.replace("’", "'")) is not None


def is_right(answer: str, wanted: Sequence[str]) -> bool:
    """Whether an answer holds one of the right ones, word for word."""
    said = f" {_plain(answer)} "
    return any(f" {_plain(one)} " in said for one in wanted)


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text.lower())
    bare = "".join(c for c in folded if not unicodedata.combining(c))
    words = re.findall(r"[^\W_]+", by_character(bare))
    return " ".join(word for word in words if word not in ("the", "a", "an"))


def _row(one: Question, answer: Completion, value: float) -> dict[str, Any]:
    logprobs = [token.logprob for token in answer.logprobs or ()]
    return {
        "id": one.id,
        "cluster": one.cluster or one.id,
        "value": value,
        "asked": f"{one.passage}\n\n{one.question}".strip(),
        "wanted": " | ".join(one.answers) or "(no answer)",
        "said": answer.text.strip(),
        "n_tokens": len(answer.tokens),
        "mean_logprob": round(float(np.mean(logprobs)), 4) if logprobs else None,
    }


def gate_of(asked: Sequence[Question], answers: Sequence[Completion], rules: Rules) -> Gate:
    """Whether a model answers questions with a known answer at all; by chance none is right."""
    right = [is_right(answer.text, one.answers) for one, answer in zip(asked, answers, strict=True)]
    return competence(right, [one.cluster or one.id for one in asked], 0.0, margin=rules.margin)


def closed_book(
    subject: Subject, asked: Sequence[Question], rules: Rules, population: str, mend: str
) -> tuple[list[Line], Gate, list[Completion]]:
    """Questions without a text: how many answers are wrong, whether what has no answer gets one, and whether
    the model's own doubt tells; with the gate of all that, and the answers.
    """
    written = subject.write(asked)
    both = list(zip(asked, written.answers, strict=True))
    known = [(one, answer) for one, answer in both if one.answers]
    gate = gate_of([one for one, _ in known], [answer for _, answer in known], rules)
    seconds = written.seconds / 2
    said = [
        _row(one, answer, float(not is_right(answer.text, one.answers)))
        for one, answer in known
        if not is_silent(answer.text) or is_right(answer.text, one.answers)
    ]
    lines = []
    if known:
        lines.append(
            Line.over(
                said,
                rules,
                "made-up",
                of="",
                question="How many of its answers are wrong?",
                population=population,
                estimate=mean_of(said).times(100) if said else Estimate(math.nan),
                unit="% of answers",
                counted=("answers", "questions"),
                method="share of answers without the words of a right one",
                baseline=f"{len(known) - len(said):,} of {len(known):,} questions were left unanswered",
                gate=gate,
                next_action=mend,
                seconds=seconds,
            )
        )
        lines.append(_doubt(said, rules, population, gate))
    if blank := [(one, answer) for one, answer in both if not one.answers]:
        rows = [_row(one, answer, float(not is_silent(answer.text))) for one, answer in blank]
        lines.append(_anyway("", rows, rules, population, gate, mend, seconds))
    return lines, gate, written.answers


def from_passages(
    subject: Subject, asked: Sequence[Question], rules: Rules, population: str, mend: str, known: Gate | None,
    errors: Errors = CHECKED,
) -> list[Line]:  # fmt: skip
    """Questions with a text that answers them: whether the answer is the text's, whether the text carries it,
    and whether there is one where another text stands in its place.

    known: the gate of other questions, for where none here is a control.
    """
    controls = [one for one in asked if one.control]
    gate = gate_of(controls, subject.write(controls).answers, rules) if controls else known
    tried = [one for one in asked if not one.control and one.answers]
    written = subject.write(tried)
    other = [replace_passage(one, tried) for one in tried]
    moved = subject.write(other)
    ignored = [
        _row(one, answer, float(not is_right(answer.text, one.answers)))
        for one, answer in zip(tried, written.answers, strict=True)
    ]
    without = float(
        np.mean([is_right(a.text, one.answers) for one, a in zip(tried, moved.answers, strict=True)])
    )
    shared: dict[str, Any] = dict(of="", population=population, gate=gate, next_action=mend)
    lines = [
        Line.over(
            ignored,
            rules,
            "context-ignored",
            question="How many answers are not those of the text it was given?",
            estimate=mean_of(ignored).times(100),
            unit="% of answers",
            counted=("questions", "templates"),
            method="share of answers without the words of the text's answer",
            baseline=f"with another text in its place {100 * without:.0f}% say it all the same",
            seconds=written.seconds,
            **shared,
        )
    ]
    said = [(one, a) for one, a in zip(tried, written.answers, strict=True) if not is_silent(a.text)]
    rows = [_row(one, a, float(support(a.text, one.passage) < errors.threshold)) for one, a in said]
    found, flagged = Estimate(math.nan), 0.0
    if rows:
        values = np.array([row["value"] for row in rows])
        spread_of, flagged = spread(values, [row["cluster"] for row in rows]), float(values.mean())
        if spread_of.n_clusters >= FEWEST:
            found = corrected(flagged, spread_of.tries(values), errors.sensitivity, errors.specificity).times(
                100
            )
    lines.append(
        Line.over(
            rows,
            rules,
            "unsupported",
            question="How many answers does the text not carry?",
            estimate=found,
            unit="% of answers",
            counted=("answers", "templates"),
            method=f"corrected for errors of the verifier (Rogan-Gladen): it flagged {100 * flagged:.1f}%",
            baseline=str(errors),
            **shared,
        )
    )
    rows = [_row(one, a, float(not is_silent(a.text))) for one, a in zip(other, moved.answers, strict=True)]
    lines.append(_anyway("other-text", rows, rules, population, gate, mend, moved.seconds))
    return lines


def replace_passage(one: Question, among: Sequence[Question]) -> Question:
    """The question with the next passage that does not hold its answer: it has none then."""
    at = among.index(one)
    for step in range(1, len(among)):
        passage = among[(at + step) % len(among)].passage
        if not is_right(passage, one.answers):
            return one._replace(passage=passage)
    return one._replace(passage="This text is about something else.")


def _anyway(
    of: str,
    rows: list[dict[str, Any]],
    rules: Rules,
    population: str,
    gate: Gate | None,
    mend: str,
    seconds: float,
) -> Line:
    asks = "its text does not answer" if of else "have no answer"
    return Line.over(
        rows, rules, "answers-anyway", of=of, question=f"How often does it answer questions that {asks}?",
        population=population, estimate=mean_of(rows).times(100), unit="% of questions",
        counted=("questions", "templates"), method="share of answers that do not say that they are none",
        baseline="0: it says that it does not know", gate=gate, next_action=mend, seconds=seconds,
    )  # fmt: skip


def _doubt(said: list[dict[str, Any]], rules: Rules, population: str, gate: Gate) -> Line:
    """Whether the model's doubt (mean -log p of its tokens) finds wrong answers better than their length."""
    rows = [row for row in said if row["mean_logprob"] is not None]
    wrong = np.array([row["value"] > 0 for row in rows], bool)
    doubt = -np.array([row["mean_logprob"] for row in rows], np.float64)
    length = np.array([row["n_tokens"] for row in rows], np.float64)
    found, parts = Estimate(math.nan), []
    if min(wrong.sum(), (~wrong).sum()) >= FEWEST:
        areas, difference = areas_apart(doubt, length, wrong)
        found = difference.times(100)
        parts.append(f"AUROC of doubt {areas[0]:.2f}, of length {areas[1]:.2f}; chance 0.50")
        order = np.argsort(doubt, kind="stable")
        risks = [
            f"{100 * part:.0f}% answered: {100 * wrong[order[: round(part * len(rows))]].mean():.0f}% wrong"
            for part in COVERAGES
        ]
        parts.append("the surest first, " + "; ".join(risks))
    return Line.over(
        rows,
        rules,
        "doubt-beats-length",
        of="",
        question="Does its own doubt find wrong answers better than their length?",
        population=population,
        estimate=found,
        unit="points of AUROC",
        n_clusters=len(rows),
        counted=("answers", "questions"),
        method="mean log-probability of tokens against their number (DeLong 1988)",
        baseline="length alone",
        gate=gate,
        parts=tuple(parts),
        next_action="do not hold answers back by their log-probability unless this is OK",
    )


def areas_apart(a: np.ndarray, b: np.ndarray, wrong: np.ndarray) -> tuple[tuple[float, float], Estimate]:
    """The areas under the ROC of two scores (N,) of wrong answers, and the first less the second (DeLong)."""
    parts = []
    for score in (a, b):
        one, other = score[wrong][:, None], score[~wrong][None, :]
        above = (one > other) + 0.5 * (one == other)
        parts.append((above.mean(axis=1), above.mean(axis=0), float(above.mean())))
    (wrong_a, right_a, area_a), (wrong_b, right_b, area_b) = parts
    variance = (
        np.var(wrong_a - wrong_b, ddof=1) / wrong.sum() + np.var(right_a - right_b, ddof=1) / (~wrong).sum()
    )
    half = -float(ndtri(TAIL)) * math.sqrt(float(variance))
    gap = area_a - area_b
    return (area_a, area_b), Estimate(gap, gap - half, gap + half)
