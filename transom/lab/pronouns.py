"""Sentences in which one word decides what a pronoun means, in pairs that differ in that word.

"The cat was on the mat because it was happy" and "... because it was torn": whoever does not use the last
word gets exactly one of the two right, so luck and habit cannot look like understanding. Read from the
definite-pronoun set (Rahman & Ng 2012) or generated, with the order of the nouns balanced. Read next: cat.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.lines import split_lines
from ..errors import Refused

PRONOUNS = ("it", "he", "she", "they", "him", "them")
"""Those that a noun can stand for as it is, unlike possessives."""
ANIMALS = ("cat", "dog", "horse", "rabbit", "bird", "mouse", "goat", "bear", "fox", "duck", "pig", "cow")
THINGS = (
    "mat",
    "box",
    "table",
    "blanket",
    "chair",
    "wagon",
    "shelf",
    "carpet",
    "bench",
    "bag",
    "boat",
    "bed",
)
OF_ANIMALS = ("happy", "hungry", "sleepy", "thirsty", "afraid", "curious", "tired", "jealous")
OF_THINGS = ("wooden", "torn", "cheap", "antique", "folded", "painted", "rusty", "expensive")
FORMS = (
    "the {animal} was on the {thing} because it was {word} .",
    "the {thing} was under the {animal} because it was {word} .",
    "the {animal} , which was sitting on the {thing} , was there because it was {word} .",
    "the {thing} , which was lying under the {animal} , was there because it was {word} .",
)
"""Two in which the animal comes first, and two in which the thing does."""


@dataclass(frozen=True)
class Item:
    """One sentence; places count words from 0."""

    words: tuple[str, ...]
    pronoun: int
    nouns: tuple[int, int]
    """The last words of the two candidates, in the order in which they stand, before the pronoun."""
    phrases: tuple[str, str]
    """The candidates in full."""
    right: int
    """Which of the two is meant: 0 the first, 1 the nearest."""
    pair: int

    def reading(self, noun: int) -> tuple[str, ...]:
        """The sentence with one of the candidates in the pronoun's place."""
        return (*self.words[: self.pronoun], *split(self.phrases[noun]), *self.words[self.pronoun + 1 :])


def split(text: str) -> tuple[str, ...]:
    """Words and marks."""
    return tuple(re.findall(r"\w+|[^\w\s]", text))


def generated(n_pairs: int, seed: int = 0, held: int | None = None) -> list[Item]:
    """Pairs over all orders in turn; `held` keeps those whose nouns meet in one of two halves, 0 or 1."""
    rng = np.random.default_rng(seed)
    items: list[Item] = []
    while len(items) < 2 * n_pairs:
        pair = len(items) // 2
        a, t = (int(x) for x in rng.integers((len(ANIMALS), len(THINGS))))
        if held is not None and half_of(a, t) != held:
            continue
        for words, of_animal in ((OF_ANIMALS, True), (OF_THINGS, False)):
            form = FORMS[pair % len(FORMS)]
            text = form.format(animal=ANIMALS[a], thing=THINGS[t], word=words[int(rng.integers(len(words)))])
            split_up = tuple(text.split())
            places = sorted((split_up.index(ANIMALS[a]), split_up.index(THINGS[t])))
            animal_first = split_up[places[0]] == ANIMALS[a]
            phrases = tuple(f"the {split_up[place]}" for place in places)
            items.append(Item(split_up, split_up.index("it"), (places[0], places[1]), phrases,  # type: ignore[arg-type]
                              int(animal_first != of_animal), pair))  # fmt: skip
    return items


def half_of(animal: int, thing: int) -> int:
    """Which half a pair of nouns belongs to: each noun is in both, no two meet in both."""
    return (animal + thing) % 2


def definite_pronouns(path: str | Path) -> tuple[list[Item], str]:
    """The pairs of a file of five lines an item, and what was left out and why, in one sentence."""
    try:
        lines = split_lines(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Refused(f"{path}: {why}; it must hold items of sentence, pronoun, two candidates, answer and "
                      "an empty line") from None  # fmt: skip
    if len(lines) < 9 or any(lines[4::5]):
        raise Refused(f"{path}: line 5 and every fifth line after it must be empty, after sentence, pronoun, "
                      "two candidates and answer")  # fmt: skip
    raw = [lines[i : i + 4] for i in range(0, len(lines) - 3, 5)]
    items: list[Item] = []
    for number, (one, other) in enumerate(_neighbours(raw)):
        found = [_item(fields, number) for fields in (one, other)]
        if (
            found[0]
            and found[1]
            and found[0].phrases == found[1].phrases
            and found[0].right != found[1].right
        ):
            items += [found[0], found[1]]
    why = (f"{len(items) // 2} of {len(raw) // 2} pairs; left out are those in which the pronoun, or a "
           "candidate before it, does not stand exactly once, and possessives")  # fmt: skip
    return items, why


def _neighbours(raw: Sequence[Sequence[str]]) -> Iterator[tuple[Sequence[str], Sequence[str]]]:
    return zip(raw[::2], raw[1::2], strict=False)


def _item(fields: Sequence[str], pair: int) -> Item | None:
    """An item as it stands in the file, or None where it cannot be asked."""
    sentence, pronoun, both, answer = (field.strip() for field in fields)
    words = split(sentence)
    low = [word.lower() for word in words]
    phrases = [phrase.strip() for phrase in both.split(",")]
    if pronoun.lower() not in PRONOUNS or low.count(pronoun.lower()) != 1 or len(phrases) != 2:
        return None
    at, ends = low.index(pronoun.lower()), []
    for phrase in phrases:
        wanted = [word.lower() for word in split(phrase)]
        starts = [i for i in range(at - len(wanted) + 1) if wanted and low[i : i + len(wanted)] == wanted]
        if len(starts) != 1:
            return None
        ends.append(starts[0] + len(wanted) - 1)
    if ends[0] == ends[1] or answer.lower() not in (phrase.lower() for phrase in phrases):
        return None
    order = sorted((0, 1), key=lambda i: ends[i])
    ordered = (phrases[order[0]], phrases[order[1]])
    right = [phrase.lower() for phrase in ordered].index(answer.lower())
    return Item(words, at, (ends[order[0]], ends[order[1]]), ordered, right, pair)
