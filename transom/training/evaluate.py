"""How good the model is on text it never learned from, and what that number means.

A fixed set of held-out windows, evenly spread and bounded in cost, is scored along the way; all of them at
the end where that is cheap. The result stands beside what a table would reach: uniform (knows nothing),
unigram (knows how frequent each token is), bigram (knows which token follows which). Every other batch also
chooses whose weights are kept; what the chosen ones are worth, the rest says, which had no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..data.batches import Rows
from ..data.examples import Order
from ..data.masking import Masking
from ..data.order import Windows
from . import preference_score
from .parallelism import World

LEAST_BATCHES = 8
"""Of little text, smaller batches: half of them choose and half report."""


@dataclass(frozen=True)
class Score:
    """A held-out result."""

    loss: float
    """Nats per token."""
    n_targets: int
    """Tokens scored."""
    bits_per_byte: float | None
    choosing: float = math.nan
    """Nats per token on every other batch, by which the best weights are chosen."""
    reporting: Score | None = None
    """The batches between those; None where there is one batch alone, and nothing can be chosen."""
    sums: dict[str, float] = field(default_factory=dict)
    """What the objective measures besides, summed over the targets."""

    @classmethod
    def of(
        cls, measures: Sequence[str], total: float, n_targets: float, n_bytes: float, *sums: float
    ) -> Score:
        """Make it of the sum of nats over so many targets, which write so many bytes."""
        bits = total / math.log(2) / n_bytes if n_bytes else None
        named = dict(zip(measures, sums, strict=True))
        return cls(total / max(1, n_targets), int(n_targets), bits, sums=named)

    @property
    def says(self) -> str:
        """What was measured besides, in words, behind what is said of the loss."""
        return f"; {preference_score.in_words(self.sums, self.n_targets)}" if self.sums else ""

    def to_dict(self) -> dict[str, Any]:
        figures = preference_score.figures(self.sums, self.n_targets) if self.sums else {}
        return {
            "loss": self.loss,
            "tokens_scored": self.n_targets,
            "bits_per_byte": self.bits_per_byte,
            **figures,
        }


class EvalSet:
    """The held-out batches that an evaluation scores: every `stride`-th of all, from number `first` on.

    They are made when they are asked for, and do not depend on the micro-batch, so that equal runs score
    equal tokens.
    """

    def __init__(
        self, sizes: Sequence[int], make: Callable[[int], Rows], stride: int = 1, first: int = 0
    ) -> None:
        """sizes: rows of every batch there is; make: a batch by its number."""
        self.make, self.numbers, self.whole = make, range(first, len(sizes), stride), stride == 1
        self.n_batches = len(self.numbers)
        self.n_rows = sum(sizes[number] for number in self.numbers)

    def __iter__(self) -> Iterator[Rows]:
        return map(self.make, self.numbers)

    @classmethod
    def windows(cls, windows: Windows | Masking, rows: int, wanted: int) -> EvalSet:
        """About `wanted` windows, at most `rows` in a batch, evenly spread; all when there are not more."""
        n = windows.n_rows
        rows = max(1, min(rows, n // LEAST_BATCHES))
        sizes = [min(rows, n - first) for first in range(0, n, rows)]
        stride = max(1, len(sizes) * rows // max(rows, wanted))
        return cls(sizes, lambda number: windows.eval_batch(number * rows, rows), stride)

    @classmethod
    def examples(cls, order: Order[Any], tokens: int, wanted: int) -> EvalSet:
        """About `wanted` examples, at most `tokens` in a batch, evenly spread; all when there are not more.

        Batches come sorted by length: from the middle, so that what is scored is not the shortest.
        """
        rows = order.eval_rows(tokens)
        sizes = list(map(len, rows))
        stride = max(1, min(len(sizes), sum(sizes) // max(1, wanted)))
        return cls(sizes, lambda number: order.take(rows[number]), stride, stride // 2)


@torch.no_grad()
def score(
    objective: nn.Module, scored: EvalSet, world: World, give_up: Callable[[], bool] = lambda: False
) -> Score | None:
    """Score held-out windows, each on one rank; None when `give_up` said so in between (one process only)."""
    objective.eval()
    bare = getattr(objective, "module", objective)
    measures = getattr(bare, "measures", ())
    more = {"measured": True} if measures else {}
    # Nats, targets, bytes and what else is measured: of the batches that choose, and of the others.
    sums, calls = [[0.0] * (3 + len(measures)) for _ in range(2)], 0
    for index, batch in enumerate(scored):
        if index % world.size != world.rank:
            continue
        nats, *rest = objective(batch.to(world.device), **more).reshape(-1).tolist()
        found = (nats, batch.n_targets, batch.n_bytes, *rest)
        sums[index % 2] = [a + b for a, b in zip(sums[index % 2], found, strict=True)]
        calls += 1
        if world.size == 1 and give_up():
            objective.train()
            return None
    # Every rank makes the same number of calls, as FSDP needs: one that has no batch left scores no target.
    for _ in range(math.ceil(scored.n_batches / world.size) - calls):
        objective(next(iter(scored)).to(world.device), **more)  # what it gives is not counted
    objective.train()
    one, other = (world.sum(half) for half in sums)
    whole = Score.of(measures, *(a + b for a, b in zip(one, other, strict=True)))
    if not other[1]:
        return whole
    return replace(whole, choosing=Score.of(measures, *one).loss, reporting=Score.of(measures, *other))


MEANINGS = {
    "bigram": "it predicts better than knowing which token follows which",
    "unigram": "it has learned more than how frequent each token is",
    "class shares": "it has learned more than how frequent each class is",
    "uniform": "it has begun to learn what is frequent",
    "chance": "it tells texts that belong together from others",
    "indifference": "it has moved towards the chosen answers from where it began",
}
"""What it says to be below a baseline, the hardest first."""
RISEN = 1.01
"""A held-out loss so many times the best one has risen: evaluations of one model differ by less."""
CLEARLY = 0.998
"""A loss of so many times another is better than that: worth to write weights for."""


@dataclass(frozen=True)
class Best:
    """The best held-out result of a run so far, whose weights are kept."""

    step: int
    passes: float
    """How often the run had gone through its data."""
    score: Score

    def beats(self, score: Score | None) -> bool:
        """Tell whether it is clearly better than another result, on the batches that choose."""
        return score is not None and self.score.choosing < CLEARLY * score.choosing

    def forgotten(self, loss: float, learned: float | None) -> bool:
        """Tell whether a later held-out loss has risen while the loss learned from fell below this one."""
        return learned is not None and loss > RISEN * self.score.loss and learned < self.score.loss


def verdict(
    loss: float, baselines: dict[str, float], best: Best | None = None, learned: float | None = None
) -> str:
    """Say in plain words what a held-out loss means, against {'uniform': nats, 'unigram': nats, ...}.

    best: the best one of the run before; learned: the loss, lately, on what is learned from. Where the first
    has risen while the second is lower, the model memorises, whatever baselines it is below.
    """
    if best is not None and best.forgotten(loss, learned):
        return (
            f"risen from {best.score.loss:.2f} at step {best.step:,}, while it is {learned:.2f} on what it "
            "learns from: it memorises"
        )
    if not baselines:
        return "nothing simpler was measured beside it"
    ranked = [name for name in MEANINGS if name in baselines]  # the hardest first
    below = [name for name in ranked if loss < baselines[name]]
    if not below:
        highest = max(baselines, key=lambda name: baselines[name])
        return f"not yet below the {highest} baseline ({baselines[highest]:.2f}): it knows nothing so far"
    passed = min(below, key=lambda name: baselines[name])
    above = [name for name in ranked if baselines[name] <= loss]
    still = f"; still above the {above[-1]} baseline ({baselines[above[-1]]:.2f})" if above else ""
    return f"below the {passed} baseline ({baselines[passed]:.2f}): {MEANINGS[passed]}{still}"


def kept(best: Best, last: float, baselines: dict[str, float], learned: float | None) -> str:
    """Say what weights are worth that were kept since the `last` ones are worse, and what would help."""
    assert best.score.reporting is not None
    chosen = best.score.reporting
    words = (
        f"{verdict(chosen.loss, baselines)}{chosen.says}; the weights are those of step {best.step:,}, "
        f"{best.passes:.2g} times through the data, and all later ones did worse"
    )
    if best.forgotten(last, learned):
        words += (
            f": {last:.2f} in the end, while it is {learned:.2f} on what it learns from. It memorised; a "
            f"shorter run (--epochs {math.ceil(best.passes)}), more text or pretrained weights "
            "(--model.weights) would help"
        )
    return words
