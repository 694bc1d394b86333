"""A model that is asked what a pronoun means: how it reads words, and which noun it prefers itself.

An encoder of sentences has no words to say; it is asked whether its vector of the sentence is nearer to that
of the sentence with the one noun or the other in the pronoun's place. All in float64: what is cut out of one
head moves a vector by little, and rounding must not be taken for it. Read next: cat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checkpoint.hub import resolve
from ..checkpoint.huggingface import load_model
from ..data.tokenizer import Tokenizer
from ..errors import Refused
from ..hardware import minilm
from ..insight.hooks import Edit, edited
from ..model.transformer import Transformer
from .pronouns import Item
from .small_reader import train_reader

Places = Sequence[int]


@dataclass(frozen=True)
class Reader:
    """A model, and how it is asked."""

    name: str
    model: Transformer
    encode: Callable[[Sequence[str]], tuple[list[int], list[Places]]]
    """Words to ids, and where each word stands among them."""
    says: str
    """What a preference is."""

    @torch.no_grad()
    def preferences(self, item: Item, changes: Sequence[Sequence[Edit]]) -> list[float]:
        """By how much the model prefers the right noun to the wrong one, under each change to its run."""
        ids, places = self.encode(item.words)
        row = torch.tensor([ids])
        readings = [self._vector(self.encode(item.reading(i))[0]) for i in (0, 1)] if self._embeds else []
        found = []
        for edits in changes:
            with edited(edits):
                if self._embeds:
                    scores = [float(self._vector(ids) @ reading) for reading in readings]
                else:
                    logits = self.model.logits(self.model(row)[0, places[item.pronoun][0]])
                    scores = [float(logits[ids[places[noun][0]]]) for noun in item.nouns]
            found.append(scores[item.right] - scores[1 - item.right])
        return found

    @property
    def _embeds(self) -> bool:
        return self.model.config.head == "embed"

    def _vector(self, ids: Sequence[int]) -> Tensor:
        return normalize(self.model.vectors(self.model(torch.tensor([ids])))[0], dim=-1)


def encoder_reader(folder: str) -> Reader:
    """An encoder of sentences: its reading is nearer to that of the sentence with the noun in place."""
    path = resolve(folder)
    model: Any = load_model(path).eval().double()
    if model.config.kind != "encoder" or model.config.head != "embed":
        kind, can = model.config.kind, model.config.head
        raise Refused(f"{folder} is a {kind} whose head can {can}; this test needs an encoder that embeds, "
                      "where `it` sees the word that decides")  # fmt: skip
    tokenizer = Tokenizer.load(path)
    first, last = tokenizer.frame

    def encode(words: Sequence[str]) -> tuple[list[int], list[Places]]:
        ids, places = list(first), []
        for pieces in tokenizer.encode_many(list(words)):
            places.append(range(len(ids), len(ids) + len(pieces)))
            ids += pieces
        return [*ids, *last], places

    says = "cosine to the sentence with the right noun in the pronoun's place, minus that with the wrong one"
    return Reader("MiniLM" if folder == str(minilm()) else Path(folder).name, model, encode, says)


def small_reader(steps: int, seed: int) -> Reader:
    """The encoder that is trained here."""
    model, words = train_reader(steps, seed)
    model = model.double()
    number = {word: i for i, word in enumerate(words)}

    def encode(sentence: Sequence[str]) -> tuple[list[int], list[Places]]:
        return [number[word] for word in sentence], [(place,) for place in range(len(sentence))]

    return Reader(
        "a small encoder trained here", model, encode, "logit of the right noun minus the wrong one's"
    )
