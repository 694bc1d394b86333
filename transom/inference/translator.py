"""Translation: sources in, the likeliest targets out; the whole path of a call, in the order it happens.

Sources of about one length are encoded together, then a beam search writes all their targets as one batch.
Read next: beam, texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch

from transom.data.tokenizer import Ids, Tokenizer
from transom.errors import Refused
from transom.model.build import Model

from .arithmetic import describe
from .beam import Found, search
from .packed import Packing
from .texts import TextBatch, as_list, batches, framed

LONGER, MORE = 2, 10
"""Unless it is told, a target may have LONGER times the tokens of its source and MORE besides."""
MOST_BEAMS = 64
ROWS = 256
"""Beams that run together: more sentences than fit run one batch after the other."""
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Translation:
    """One text in another language."""

    text: str
    tokens: list[int]
    """As the model wrote them, the end token included."""
    logprob: float
    """The natural logarithm of the probability of all tokens together."""
    n_source_tokens: int
    finished: bool
    """Whether it ended by itself; otherwise max_tokens cut it."""

    def __str__(self) -> str:
        return self.text


class Translator:
    """An encoder-decoder with its tokenizer, ready to translate."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, eos_ids: Sequence[int] = (), reason: str = ""
    ) -> None:
        """A model in eval mode. `eos_ids` end a target, or else the tokenizer's own end token does."""
        self.model, self.tokenizer, self.reason = model, tokenizer, reason
        own_end = frozenset() if tokenizer.eos_id is None else frozenset([tokenizer.eos_id])
        self.eos_ids = frozenset(eos_ids) or own_end
        if model.config.start_id is None:
            raise Refused("the model's config names no token that a target begins with (start_id)")
        self.start_id = model.config.start_id
        self._packing = Packing(model)

    def __repr__(self) -> str:
        return describe(self.model, "Translator", self.reason)

    @overload
    def translate(
        self,
        texts: str,
        *,
        beam: int = 4,
        length_penalty: float = 1.0,
        max_tokens: int | None = None,
        exact: bool = False,
    ) -> Translation: ...
    @overload
    def translate(
        self,
        texts: Sequence[str],
        *,
        beam: int = 4,
        length_penalty: float = 1.0,
        max_tokens: int | None = None,
        exact: bool = False,
    ) -> list[Translation]: ...
    @torch.inference_mode()
    def translate(
        self,
        texts: str | Sequence[str],
        *,
        beam: int = 4,
        length_penalty: float = 1.0,
        max_tokens: int | None = None,
        exact: bool = False,
    ) -> Translation | list[Translation]:
        """The translation of one text, or of each of several.

        beam: how many beginnings are kept at every step; 1 is greedy. length_penalty and exact: as for
        `beam.search`. max_tokens: most tokens of a target; None: 2 for each token of the source and 10 more,
        or what the model's length leaves. Raises Refused for an empty text and for one that is longer than
        the model reads.
        """
        limit = self.model.config.max_len
        self._check(beam, length_penalty, max_tokens)
        listed, several = as_list(texts)
        sources = framed(self.tokenizer, listed, limit)
        most = [max_tokens or min(limit, LONGER * len(ids) + MORE) for ids in sources]
        answers: dict[int, Translation] = {}
        rows, device = max(1, ROWS // beam), self.model.embed.weight.device
        for batch in batches(sources, device, budget=BATCH_TOKENS, rows=rows):
            found = self._targets(batch, [most[place] for place in batch.places], beam, length_penalty, exact)
            for place, best in zip(batch.places, found, strict=True):
                answers[place] = self._translation(best, sources[place])
        ordered = [answers[place] for place in range(len(listed))]
        return ordered if several else ordered[0]

    def _check(self, beam: int, length_penalty: float, max_tokens: int | None) -> None:
        limit = self.model.config.max_len
        if type(beam) is not int or not 1 <= beam <= MOST_BEAMS:
            raise Refused(f"beam is {beam!r}; it must be a whole number from 1 (greedy) to {MOST_BEAMS}")
        if not isinstance(length_penalty, int | float) or not -10 <= length_penalty <= 10:
            raise Refused(f"length_penalty is {length_penalty!r}; it must be a number from -10 to 10")
        if max_tokens is not None and (type(max_tokens) is not int or not 1 <= max_tokens <= limit):
            raise Refused(
                f"max_tokens is {max_tokens!r}; it must be 1 to {limit}, this model's limit (max_len)"
            )

    def _targets(
        self, batch: TextBatch, most: list[int], beam: int, length_penalty: float, exact: bool
    ) -> list[Found]:
        """The best target of each source of a batch."""
        model = self._packing.current()
        memory = model.encode(batch.tokens, documents=batch.documents)
        starts = [[self.start_id]] * len(most)
        found = search(
            model, starts, memory=memory, ends=self.eos_ids, max_tokens=most,
            beam=beam, length_penalty=length_penalty, exact=exact,
        )  # fmt: skip
        return [one[0] for one in found]

    def _translation(self, found: Found, source: Ids) -> Translation:
        tokens = found.tokens
        finished = tokens[-1] in self.eos_ids
        text = self.tokenizer.decode(tokens[:-1] if finished else tokens)
        return Translation(text, tokens, found.logprob, len(source), finished)
