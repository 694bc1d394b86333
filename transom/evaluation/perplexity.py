"""How well a model predicts a text: perplexity, nats per token, bits per byte, each with its interval.

A text is cut into passages where lines end, the same ones for every model and tokenizer; each has its nats,
its tokens and its bytes, so two models are compared passage by passage, and by the byte where their tokens
differ. A token is read after at least half a window of text, where there is so much. What an encoder has is a
pseudo-perplexity: tokens of every passage hidden in turn, all others in sight (Salazar et al. 2020). Read
next: paired.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.documents import Document, clean_cut
from ..errors import Refused
from ..inference.batching import BUDGET
from ..inference.fill_mask import FillMask
from ..inference.generator import Generator
from ..intervals import Estimate, Rows, bootstrap
from .likelihood import Row, Watch, likelihoods, start_of

WINDOW = 1024
"""Tokens of a window, or what the model reads if that is less."""
LEAST, MOST = 400, 2000
"""Characters of a passage: it ends where the first line after so many does, or at the last word before."""
LINE_END = re.compile(r"\n(?= ?\S)")
DOCUMENTS = 30
"""From so many documents on they are what an interval is taken over: passages of one text are alike."""
HIDDEN = 16
"""Tokens of a passage that an encoder is asked for, evenly spread: each costs a reading of the passage."""
Reader = Generator | FillMask
"""What predicts the tokens of a text."""


@dataclass(frozen=True)
class Passage:
    """A piece of a text."""

    where: str
    """file:line of its document."""
    document: int
    text: str

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode())


@dataclass(frozen=True)
class TextScore:
    """How well a model predicts passages. It prints itself."""

    model: str
    """The folder or name that was given."""
    test: str
    """The text that it was scored on."""
    rows: NDArray[np.float64]
    """(n, 3): nats, tokens and bytes of each passage."""
    documents: NDArray[np.int64]
    """(n,): the document of each."""
    seconds: float
    """What reading took."""
    pseudo: bool = False
    """Whether it is an encoder's."""
    of: str = "passages"
    """What the rows are."""
    unit: str = "token"
    """What a loss is counted by."""

    @property
    def n_tokens(self) -> int:
        """Tokens that were predicted."""
        return int(self.rows[:, 1].sum())

    @property
    def loss(self) -> Estimate:
        """Nats per token."""
        return self._estimate(nats_per_token)

    @property
    def bits_per_byte(self) -> Estimate:
        """Bits per byte of UTF-8, which compares among tokenizers."""
        return self._estimate(bits_per_byte)

    @property
    def perplexity(self) -> Estimate:
        """exp of the nats per token."""
        return self._estimate(token_perplexity)

    def _estimate(self, score: Callable[[Rows], float]) -> Estimate:
        units = by_unit(self.rows, self.documents)
        return bootstrap(units, score, telling=len(units))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": self.model, "test": self.test, "pseudo": self.pseudo, self.of: len(self.rows),
            "tokens": self.n_tokens,
            "bytes": int(self.rows[:, 2].sum()), "perplexity": self.perplexity.to_dict(),
            "loss": self.loss.to_dict(), "bits_per_byte": self.bits_per_byte.to_dict(),
            "seconds": self.seconds, "tokens_per_second": self.n_tokens / max(self.seconds, 1e-9),
        }  # fmt: skip

    def __str__(self) -> str:
        kind = "pseudo-perplexity" if self.pseudo else "perplexity"
        tokens = f"{self.n_tokens:,} {'hidden ' * self.pseudo}{self.unit}s"
        speed = self.n_tokens / max(self.seconds, 1e-9)
        loss, bits, ppl = self.loss, self.bits_per_byte, self.perplexity
        return "\n".join([
            f"{self.model} on {self.test}: {len(self.rows):,} {self.of}, {tokens}, {speed:,.0f} tokens/s",
            f"{kind:<17} {ppl.value:.2f} ({ppl.interval(2)})",
            f"{'nats per ' + self.unit:<17} {loss.value:.4f} ({loss.interval(4)})",
            f"{'bits per byte':<17} {bits.value:.4f} ({bits.interval(4)})",
        ])  # fmt: skip


def nats_per_token(sums: Rows) -> float:
    """From sums (3,) of nats, tokens and bytes."""
    return float(sums[0] / sums[1])


def token_perplexity(sums: Rows) -> float:
    """exp of `nats_per_token`: among how many equally likely tokens it would be as unsure."""
    return math.exp(nats_per_token(sums))


def bits_per_byte(sums: Rows) -> float:
    """From sums (3,) of nats, tokens and bytes; independent of the tokens that a model cuts a text into."""
    return float(sums[0] / sums[2] / math.log(2))


def by_unit(rows: Rows, documents: NDArray[np.int64]) -> Rows:
    """Sums (units, F) of what an interval is taken over: documents where they are many, else passages."""
    n = int(documents.max()) + 1
    if n < DOCUMENTS:
        return rows
    return np.stack([np.bincount(documents, column, n) for column in rows.T], axis=1)


def passages(documents: Iterable[Document], most: int | None = None) -> list[Passage]:
    """Cut texts into passages; most: about so many characters, of stretches that are spread evenly.

    Raises Refused where there is no text.
    """
    found = [
        Passage(document.place, number, piece)
        for number, document in enumerate(documents)
        for piece in _cut(document.text())
    ]
    if not found:
        raise Refused("the test text is empty; name a file with text by --test")
    return found if most is None else _spread(found, most)


def _cut(text: str) -> Iterator[str]:
    """Pieces of LEAST to MOST characters that join to the text."""
    start = 0
    while start < len(text):
        line = LINE_END.search(text, start + LEAST, start + MOST)
        end = line.end() if line else clean_cut(text, start + MOST, start) if len(text) > start + MOST else 0
        end = end or start + MOST
        end = len(text) if end + LEAST > len(text) else end
        yield text[start:end]
        start = end


def _spread(found: list[Passage], most: int) -> list[Passage]:
    """Runs of passages, evenly spread over all, of about `most` characters together.

    Each run is a document of its own: it is read without what stands before it.
    """
    total = sum(len(passage.text) for passage in found)
    if total <= most:
        return found
    run = 8
    runs = [found[start : start + run] for start in range(0, len(found), run)]
    kept = max(1, round(len(runs) * most / total))
    chosen = [runs[i * len(runs) // kept] for i in range(kept)]
    return [Passage(p.where, number, p.text) for number, some in enumerate(chosen) for p in some]


def score_text(
    loaded: Reader, found: Sequence[Passage], *, model: str = "the model", test: str = "the text",
    watch: Watch | None = None,
) -> TextScore:  # fmt: skip
    """Score a model that predicts tokens, from the left or hidden ones, on passages. Raises Refused."""
    started = time.perf_counter()
    pieces = loaded.tokenizer.encode_arrays([passage.text for passage in found])
    documents = np.array([passage.document for passage in found])
    n_bytes = np.array([float(passage.n_bytes) for passage in found])
    if isinstance(loaded, FillMask):
        nats = _hidden_in_turn(loaded, [piece.tolist() for piece in pieces], watch)
        n_bytes *= [len(some) / max(1, len(piece)) for some, piece in zip(nats, pieces, strict=True)]
    else:
        nats = _from_the_left(loaded, pieces, documents, watch)
    rows = np.stack([[some.sum() for some in nats], [float(len(some)) for some in nats], n_bytes], axis=1)
    seconds = time.perf_counter() - started
    return TextScore(model, test, rows, documents, seconds, isinstance(loaded, FillMask))


def _from_the_left(
    loaded: Generator, pieces: Sequence[Any], documents: NDArray[np.int64], watch: Watch | None
) -> list[NDArray[np.float64]]:
    """Nats of each token of each passage, (n,) each; the passages of a document are read as one text."""
    start = start_of(loaded.tokenizer)
    rows: list[Row] = []
    lengths: list[list[int]] = []
    for number in range(int(documents.max()) + 1):
        own = [pieces[i] for i in np.flatnonzero(documents == number).tolist()]
        lengths.append([len(piece) for piece in own])
        ids = [*start, *np.concatenate(own).tolist()]
        rows += _windows(ids, len(start), min(WINDOW, loaded.model.config.max_len))
    judged = likelihoods(loaded.model, rows, watch)
    nats = -np.concatenate([one.logprobs for one in judged])
    found, place = [], 0
    for own in lengths:
        missing = 0 if start else 1  # nothing stands before the first token: it is given, not predicted
        for length in own:
            taken = max(0, length - missing)
            missing = max(0, missing - length)
            found.append(nats[place : place + taken])
            place += taken
    return found


def _windows(ids: list[int], given: int, length: int) -> Iterator[Row]:
    """Rows that judge every token of `ids` but the first once, each after half a window or all before it."""
    n = len(ids) - max(1, given)
    if n <= 0:
        return
    first = min(len(ids), length + 1)
    yield Row(ids[:first], first - max(1, given))
    half = max(1, length // 2)
    for end in range(first + half, len(ids) + half, half):
        stop = min(end, len(ids))
        yield Row(ids[stop - length - 1 : stop], stop - (end - half))


@torch.inference_mode()
def _hidden_in_turn(
    loaded: FillMask, pieces: Sequence[list[int]], watch: Watch | None
) -> list[NDArray[np.float64]]:
    """Nats of some tokens of each passage, each hidden alone; a passage is read by itself, in as many parts
    as the model needs.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    assert tokenizer.mask_id is not None  # FillMask sees to it
    before, after = (torch.tensor(ids, dtype=torch.int64) for ids in tokenizer.frame)
    room, found, done = model.config.max_len - len(before) - len(after), [], 0
    total = sum(map(len, pieces))
    for piece in pieces:
        nats = [np.zeros(0)]
        asked = (
            {i * len(piece) // HIDDEN for i in range(HIDDEN)}
            if len(piece) > HIDDEN
            else set(range(len(piece)))
        )
        for start in range(0, len(piece), room):
            row = torch.cat([before, torch.tensor(piece[start : start + room]), after])
            inside = sorted(place for place in asked if start <= place < start + room)
            places = torch.tensor(inside, dtype=torch.int64) - start + len(before)
            for some in places.split(max(1, BUDGET // len(row))):
                lines = torch.arange(len(some))
                read = row.repeat(len(some), 1)
                read[lines, some] = tokenizer.mask_id
                hidden = model(read.to(model.embed.weight.device))[lines, some]
                logs = model.logits(hidden).log_softmax(-1).cpu()
                nats.append(-logs[lines, row[some]].double().numpy())
        found.append(np.concatenate(nats))
        done += len(piece)
        if watch is not None:
            watch(done, total)
    return found


def reader(loaded: Any, name: object) -> Reader:
    """Return a model that predicts tokens of a text. Raises Refused for another kind."""
    if isinstance(loaded, Generator | FillMask):
        return loaded
    raise Refused(f"{name} holds a {type(loaded).__name__}, which predicts no text; it is scored on examples")
