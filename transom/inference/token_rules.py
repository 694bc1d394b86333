"""What a folder forces and forbids, whatever its model thinks: bad words, suppressed and forced tokens.

Rules speak of token ids alone, and a step of any search asks for them by what has been written so far; the
sampler and beam search obey the same answer. Each is what `transformers` computes for the key of that name in
generation_config.json. Read next: sampling_rows, beam.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from transom.checkpoint.generation import UNSAID, GenerationConfig


class Ruling(NamedTuple):
    """What holds for one next token."""

    forbidden: tuple[int, ...] = ()
    """Never these."""
    only: tuple[int, ...] | None = None
    """One of these, each as if it were certain; None: any that is not forbidden."""
    repeated: tuple[int, ...] = ()
    """Tokens that are there already, where `penalty` makes them less likely."""
    penalty: float = 1.0


@dataclass(frozen=True)
class TokenRules:
    """The rules of one folder."""

    config: GenerationConfig = UNSAID

    def __bool__(self) -> bool:
        c = self.config
        return bool(
            c.bad_words_ids or c.suppress_tokens or c.begin_suppress_tokens or c.forced_eos_token_id
            or c.forced_bos_token_id is not None or c.no_repeat_ngram_size or c.min_length or c.min_new_tokens
            or c.repetition_penalty != 1
        )  # fmt: skip

    def at(self, tokens: Sequence[int], n_made: int, max_tokens: int, ends: Collection[int]) -> Ruling:
        """Return what holds after `tokens`, the last `n_made` of which are new; `ends` may end the text."""
        c = self.config
        first = 1 if c.forced_bos_token_id is not None and len(tokens) - n_made == 1 else 0
        suppressed = c.suppress_tokens + (c.begin_suppress_tokens if n_made == first else ())
        if c.forced_eos_token_id and n_made == max_tokens - 1:
            return Ruling(only=tuple(one for one in c.forced_eos_token_id if one not in suppressed))
        if c.forced_bos_token_id is not None and len(tokens) == 1:
            return Ruling(only=tuple(one for one in (c.forced_bos_token_id,) if one not in suppressed))
        too_short = len(tokens) < c.min_length or n_made < c.min_new_tokens
        forbidden = {
            *suppressed,
            *self._bad(tokens, ends),
            *self._again(tokens),
            *(ends if too_short else ()),
        }
        repeated = tuple(set(tokens)) if c.repetition_penalty != 1 else ()
        return Ruling(tuple(forbidden), None, repeated, c.repetition_penalty)

    def _bad(self, tokens: Sequence[int], ends: Collection[int]) -> list[int]:
        """Return the last token of every bad word of which all others have just been written."""
        return [
            word[-1]
            for word in self.config.bad_words_ids
            if not (len(word) == 1 and word[0] in ends)
            and (len(word) == 1 or len(tokens) >= len(word) and tuple(tokens[1 - len(word) :]) == word[:-1])
        ]

    def _again(self, tokens: Sequence[int]) -> list[int]:
        """Return what would complete a run of `no_repeat_ngram_size` tokens that is there already."""
        n = self.config.no_repeat_ngram_size
        if not n or len(tokens) < n:
            return []
        tokens = list(tokens)
        last = tokens[len(tokens) - n + 1 :]
        starts = range(len(tokens) - n + 1)
        return [tokens[at + n - 1] for at in starts if tokens[at : at + n - 1] == last]


def obey(scores: Tensor, ruling: Ruling) -> None:
    """Apply a ruling to one row of logits or log-probabilities (V,), in place."""
    if ruling.only is not None:
        scores.fill_(-math.inf)
        scores[list(ruling.only)] = 0
        return
    if ruling.repeated:
        seen = torch.tensor(ruling.repeated, device=scores.device)
        values = scores[seen]
        scores[seen] = torch.where(values < 0, values * ruling.penalty, values / ruling.penalty)
    if ruling.forbidden:
        scores[list(ruling.forbidden)] = -math.inf
