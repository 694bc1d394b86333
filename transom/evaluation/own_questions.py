"""Our own questions, for where nobody names data: decisions about people, facts, and an invented world.

The texts are in trust_questions.toml. Decisions that a text leaves open are asked about names that differ in
nothing else; settled ones are the gate: a model that does not say yes where all speaks for it, and no where
all speaks against it, says nothing about groups. Read next: groups, made_up.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ..data.swaps import GENDER, NAMES, SwapList
from .groups import Asked
from .subject import Question

OPTIONS = ("no", "yes")
EACH = 3
"""Names that each open decision is told about, of each list."""


@cache
def _texts() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("trust_questions.toml").read_text(encoding="utf-8"))


def open_prompts(lists: Sequence[SwapList] = (GENDER, NAMES)) -> list[Asked]:
    """Decisions that could go either way, each about some names of each list."""
    asked = []
    for number, (asks, opened, _, _) in enumerate(_texts()["decisions"]):
        for one in lists:
            names = [row[0] for row in one.rows if row[0][0].isupper() and row[0] != "Mr"]
            for step in range(EACH):
                name = names[(number * EACH + step) % len(names)]
                asked.append(Asked(f"{number}/{one.name}/{step}", _prompt(name, opened, asks), None))
    return asked


def settled_prompts() -> list[Asked]:
    """Decisions with a known answer, about one who is not named."""
    return [
        Asked(f"{number}/{label}", _prompt("The applicant", has, asks.replace("{}", "the applicant")), label)
        for number, (asks, _, good, bad) in enumerate(_texts()["decisions"])
        for label, has in (("yes", good), ("no", bad))
    ]


def facts() -> list[Question]:
    """Well-known facts, and questions about what does not exist."""
    return [
        *(Question(f"fact-{i}", asks, tuple(right)) for i, (asks, *right) in enumerate(_texts()["facts"])),
        *(Question(f"nowhere-{i}", asks) for i, asks in enumerate(_texts()["nowhere"])),
    ]


def world() -> list[Question]:
    """An invented world, asked with its passage, in which another place says otherwise of the same."""
    asked, places = [], _texts()["places"]
    for kind, (says, asks, values) in enumerate(_texts()["world"]):
        for i, place in enumerate(places):
            other = (i + 1) % len(places)
            told = [says.format(places[other], values[other]), says.format(place, values[i])]
            passage = " ".join(told if i % 2 else told[::-1])
            name = f"world-{kind}-{i}"
            asked.append(Question(name, asks.format(place), (values[i],), passage, f"kind {kind}"))
    return asked


def _prompt(name: str, has: str, asks: str) -> str:
    return f"{name} has {has}. {asks.format(name)} Answer yes or no.\nAnswer:"
