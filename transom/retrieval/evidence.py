"""Evidence: the sentences of what was found, each with what speaks for its answering the question.

The one idea: a few plain measures, weighted by logistic regression on questions whose answers are known, both
to choose the sentence and to say how likely it is right. Read next: ask, calibrate.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .chunks import BETWEEN, is_heading, sentences
from .search import STOP, Hit, KnowledgeBase
from .words import words_of

READ = 8
"""Passages whose sentences are looked at."""
FEWEST = 4
"""Characters of a sentence that can answer."""
MOST = 1200
_NUMBER_WANTED = re.compile(
    r"\b(?:how (?:many|much|long|old|far|often|high)|when|what (?:year|date|percentage|number))\b", re.I
)
_ENDINGS = ("ations", "ation", "ingly", "ings", "ing", "edly", "ies", "ers", "ed", "er", "es", "ly", "s", "e")

_MEASURED = re.compile(r"\bhow (?:long|old|far|often|high|tall|large|big|wide|deep|fast|heavy)\b", re.I)
"""Asks for a measure, whose word stands in few answers."""
FEATURES = (
    "words of the sentence",
    "words of the passage",
    "cosine of the sentence",
    "a number where one is asked for",
)
Features = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A sentence that may answer, with its place in its document."""

    hit: Hit
    start: int
    end: int
    text: str
    features: Features
    """(4,), see FEATURES."""


def stems(text: str) -> list[str]:
    """The words of a text without their commonest English endings, stop words left out."""
    return [_stem(word) for word in words_of(text) if word not in STOP]


def coverage(asked: dict[str, float], text: str) -> float:
    """The share of weighted words that occur in a text."""
    if not asked:
        return 0.0
    there = set(stems(text))
    return sum(weight for stem, weight in asked.items() if stem in there) / sum(asked.values())


def weights(text: str, among: Sequence[str]) -> dict[str, float]:
    """The words of a text, each by how rare it is among others."""
    held = [set(stems(one)) for one in among]
    return {
        stem: math.log(1 + (len(held) + 1) / (sum(stem in one for one in held) + 1))
        for stem in dict.fromkeys(stems(text))
    }


def candidates(base: KnowledgeBase, question: str, hits: Sequence[Hit]) -> list[Candidate]:
    """The sentences of the best passages, in the order of these.

    A sentence is read with the heading that it stands under in its passage: `Two years.` answers how long
    parental leave is where that is what stands above it.
    """
    asked = weights(_MEASURED.sub(" ", question), [hit.passage.text for hit in hits])
    found: list[tuple[Hit, int, int, str, float]] = []
    read: list[str] = []
    for hit in hits[:READ]:
        passage = hit.passage
        whole = coverage(asked, f"{passage.title} {passage.section} {passage.text}")
        heading = passage.section.rpartition(BETWEEN)[2] + "\n"
        for start, end in sentences(passage.text):
            text = passage.text[start:end]
            if is_heading(text):
                heading = text.lstrip("# ") + "\n"
            elif FEWEST <= len(text) <= MOST:
                read.append(heading + text)
                found.append((hit, passage.start + start, passage.start + end, text, whole))
    if not found:
        return []
    cosines = np.zeros(len(found))
    if base.encoder is not None:
        vectors = base.vectors([question, *read])
        cosines = vectors[1:] @ vectors[0]
    wants_number = _NUMBER_WANTED.search(question) is not None
    made = []
    for (hit, start, end, text, whole), under, cosine in zip(found, read, cosines, strict=True):
        number = float(wants_number and any(letter.isdigit() for letter in text))
        features = [coverage(asked, under), whole, cosine, number]
        made.append(Candidate(hit, start, end, text, np.array(features, np.float64)))
    return made


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
