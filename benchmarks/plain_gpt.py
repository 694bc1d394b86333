"""The peer: a GPT in plain PyTorch, trained in float32 with AdamW, one function after the other.

The recipe is that of nanoGPT's README for a laptop without a GPU (characters of Tiny Shakespeare, 4 layers,
128 wide, context 64, batch 12, 2,000 steps, no dropout, no biases), written from its description.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """nanoGPT's numbers for the CPU."""

    n_layers: int = 4
    n_heads: int = 4
    dim: int = 128
    context: int = 64
    batch: int = 12
    steps: int = 2000
    lr: float = 1e-3
    least_lr: float = 1e-4
    warmup: int = 100
    beta2: float = 0.99
    weight_decay: float = 0.1
    clip: float = 1.0
    dropout: float = 0.0
    """0.2 in its recipe for characters on a GPU."""


class PlainBlock(nn.Module):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.n_heads, self.dropout = recipe.n_heads, recipe.dropout
        self.norm_1 = nn.LayerNorm(recipe.dim, bias=False)
        self.qkv = nn.Linear(recipe.dim, 3 * recipe.dim, bias=False)
        self.out = nn.Linear(recipe.dim, recipe.dim, bias=False)
        self.norm_2 = nn.LayerNorm(recipe.dim, bias=False)
        self.up = nn.Linear(recipe.dim, 4 * recipe.dim, bias=False)
        self.down = nn.Linear(4 * recipe.dim, recipe.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(*qkv, dropout_p=rate, is_causal=True)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, dim)), rate)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm_2(x)))), rate)


class PlainGPT(nn.Module):
    def __init__(self, vocab_size: int, recipe: Recipe) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, recipe.dim)
        self.places = nn.Embedding(recipe.context, recipe.dim)
        self.blocks = nn.Sequential(*(PlainBlock(recipe) for _ in range(recipe.n_layers)))
        self.norm, self.dropout = nn.LayerNorm(recipe.dim, bias=False), recipe.dropout
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * recipe.n_layers) if deep else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        x = F.dropout(x, self.dropout, self.training)
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)

    @property
    def n_parameters(self) -> int:
        """Without the table of places, as nanoGPT counts."""
        return sum(p.numel() for p in self.parameters()) - self.places.weight.numel()


def train_plainly(
    text: Tensor, vocab_size: int, recipe: Recipe, seed: int
) -> Iterator[tuple[int, float, PlainGPT]]:
    """Train on a row of character ids; after every step give (step, seconds of training, the model)."""
    torch.manual_seed(seed)
    model = PlainGPT(vocab_size, recipe)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, recipe.beta2))
    spent = 0.0
    for step in range(recipe.steps):
        started = time.perf_counter()
        starts = torch.randint(len(text) - recipe.context, (recipe.batch,))
        rows = text[starts[:, None] + torch.arange(recipe.context + 1)]
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, recipe)
        logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        spent += time.perf_counter() - started
        yield step + 1, spent, model


@torch.no_grad()
def held_out_loss(model: PlainGPT, text: Tensor, context: int) -> float:
    """Nats per character over the whole text, in rows of `context` that do not overlap."""
    was_learning = model.training
    model.eval()
    n_rows = (len(text) - 1) // context
    inputs = text[: n_rows * context].view(n_rows, context)
    targets = text[1 : n_rows * context + 1].view(n_rows, context)
    pairs = zip(inputs.split(128), targets.split(128), strict=True)
    total = sum(
        F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item() for x, y in pairs
    )
    model.train(was_learning)
    return total / targets.numel()


def _learning_rate(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / (recipe.warmup + 1)
    done = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return recipe.least_lr + 0.5 * (1 + math.cos(math.pi * done)) * (recipe.lr - recipe.least_lr)
