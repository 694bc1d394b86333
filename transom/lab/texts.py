"""Bytes to learn from that every Python carries: its library's code, and the prose of its manual.

One file in ten and one topic in ten are held out. Read next: tiny.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..data.samples import stdlib_files
from ..errors import Refused
from .tiny import Draw

Text = tuple[Tensor, Tensor]
"""What is learned from and what is held out, bytes as (N,) uint8."""
MOST = 4_000_000


@cache
def code() -> Text:
    """Four megabytes of the standard library's sources, in an order drawn once. Raises Refused."""
    files = stdlib_files()[1]
    order = np.random.default_rng(0).permutation(len(files))
    return _parts((files[i].read_bytes() for i in order), MOST)


@cache
def prose() -> Text:
    """The topics of Python's manual, half a megabyte of English. Raises Refused."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise Refused("this Python carries no pydoc_data, whose prose the lab learns from") from None
    return _parts((topics[name].encode() for name in sorted(topics)), MOST)


def _parts(texts: Iterable[bytes], most: int) -> Text:
    learned, held, size = [], [], 0
    for i, text in enumerate(texts):
        (held if i % 10 == 9 else learned).append(text)
        size += len(text)
        if size > most:
            break
    learned, held = (torch.from_numpy(np.frombuffer(b"\n".join(t), np.uint8).copy()) for t in (learned, held))
    return learned, held


def byte_rows(data: Tensor, rows: int, length: int) -> Draw:
    """Windows of bytes (N,) at random places: tokens (B, L) and the bytes after them."""

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(data) - length, (rows, 1), generator=generator)
        windows = data[starts + torch.arange(length + 1)].long()
        return windows[:, :-1], windows[:, 1:]

    return draw


def frequencies(learned: Tensor, held: Tensor) -> float:
    """The loss of who knows how often each byte occurs and nothing else, in nats."""
    counts = torch.bincount(learned.long(), minlength=256).double() + 1
    return float(-(counts / counts.sum()).log()[held.long()].mean())
