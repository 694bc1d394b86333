"""The next token of every row of a batch, each row with its own settings.

The one idea: what differs from row to row is small. Penalties, rules, bias and grammar touch a few logits of
one row; then rows with equal temperature and filters are chosen from together. A row's token is a pure
function of its logits, settings, history, seed and step, so a drafted token is right exactly when it is the
token that would have been chosen in its place (`Place.drafted`). Read next: speculative, structured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from transom.errors import Refused
from transom.native import sampling as by_kernels
from transom.native.abi import Draw
from transom.sampling_params import SamplingParams

from .sampling import choose, top_logprobs, uniform
from .token_rules import Ruling, obey

FAILED = -1
"""In place of a token: the row's logits are not finite, or nothing in them is allowed."""


class Constraint(Protocol):
    """What may come next by a grammar (structured.Matcher)."""

    def mask(self, vocab_size: int) -> Tensor: ...
    def accept(self, token: int) -> bool: ...
    def copy(self) -> Constraint: ...


class SamplingRow:
    """How one row chooses its next token, and what it has chosen so far."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        seed: int,
        sample: int = 0,
        prompt: Sequence[int] = (),
        first: frozenset[int] | None = None,
        grammar: Constraint | None = None,
        ruling: Callable[[Sequence[int], int], Ruling | None] | None = None,
    ) -> None:
        """`first`: the tokens that may come first (None: any), unless a grammar says what may. ruling: what
        the folder's rules say after the prompt and what was made, given both and the number made.

        Raises Refused for a bias on a token that is not in the vocabulary.
        """
        self.params, self.seed, self.sample = params, seed, sample
        self.first, self.grammar = first if grammar is None else None, grammar
        self.n_made = 0
        self._ruling, self._tokens = ruling, [] if ruling is None else list(prompt)
        bias = dict(params.logit_bias)
        if bias and max(bias) >= vocab_size:
            raise Refused(
                f"logit_bias names token {max(bias)}; this model's tokens are 0 to {vocab_size - 1}"
            )
        self.bias_ids = torch.tensor(list(bias), dtype=torch.int64)
        self.bias = torch.tensor(list(bias.values()), dtype=torch.float32)
        self._penalized = (
            params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        )
        self._history = _History(prompt) if self._penalized else None

    def push(self, token: int) -> None:
        """Take the token that was chosen; the grammar, if there is one, moves on too."""
        self.n_made += 1
        if self._ruling is not None:
            self._tokens.append(token)
        if self._history is not None:
            self._history.push(token)
        if self.grammar is not None:
            self.grammar.accept(token)

    @property
    def filters(self) -> tuple[float | None, ...]:
        """Rows in which these are equal are chosen from together."""
        p = self.params
        return () if p.greedy else (p.temperature, p.top_k, p.top_p, p.min_p)

    def changes(self, drafted: Sequence[int]) -> bool:
        """Return whether any logit of this row is touched before temperature and filters."""
        opening = self.first is not None and self.n_made + len(drafted) == 0
        ruled = self._ruling is not None or self.grammar is not None
        return self._penalized or len(self.bias) > 0 or ruled or opening

    def adjust(self, logits: Tensor, drafted: Sequence[int]) -> None:
        """Apply penalties, rules, bias, first token and grammar to logits (V,), as if `drafted` had been
        made.
        """
        device = logits.device
        if self._history is not None:
            ids, counts = (x.to(device) for x in self._history.after(drafted))
            values, penalty = logits[ids], self.params.repetition_penalty
            if penalty != 1:  # Keskar et al. 2019
                values = torch.where(values < 0, values * penalty, values / penalty)
            values -= self.params.frequency_penalty * counts + self.params.presence_penalty * (counts > 0)
            logits[ids] = values
        if self._ruling is not None:
            ruling = self._ruling([*self._tokens, *drafted], self.n_made + len(drafted))
            obey(logits, ruling or Ruling())
        if len(self.bias):
            logits[self.bias_ids.to(device)] += self.bias.to(device)
        if self.first is not None and self.n_made + len(drafted) == 0:
            allowed = torch.zeros(logits.shape, dtype=torch.bool, device=device)
            allowed[torch.tensor(sorted(self.first), device=device)] = True
            logits.masked_fill_(~allowed, -math.inf)
        allowed = self._allowed(drafted, len(logits))
        if allowed is not None:
            logits.masked_fill_(~allowed.to(device), -math.inf)

    def _allowed(self, drafted: Sequence[int], vocab_size: int) -> Tensor | None:
        if self.grammar is None:
            return None
        matcher = self.grammar.copy() if drafted else self.grammar
        # A draft the grammar forbids is turned down at its own place; what would follow it is never used.
        return matcher.mask(vocab_size) if all(map(matcher.accept, drafted)) else None


class Place(NamedTuple):
    """A row of logits: after everything the row has made and, of a draft, these tokens."""

    row: SamplingRow
    drafted: tuple[int, ...] = ()


@torch.inference_mode()
def choose_rows(logits: Tensor, places: Sequence[SamplingRow | Place]) -> list[int]:
    """Return the next token at each place: logits (N, V) float32, N places -> N token ids.

    FAILED where a row's logits hold NaN or infinity, or nothing in them is allowed; other rows are as ever.
    """
    at = [place if isinstance(place, Place) else Place(place) for place in places]
    changed = [i for i, (row, drafted) in enumerate(at) if row.changes(drafted)]
    if changed:
        logits = logits.clone()
        for i in changed:
            at[i].row.adjust(logits[i], at[i].drafted)
    if (kernels := by_kernels.kernels_for(logits)) is not None:
        return by_kernels.choose(kernels, logits, [_draw(place) for place in at])
    largest, likeliest = logits.max(dim=-1)
    finite = largest.isfinite()  # the largest of a row with NaN is NaN
    tokens = torch.full((len(at),), FAILED, dtype=torch.int64, device=logits.device)
    groups: dict[tuple[float | None, ...], list[int]] = {}
    for i, fine in enumerate(finite.tolist()):
        if fine:
            groups.setdefault(at[i].row.filters, []).append(i)
    for members in groups.values():
        whole = len(members) == len(at)
        index = torch.tensor(members, device=logits.device)
        params = at[members[0]].row.params
        if params.greedy:
            tokens[index] = likeliest[index]
            continue
        uniforms = torch.tensor([_uniform(at[i]) for i in members], dtype=torch.float64, device=logits.device)
        tokens[index] = choose(logits if whole else logits[index], params, uniforms)
    return tokens.tolist()


def _draw(place: Place) -> Draw:
    p = place.row.params
    if p.greedy:
        return Draw(0, 1, 0, 0, 0)
    return Draw(_uniform(place), p.top_p, p.temperature, p.min_p, p.top_k or 0)


def _uniform(place: Place) -> float:
    return uniform(place.row.seed, place.row.sample, place.row.n_made + len(place.drafted))


class RowLogprobs(NamedTuple):
    """A token's natural log-probability by the model alone, and the likeliest tokens with theirs."""

    logprob: float
    top: list[tuple[int, float]]


@torch.inference_mode()
def logprobs_rows(
    logits: Tensor, tokens: Sequence[int], wanted: Sequence[int | None]
) -> list[RowLogprobs | None]:
    """Log-probabilities of N tokens under raw logits (N, V), each with the `wanted` likeliest; None: none."""
    asked = [i for i, n in enumerate(wanted) if n is not None and tokens[i] != FAILED]
    found: list[RowLogprobs | None] = [None] * len(tokens)
    if not asked:
        return found
    if len(asked) < len(tokens):
        logits = logits[torch.tensor(asked, device=logits.device)]
    picked = torch.tensor([tokens[i] for i in asked], device=logits.device)
    most = max(wanted[i] or 0 for i in asked)
    chosen, values, ids = (x.tolist() for x in top_logprobs(logits, picked, most))
    for row, i in enumerate(asked):
        n = wanted[i] or 0
        found[i] = RowLogprobs(chosen[row], list(zip(ids[row][:n], values[row][:n], strict=True)))
    return found


class _History:
    """The different tokens of a prompt and its answer, and how often each is in the answer: O(1) to add."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._place = {token: i for i, token in enumerate(dict.fromkeys(prompt))}
        self._ids = np.fromiter(self._place, dtype=np.int64, count=len(self._place))
        self._counts = np.zeros(len(self._ids), dtype=np.float32)

    def push(self, token: int) -> None:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            spare = max(64, place)
            self._ids = np.concatenate((self._ids, np.zeros(spare, dtype=np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(spare, dtype=np.float32)))
        self._ids[place] = token
        self._counts[place] += 1

    def after(self, drafted: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids and counts, `drafted` included."""
        n = len(self._place)
        ids, counts = self._ids[:n].copy(), self._counts[:n].copy()
        fresh: dict[int, int] = {}
        for token in drafted:
            if token in self._place:
                counts[self._place[token]] += 1
            else:
                fresh[token] = fresh.get(token, 0) + 1
        ids = np.concatenate((ids, np.array(list(fresh), dtype=np.int64)))
        counts = np.concatenate((counts, np.array(list(fresh.values()), dtype=np.float32)))
        return torch.from_numpy(ids), torch.from_numpy(counts)
