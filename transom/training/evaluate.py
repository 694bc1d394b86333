"""How good the model is on text it never learned from, and what that number means.

A fixed set of held-out windows, evenly spread and bounded in cost, is scored along the way; all of them at
the end where that is cheap. The result stands beside what a table would reach: uniform (knows nothing),
unigram (knows how frequent each token is), bigram (knows which token follows which). Every other batch also
chooses whose weights are kept; what the chosen ones are worth, the rest says, which had no part in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..data.masking import Masking
from ..data.order import Windows
from .parallelism import World
from .task import EvalSet, Rows

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

    @classmethod
    def of(cls, total: float, n_targets: float, n_bytes: float) -> Score:
        """From the sum of nats over so many targets, which write so many bytes."""
        bits = total / math.log(2) / n_bytes if n_bytes else None
        return cls(total / max(1, n_targets), int(n_targets), bits)

    def to_dict(self) -> dict[str, float | int | None]:
        return {"loss": self.loss, "tokens_scored": self.n_targets, "bits_per_byte": self.bits_per_byte}


@dataclass(frozen=True)
class EvalWindows:
    """Which held-out windows an evaluation scores: every `stride`-th batch of them."""

    windows: Windows | Masking
    rows: int
    """Windows of a batch; does not depend on the micro-batch, so that equal runs score equal tokens."""
    stride: int

    @classmethod
    def about(cls, windows: Windows | Masking, rows: int, wanted: int) -> EvalWindows:
        """Evenly spread, about `wanted` windows; all of them when there are not more."""
        rows = max(1, min(rows, _n_windows(windows) // LEAST_BATCHES))
        n_batches = math.ceil(_n_windows(windows) / rows)
        return cls(windows, rows, max(1, n_batches * rows // max(rows, wanted)))

    @property
    def n_batches(self) -> int:
        return math.ceil(math.ceil(_n_windows(self.windows) / self.rows) / self.stride)

    @property
    def n_rows(self) -> int:
        """At most: the last batch may hold fewer."""
        return min(_n_windows(self.windows), self.n_batches * self.rows)

    @property
    def whole(self) -> bool:
        """Whether this is all of the held-out text."""
        return self.stride == 1

    def __iter__(self) -> Iterator[Rows]:
        return itertools.islice(self.windows.eval_batches(self.rows), 0, None, self.stride)


def _n_windows(windows: Windows | Masking) -> int:
    return math.ceil((windows.file.n_tokens - 1) / windows.length)


class EvalExamples:
    """Which held-out batches of examples an evaluation scores: every `stride`-th of them."""

    def __init__(self, batches: Sequence[Rows], stride: int = 1) -> None:
        # Batches come sorted by length: from the middle, so that what is scored is not the shortest.
        self.batches, self.stride = list(batches)[stride // 2 :: stride], stride
        self.n_batches = len(self.batches)
        self.n_rows = sum(len(batch.tokens) for batch in self.batches)
        self.whole = stride == 1

    @classmethod
    def about(cls, batches: Sequence[Rows], wanted: int) -> EvalExamples:
        """Evenly spread, about `wanted` rows; all of them when there are not more."""
        n_rows = sum(len(batch.tokens) for batch in batches)
        return cls(batches, max(1, min(len(batches), n_rows // max(1, wanted))))

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.batches)


@torch.no_grad()
def score(
    objective: nn.Module, scored: EvalSet, world: World, give_up: Callable[[], bool] = lambda: False
) -> Score | None:
    """Score held-out windows, each on one rank; None when `give_up` said so in between (one process only)."""
    objective.eval()
    # Nats, targets, bytes: of the batches that choose, and of the others.
    sums, calls = [[0.0, 0, 0], [0.0, 0, 0]], 0
    for index, batch in enumerate(scored):
        if index % world.size != world.rank:
            continue
        half = sums[index % 2]
        half[0] += objective(batch.to(world.device)).item()
        half[1], half[2], calls = half[1] + batch.n_targets, half[2] + batch.n_bytes, calls + 1
        if world.size == 1 and give_up():
            objective.train()
            return None
    # Every rank makes the same number of calls, as FSDP needs: one that has no batch left scores no target.
    for _ in range(math.ceil(scored.n_batches / world.size) - calls):
        objective(next(iter(scored)).to(world.device))  # what it gives is not counted
    objective.train()
    one, other = (world.sum(half) for half in sums)
    whole = Score.of(*(a + b for a, b in zip(one, other, strict=True)))
    if not other[1]:
        return whole
    return replace(whole, choosing=Score.of(*one).loss, reporting=Score.of(*other))


MEANINGS = {
    "bigram": "it predicts better than knowing which token follows which",
    "unigram": "it has learned more than how frequent each token is",
    "class shares": "it has learned more than how frequent each class is",
    "uniform": "it has begun to learn what is frequent",
    "chance": "it tells texts that belong together from others",
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
        """Whether it is clearly better than another result, on the batches that choose."""
        return score is not None and self.score.choosing < CLEARLY * score.choosing

    def forgotten(self, loss: float, learned: float | None) -> bool:
        """Whether a later held-out loss has risen while that on what is learned from fell below this one."""
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
    words = (
        f"{verdict(best.score.reporting.loss, baselines)}; the weights are those of step {best.step:,}, "
        f"{best.passes:.2g} times through the data, and all later ones did worse"
    )
    if best.forgotten(last, learned):
        words += (
            f": {last:.2f} in the end, while it is {learned:.2f} on what it learns from. It memorised; a "
            f"shorter run (--epochs {math.ceil(best.passes)}), more text or pretrained weights "
            "(--model.weights) would help"
        )
    return words
