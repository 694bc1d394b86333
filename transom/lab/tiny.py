"""Tiny models of several seeds, trained as one program: weights stacked, one optimizer for all.

A seed decides first weights and data, so that the same seed of two arms is a pair. Attention goes through
`torch.func.vmap` while a step is small, where one large product is faster than several small ones; longer
steps, and recurrences, whose fused kernels have no batching rule, take the seeds one after the other.
Steps are fixed, never time: what is learned does not depend on the machine. Read next: claim.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..model.build import build
from ..model.config import ModelConfig
from ..model.initialize import SMALL
from ..model.layers import Table
from ..model.losses import IGNORE
from ..model.recurrent import RecurrentLayer

AT_ONCE = 700
"""Tokens of a seed in a step up to which vmap pays: measured width 32, three seeds, 128 tokens 11 ms against
16, 512 tokens 22 against 25, 1,024 tokens 31 against 26."""
EMBEDDING = 0.5
"""The deviation of first embeddings."""
WARM_UP, COOL_DOWN = 0.05, 0.3
"""Shares of the steps over which the learning rate rises, and falls to nothing."""


@dataclass(frozen=True)
class Rows:
    """Rows of every seed."""

    tokens: Tensor
    """(S, B, L) int64, or (S, B, L, F)."""
    targets: Tensor
    """(S, B, L) int64; -100 where nothing is asked."""


Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]
"""Tokens (B, L) and targets (B, L) of one seed, from its generator."""


class Summed(Table):
    """A table of which each position takes the sum of the rows that it names: (B, L, F) -> (B, L, D)."""

    def forward(self, input: Tensor) -> Tensor:
        rows = super().forward(input)
        return rows if input.dim() < 3 else rows.sum(-2)


class Net(nn.Module):
    """A member of the family with its logits: tokens (B, L) -> (B, L, V), or (B, L, F) where a position is
    the sum of F embeddings, so that what is known of a thing stands in one place with it.
    """

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        self.model = build(config, seed)
        summed = Summed(config.vocab_size, config.dim)
        summed.weight = self.model.embed.weight
        self.model.embed = summed
        if config.cell is None:  # few steps are too few to grow embeddings out of almost nothing
            with torch.no_grad():
                for table in (summed, getattr(self.model, "position_embed", None)):
                    if table is not None:
                        table.weight.mul_(EMBEDDING / SMALL)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.logits(self.model(tokens))


class Seeds:
    """Nets of one shape, a seed each, as one: (S, B, L) tokens -> (S, B, L, V) logits."""

    def __init__(self, make: Callable[[int], nn.Module], seeds: Sequence[int]) -> None:
        nets = [make(seed).train() for seed in seeds]
        self.seeds = tuple(seeds)
        self.weights, self.buffers = stack_module_state(nets)
        self._first = nets[0]
        self._shape = copy.deepcopy(nets[0]).to("meta")
        self._batched = not any(isinstance(part, RecurrentLayer) for part in nets[0].modules())

    def __call__(self, tokens: Tensor) -> Tensor:
        if self._batched and tokens.shape[1] * tokens.shape[2] <= AT_ONCE:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no batching rule
                return vmap(self._one)(self.weights, self.buffers, tokens)
        return torch.stack([self._one(*self._of(i), tokens[i]) for i in range(len(self.seeds))])

    def _one(self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        return functional_call(self._shape, (dict(weights), dict(buffers)), (tokens,))

    def _of(self, i: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return {n: w[i] for n, w in self.weights.items()}, {n: b[i] for n, b in self.buffers.items()}

    def nets(self) -> Iterator[Any]:
        """Each seed's net by itself, ready to be asked."""
        for i in range(len(self.seeds)):
            net = copy.deepcopy(self._first)
            net.load_state_dict({name: weight.detach().clone() for name, weight in self._of(i)[0].items()},
                                strict=False)  # fmt: skip
            yield net.eval()

    def train(
        self, draw: Draw | Sequence[Draw], steps: int, rate: float, *, salt: int = 0, decay: float = 0.01,
        cool_down: float = COOL_DOWN,
        after: Callable[[int], None] = lambda _: None,
    ) -> list[list[float]]:  # fmt: skip
        """Learn for so many steps, each on new rows of `draw`, or of each seed's own; losses (S, steps).

        rate: the highest learning rate, which falls over the last share `cool_down`. salt: other data.
        after: called with each step done.
        """
        weights = list(self.weights.values())
        optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=decay, betas=(0.9, 0.98), foreach=True)
        generators = [torch.Generator().manual_seed(1000 * salt + seed) for seed in self.seeds]
        draws = draw if isinstance(draw, Sequence) else [draw] * len(self.seeds)
        kept = torch.empty(len(self.seeds), steps)
        for step in range(steps):
            for group in optimizer.param_groups:
                rising, falling = (step + 1) / (WARM_UP * steps + 1), (steps - step) / (cool_down * steps + 1)
                group["lr"] = rate * min(1.0, rising, falling)
            drawn = [of(generator) for of, generator in zip(draws, generators, strict=True)]
            tokens, targets = (torch.stack(part) for part in zip(*drawn, strict=True))
            optimizer.zero_grad()
            losses = mean_losses(self(tokens), targets)
            losses.sum().backward()
            clip_each(weights)
            optimizer.step()
            kept[:, step] = losses.detach()
            after(step + 1)
        return kept.tolist()

    @torch.no_grad()
    def ask(self, rows: Rows) -> Tensor:
        """Logits at what is asked, (S, B, V): of each row its last target."""
        at = (rows.targets != IGNORE).long().cumsum(-1).argmax(-1)
        logits = self(rows.tokens)
        return logits.gather(2, at[..., None, None].expand(-1, -1, 1, logits.shape[-1]))[:, :, 0]

    @torch.no_grad()
    def right(self, rows: Rows) -> Tensor:
        """Whether the likeliest token is the target, (S, N) over all that is asked, in order."""
        asked = rows.targets != IGNORE
        hits = self(rows.tokens).argmax(-1) == rows.targets
        return torch.stack([hits[i][asked[i]] for i in range(len(self.seeds))]).float()

    @torch.no_grad()
    def loss(self, rows: Rows) -> list[float]:
        """The mean -log p of what is asked, of each seed."""
        return mean_losses(self(rows.tokens), rows.targets).tolist()


def mean_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean -log p of the targets of each seed: (S, B, L, V) and (S, B, L) -> (S,)."""
    asked = targets != IGNORE
    each = F.cross_entropy(logits[asked], targets[asked], reduction="none")
    of_seed = asked.flatten(1).sum(1)
    owner = torch.repeat_interleave(torch.arange(len(targets)), of_seed)
    return torch.zeros(len(targets)).index_add(0, owner, each) / of_seed


def clip_each(weights: Sequence[Tensor], most: float = 1.0) -> None:
    """Scale the gradient of each seed down to norm `most`, in place; weights have the seed first."""
    grads = [weight.grad for weight in weights if weight.grad is not None]
    norms = torch.stack([grad.reshape(len(grad), -1).square().sum(1) for grad in grads]).sum(0).sqrt()
    factor = (most / (norms + 1e-6)).clamp(max=1.0)
    for grad in grads:
        grad.mul_(factor.view(-1, *[1] * (grad.dim() - 1)))


def rows_of(draw: Draw, seeds: Sequence[int], salt: int) -> Rows:
    """Rows to be asked, of every seed, that no training drew: another salt is another stream."""
    drawn = [draw(torch.Generator().manual_seed(1000 * salt + seed)) for seed in seeds]
    return Rows(*(torch.stack(part) for part in zip(*drawn, strict=True)))


def thinned(curve: Sequence[float], most: int = 30) -> list[float]:
    """A curve as means of its stretches."""
    return [float(part.mean()) for part in np.array_split(np.asarray(curve), min(most, len(curve)))]


def shape(vocabulary: int, length: int, **changes: Any) -> ModelConfig:
    """The config that every claim begins with: width 32, two layers of two heads."""
    base = dict(vocab_size=vocabulary, dim=32, n_layers=2, n_heads=2, ffn_dim=64, max_len=length,
                tie_embeddings=False)  # fmt: skip
    made = {**base, **changes}
    made.setdefault("n_kv_heads", made["n_heads"])
    made.setdefault("head_dim", made["dim"] // made["n_heads"])
    return ModelConfig(**made)
