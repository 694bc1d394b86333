"""How likely a model finds tokens that are given: what perplexity, loss and multiple choice are made of.

Every row is read once, rows of about one length together, and only the places that are asked for meet the
vocabulary. Rows that differ in their last token alone are one: an answer of one token costs nothing beside
the others of its question. Read next: perplexity, harness.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data.tokenizer import Tokenizer
from ..inference.batching import TextBatch, batches
from ..model.build import Model

RUN_BYTES = 16 << 20
"""Logits that are held at once."""
Watch = Callable[[int, int], None]
"""Is told how many tokens of how many are read."""


class Progress:
    """A `Watch` that tells a person how far a long reading has come, with the time that is left."""

    EVERY = 5.0
    """Seconds between two lines."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.begun = out, time.monotonic()
        self._next = self.begun + self.EVERY

    def __call__(self, done: int, total: int) -> None:
        """Tell it, if the last line is old enough."""
        now = time.monotonic()
        if done == total:
            self.begun = now
        if now >= self._next and 0 < done < total:
            self._next, rate = now + self.EVERY, done / (now - self.begun)
            left = (total - done) / rate
            print(
                f"read {done:,} of {total:,} tokens, {rate:,.0f} a second, {left:,.0f} s left", file=self.out
            )


class Row(NamedTuple):
    """Tokens, of which the last ones are to be judged."""

    tokens: Sequence[int]
    judged: int
    source: Sequence[int] = ()
    """What an encoder-decoder reads."""


@dataclass(frozen=True)
class Likelihood:
    """What a model gave the tokens (n,) of a row that were to be judged, each after all before it."""

    logprobs: NDArray[np.float64]
    """(n,), in nats."""
    likeliest: NDArray[np.bool_]
    """(n,): whether the token is the model's own first choice there."""

    @property
    def nats(self) -> float:
        """-log p of all of them together."""
        return -float(self.logprobs.sum())


@torch.inference_mode()
def likelihoods(model: Model, rows: Sequence[Row], watch: Watch | None = None) -> list[Likelihood]:
    """Judge the last tokens of rows by the plain forward pass of a model that predicts tokens from the left.

    Of an encoder-decoder every row has its source. Raises ValueError for a row longer than the model reads.
    """
    found: dict[int, Likelihood] = {}
    order = sorted(range(len(rows)), key=lambda place: _read(rows[place]))
    alike = [list(places) for _, places in groupby(order, key=lambda place: _read(rows[place]))]
    inputs = [np.asarray(rows[places[0]].tokens[:-1], np.uint32) for places in alike]
    done, total = 0, sum(map(len, inputs))
    for batch in batches(inputs, model.embed.weight.device):
        hidden = _hidden(model, batch, [rows[alike[group][0]].source for group in batch.places])
        asked = [(place, line) for line, group in enumerate(batch.places) for place in alike[group]]
        found |= zip((place for place, _ in asked), _judged(model, hidden, rows, asked), strict=True)
        done += sum(len(inputs[group]) for group in batch.places)
        if watch is not None:
            watch(done, total)
    return [found[place] for place in range(len(rows))]


def start_of(tokenizer: Tokenizer) -> list[int]:
    """Give what stands before the first token of a text: what the folder puts there, else its end token, as
    in training, else its begin token; nothing where it has neither.
    """
    ids = [token for token in (tokenizer.eos_id, tokenizer.bos_id) if token is not None]
    return list(tokenizer.frame[0]) or ids[:1]


def _read(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the model reads for a row."""
    return tuple(row.source), tuple(row.tokens[:-1])


def _hidden(model: Model, batch: TextBatch, sources: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states (B, L, D); padding stands behind the text, where no token looks."""
    if model.config.kind != "encoder-decoder":
        return model(batch.tokens)
    lengths = [len(source) for source in sources]
    read = torch.zeros(len(sources), max(lengths), dtype=torch.int64)
    for line, source in enumerate(sources):
        read[line, : len(source)] = torch.tensor(source)
    documents = -(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]).int()
    device = batch.tokens.device
    return model(batch.tokens, memory=model.encode(read.to(device), documents=documents.to(device)))


def _judged(
    model: Model, hidden: Tensor, rows: Sequence[Row], asked: Sequence[tuple[int, int]]
) -> Iterator[Likelihood]:
    """Judge rows by the hidden states (B, L, D) of the lines of a batch: (number of a row, its line)."""
    lines, places, wanted = [], [], []
    for place, line in asked:
        tokens, judged = rows[place].tokens, rows[place].judged
        lines += [line] * judged
        places += range(len(tokens) - 1 - judged, len(tokens) - 1)
        wanted += tokens[len(tokens) - judged :]
    chosen, targets = hidden[lines, places], torch.tensor(wanted, device=hidden.device)
    at_once = max(1, RUN_BYTES // (4 * model.config.vocab_size))
    logprobs, likeliest = [], []
    for some, token in zip(chosen.split(at_once), targets.split(at_once), strict=True):
        logits = model.logits(some)
        # As other harnesses take it, to the digit: logsumexp would be nearer to the truth, by 5e-6.
        logprobs.append(logits.log_softmax(-1).gather(1, token[:, None])[:, 0].double().cpu())
        likeliest.append((logits.argmax(-1) == token).cpu())
    values, hits = torch.cat(logprobs).numpy(), torch.cat(likeliest).numpy()
    start = 0
    for place, _ in asked:
        end = start + rows[place].judged
        yield Likelihood(values[start:end], hits[start:end])
        start = end
