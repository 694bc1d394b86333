"""Texts as batches, for models that read them whole: checked, framed, sorted by length, cut by a budget.

Padding is told by `documents` and never by an id, and a batch whose texts are equally long has none: then
attention needs no mask. Results belong to the places that the texts had. Read next: embedder, translator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from transom.data.lines import split_lines
from transom.data.textfile import not_text
from transom.data.tokenizer import Ids, Tokenizer
from transom.errors import Refused
from transom.units import counted

BUDGET = 2048
"""Tokens of a batch, padding included. Measured with MiniLM on one core (torch 2.13, 2026-11-24): texts/s of
1,000 captions in bfloat16 are within 5% from 1,024 to 8,192; float32 loses 14% at 8,192."""
MOST_ROWS = 256


class TextBatch(NamedTuple):
    """Texts of about one length."""

    places: list[int]
    """Where these texts stood among all."""
    tokens: Tensor
    """(B, L) int64."""
    documents: Tensor | None
    """(B, L) int32: 0 for text, -1 for padding; None: all are equally long."""


def together(lengths: Sequence[int], most: int) -> Iterator[slice]:
    """Which of texts that follow each other are read in one step: at most `most` tokens, or one text."""
    at = 0
    while at < len(lengths):
        fitting = takewhile(lambda end: end <= most, accumulate(islice(lengths, at, None)))
        end = at + max(1, sum(1 for _ in fitting))
        yield slice(at, end)
        at = end


def as_list(texts: Any, what: str = "text") -> tuple[list[str], bool]:
    """One text or several, as a list, and whether several were given. Raises Refused for anything else."""
    if isinstance(texts, str):
        return [texts], False
    if not isinstance(texts, Sequence) or isinstance(texts, bytes):
        raise Refused(f"a {what} is a {type(texts).__name__}; give a string or a list of strings")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refused(f"{what} {place} is a {type(text).__name__}; give a string or a list of strings")
    return list(texts), True


def lines_of(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the lines of texts that hold any letters, and what to call each: which text, which line."""
    lines, names = [], []
    for place, text in enumerate(texts):
        own = split_lines(text)
        for number, line in enumerate(own, start=1):
            if line.strip():
                lines.append(line)
                names.append(_name(place, texts) + (f", line {number}," if len(own) > 1 else ""))
    return lines, names


def framed(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_len: int,
    *,
    cut: bool = False,
    blank: bool = False,
    names: Sequence[str] | None = None,
) -> list[Ids]:
    """Return the ids of texts as the folder frames them; text that spells a control token stays text.

    Raises Refused, by number (or by `names`), for a blank text (unless `blank`: then the frame is enough),
    for what is no text, for what makes no token, and for one of more than `max_len` tokens; with `cut`,
    tokens that are too many are left out before the frame's end.
    """
    names = [_name(place, texts) for place in range(len(texts))] if names is None else names
    for name, text in zip(names, texts, strict=True):
        if not (blank or text.strip()):
            raise Refused(f"{name} is empty; leave it out")
        if (says := not_text(text)) is not None:
            raise Refused(f"{name}: {says}")
    found, around = tokenizer.framed_many(texts), sum(map(len, tokenizer.frame))
    after = len(tokenizer.frame[1])
    if max_len <= around:
        raise Refused(f"of {max_len} tokens nothing is left for a text: {around} stand around it")
    for place, ids in enumerate(found):
        if not len(ids):
            raise Refused(f"{names[place]} makes no token in this model; leave it out")
        if len(ids) > max_len:
            if not cut:
                raise Refused(
                    f"{names[place]} has {len(ids)} tokens; this model reads at most {max_len}:"
                    f" shorten it by {counted(len(ids) - max_len, 'token')} or split it"
                )
            found[place] = np.concatenate([ids[: max_len - after], ids[len(ids) - after :]])
    return found


def _name(place: int, texts: Sequence[str]) -> str:
    return "the text" if len(texts) == 1 else f"text {place} (counted from 0)"


def batches(
    ids: Sequence[Ids], device: torch.device, *, budget: int = BUDGET, rows: int = MOST_ROWS
) -> Iterator[TextBatch]:
    """Batches of at most `budget` tokens and `rows` texts, the longest first.

    A batch that is half full ends where the length changes, so that most batches need no padding.
    """
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    batch: list[int] = []
    for place in order:
        if batch:
            longest, length = len(ids[batch[0]]), len(ids[place])
            full = len(batch) == rows or (len(batch) + 1) * longest > budget
            if full or (length != len(ids[batch[-1]]) and 2 * len(batch) * longest >= budget):
                yield _batch(batch, ids, device)
                batch = []
        batch.append(place)
    if batch:
        yield _batch(batch, ids, device)


def _batch(places: list[int], ids: Sequence[Ids], device: torch.device) -> TextBatch:
    lengths = [len(ids[place]) for place in places]
    tokens = np.zeros((len(places), max(lengths)), dtype=np.int64)
    for row, place in enumerate(places):
        tokens[row, : lengths[row]] = ids[place]
    documents = None
    if min(lengths) < max(lengths):
        padding = np.arange(max(lengths)) >= np.array(lengths)[:, None]
        documents = torch.from_numpy(-padding.astype(np.int32)).to(device)
    return TextBatch(places, torch.from_numpy(tokens).to(device), documents)
