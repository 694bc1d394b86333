"""Filling gaps: what an encoder that learned from masked words would put in the place of one.

Read next: batching.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.model.transformer import Transformer

from .dtype import describe

GAP = "<mask>"
"""What stands for the gap in a text given to `fill`, whatever the model's own mask token is called."""


class Filling(NamedTuple):
    """One token for a gap."""

    text: str
    """The token as text."""
    probability: float
    """Among all tokens of the vocabulary; these sum to 1."""
    token: int
    """Its id."""


class FillMask:
    """An encoder with a head for tokens, ready to fill gaps.

    `model` is the nn.Module, `tokenizer` turns text into ids and back.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, reason: str = "") -> None:
        """A model in eval mode and a tokenizer with a mask token; raises Refused where there is none."""
        if tokenizer.mask_id is None:
            raise Refused("this model's tokenizer names no mask token; a gap cannot be shown to it")
        self.model, self.tokenizer, self.reason = model, tokenizer, reason

    def __repr__(self) -> str:
        return describe(self.model, "FillMask", self.reason)

    def fill(self, text: str, *, n: int = 5) -> list[list[Filling]]:
        """The likeliest tokens for every gap of a text, likeliest first: a list of `Filling` for each.

        text: has the word `<mask>` where something is missing. n: how many tokens for each gap.
        Raises Refused for a text without a gap and for one that is longer than the model reads.
        """
        return self.read(self._with_gaps(text), n)

    @torch.inference_mode()
    def read(self, ids: list[int], n: int = 5) -> list[list[Filling]]:
        """Return the n likeliest tokens for every mask token of a framed text, likeliest first."""
        gaps = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        hidden = self.model(torch.tensor([ids], device=self.model.embed.weight.device))[0, gaps]
        best = self.model.logits(hidden).softmax(-1).topk(min(n, self.model.config.vocab_size))
        return [
            [
                Filling(self.tokenizer.decode([token]).strip(), value, token)
                for value, token in zip(*row, strict=True)
            ]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def _with_gaps(self, text: str) -> list[int]:
        """Return the framed ids; only a gap becomes the mask token, whatever else the text spells."""
        tokenizer, (before, after) = self.tokenizer, self.tokenizer.frame
        parts = text.split(GAP)
        if len(parts) == 1:
            raise Refused(f"the text has no gap; write {GAP} where a word is missing")
        if tokenizer.kind == "bpe":  # the space before a word belongs to the word's token
            parts[:-1] = [part.removesuffix(" ") for part in parts[:-1]]
        ids = tokenizer.encode(parts[0])
        for part in parts[1:]:
            ids += [tokenizer.mask_id, *tokenizer.encode(part)]  # type: ignore[list-item]
        ids, limit = [*before, *ids, *after], self.model.config.max_len
        if len(ids) > limit:
            raise Refused(f"the text has {len(ids)} tokens; this model reads at most {limit} (max_len)")
        return ids
