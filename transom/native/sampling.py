"""From rows of logits to tokens by the kernels: the next of each, and the likeliest.

The twin that says what each setting means is inference/sampling.py; these give its tokens, but for the last
bits of a probability. Read next: src/sampling.h.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .abi import Draw
from .library import SWITCH, Library, Unavailable, best


def kernels_for(logits: Tensor) -> Library | None:
    """Return the kernels if there are some here and they read these logits (N, V) as they lie."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or logits.stride(-1) != 1:
        return None
    return _kernels(os.environ.get(SWITCH, ""))


@functools.cache
def _kernels(asked: str) -> Library | None:
    """The best by what SWITCH says, looked for once: a step has no time to look at files."""
    try:
        return best()
    except Unavailable:
        return None


def choose(library: Library, logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Return the next token of each row of logits (N, V) float32; -1 where its largest is not finite, or one
    of them is no number. Raises MemoryError.
    """
    n, vocab = logits.shape
    tokens = torch.empty(n, dtype=torch.int32)
    failed = library.functions.transom_choose(
        logits.data_ptr(), logits.stride(0), n, vocab, (Draw * n)(*draws), tokens.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("not enough memory to choose tokens")
    return tokens.tolist()


def likeliest(library: Library, logits: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what of logits (N, V) float32 a log-probability needs: the logarithm of each row's sum of e^x
    (N,) float64, its n largest and their tokens (N, n), the largest first. Raises MemoryError.
    """
    rows, vocab = logits.shape
    normalizers = torch.empty(rows, dtype=torch.float64)
    tokens, values = torch.empty(rows, n, dtype=torch.int32), torch.empty(rows, n)
    failed = library.functions.transom_likeliest(
        logits.data_ptr(), logits.stride(0), rows, vocab, n, normalizers.data_ptr(), tokens.data_ptr(),
        values.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError("not enough memory to rank tokens")
    return normalizers, values, tokens.long()
