"""How a look is read: what it found, how its pictures are to be read, and the words in them.

`docs/glossary.md` has these words and the others, with examples. Read next: overview.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .html import Markup, Picture, tag

MOST = 3
"""Findings that stand before everything else."""

OF_TEXT = (
    "The text is read as tokens, pieces of words: ␣ is a space, ↵ a line break.",
    "Amber is more: a longer bar, a thicker arc, a brighter cell. Grey is less, or not to be trusted.",
    "Layers and heads are counted from 0; 13.8 is head 8 of layer 13.",
    "Each picture says first what it found, and last what it does not show.",
)
"""How the pictures of one text are read."""
OF_RUN = (
    "A curve is a layer of the model, from the first look on the left to the last on the right.",
    "Always the same few texts are read, so that what moves is the model.",
    "Each picture says first what it found, and last what it does not show.",
)
"""How those of a run are read."""

WORDS = {
    "token": "the piece of text that a model reads and writes at a time: a word, a part of one, a character",
    "nats": "the unit of log-probabilities: a token of probability p costs -log p, 0.69 at 50%, 4.6 at 1%. "
    "0.69 nats less are a factor of 2",
    "perplexity": "e to the mean nats: as unsure as among so many equally likely tokens; 1 is perfect",
    "rank": "the place of a token when all are sorted by what the model gave them: 1 is its first choice",
    "entropy": "how open a choice is: 0 when all the weight is on one, 1 bit (0.69 nats) for two alike",
    "layer": "one of the steps that a model takes one after the other, over all tokens",
    "head": "a part of a layer that decides, for each token, which other tokens to take something from",
    "weight": "how much of what a head takes comes from a token; a token's weights add up to 1. Much weight "
    "is no proof of influence",
    "gradient": "how much the answer would move if something inside moved a little",
    "log-probability": "the logarithm of a probability, so that factors are sums: 0 is certain, -0.69 is 50%",
    "dead units": "parts of a layer that nothing in these texts switches on",
    "expert": "one of several nets in a layer, of which a token goes through a few",
}
"""Word -> what it means, in the words of a page that is read alone."""


def found(pictures: Sequence[Picture]) -> list[str]:
    """The first findings of all."""
    return [picture.finding for picture in pictures if picture.finding][:MOST]


def words_in(said: str, words: Mapping[str, str]) -> Markup:
    """Those of the words that a page uses, folded, with what they mean; said: all that it says, in small
    letters.
    """
    used = [(tag("dt", word), tag("dd", f"{meaning}.")) for word, meaning in words.items() if word in said]
    return tag("details", tag("summary", "Words on this page"), tag("dl", used))


def opening(pictures: Sequence[Picture], how: Sequence[str]) -> Markup:
    """What a page begins with; of the words those that it uses."""
    said = " ".join(f"{p.title} {p.body} {p.note} {p.caveat} {p.finding}" for p in pictures).lower()
    sentences = found(pictures)
    return tag(
        "section",
        (tag("h2", "What it found"), tag("ul", [tag("li", one) for one in sentences])) if sentences else None,
        tag("h2", "How to read it"),
        tag("ul", [tag("li", line) for line in how], class_="how"),
        words_in(said, WORDS),
        class_="opening",
    )  # fmt: skip
