"""A small encoder that learns, in a minute, to name at the word *it* the noun that is meant.

Two layers of four heads over whole words, trained on generated pairs whose two nouns never meet in the pairs
that it is asked about later. What it learns is known to be learnable from the sentence alone, so a head that
cannot be found in it is no excuse of too little data. Read next: cat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.losses import IGNORE
from ..model.transformer import Transformer
from .pronouns import ANIMALS, FORMS, OF_ANIMALS, OF_THINGS, THINGS, Item, generated

ROWS, RATE, WARM_UP = 64, 3e-3, 30
PAD = "<pad>"


@dataclass(frozen=True)
class Sentences:
    """A batch of sentences with the answer at the pronoun; what `Transformer.loss` reads."""

    positions: ClassVar[None] = None
    tokens: Tensor
    """(B, L) int64"""
    targets: Tensor
    """(B, L) int64; -100 but at the pronoun."""
    documents: Tensor
    """(B, L): 0 for words, -1 behind them."""


def vocabulary() -> tuple[str, ...]:
    """Every word of the generated sentences, padding first."""
    words = {word for form in FORMS for word in form.split() if "{" not in word}
    return (PAD, *sorted(words | {*ANIMALS, *THINGS, *OF_ANIMALS, *OF_THINGS}))


def train_reader(steps: int, seed: int = 0) -> tuple[Transformer, tuple[str, ...]]:
    """The encoder after `steps` steps of 64 sentences, and its words."""
    words = vocabulary()
    config = ModelConfig(
        vocab_size=len(words), dim=64, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=16, ffn_dim=128,
        max_len=32, kind="encoder", position="learned", pad_id=0,
    )  # fmt: skip
    model = Transformer(config, seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    items = generated(max(ROWS, steps * ROWS // 2), seed, held=0)
    order = np.random.default_rng(seed).permutation(len(items))
    for step in range(steps):
        chosen = order[np.arange(step * ROWS, (step + 1) * ROWS) % len(order)]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM_UP, 1.0, (steps - step) / max(1, steps // 3))
        optimizer.zero_grad()
        loss = model.loss(batch_of([items[i] for i in chosen], words)) / ROWS  # type: ignore[arg-type]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval(), words


def batch_of(items: list[Item], words: tuple[str, ...]) -> Sentences:
    """Items as rows, padded at the end."""
    number = {word: i for i, word in enumerate(words)}
    longest = max(len(item.words) for item in items)
    tokens = torch.zeros(len(items), longest, dtype=torch.int64)
    documents, targets = torch.full_like(tokens, -1), torch.full_like(tokens, IGNORE)
    for row, item in enumerate(items):
        tokens[row, : len(item.words)] = torch.tensor([number[word] for word in item.words])
        documents[row, : len(item.words)] = 0
        targets[row, item.pronoun] = number[item.words[item.nouns[item.right]]]
    return Sentences(tokens, targets, documents)
