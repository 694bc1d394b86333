"""Which tokens an answer hangs on, and how well a fast method knows: graded on the spot.

The exact answer to "what if this token were not there" is to take it away and ask again, which costs one
forward pass each; a gradient costs one backward pass for all. So every fast attribution is printed with its
rank correlation with the exact one on this very text, and with what random scores reach; `gradient`, a norm
without a sign, with the size of the exact one. With a foil the question is contrastive: why this rather than
that (Yin & Neubig 2022).
Sources: Shrikumar et al. 2017 (gradient x input), Sundararajan et al. 2017 (integrated gradients).
Read next: ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import Refused, nearest
from . import figures
from .activations import embedded
from .answer_score import AnswerScore, answer_score, chunks, device_of, logits_at
from .gradients import differentiable
from .hooks import Edit, edited
from .html import Picture
from .module_finder import ModelParts, model_parts
from .view import View, Words, plain

Method = Literal["gradient_x_input", "integrated", "gradient", "leave_one_out"]
STEPS = 32
"""Points between average tokens and the text at which `integrated` takes a gradient."""
GRADED = 32
"""Units that are taken away exactly to grade a fast method; of more, so many drawn at random."""
RANDOM = 1000
"""Random scores that the grade is compared with."""


@dataclass(frozen=True)
class Control:
    """How well the scores agree with taking tokens away exactly."""

    correlation: float
    """Spearman's, with the exact change in log p; not a number where all exact changes are equal."""
    random: float
    """The mean correlation that random scores reach."""
    random_95: float
    """95 of 100 random scores stay within plus and minus this."""
    units: tuple[int, ...]
    """Which units were taken away."""
    exact: tuple[float, ...]
    """log p(answer) with each of them minus without it, in nats; of a method without a sign its size."""
    signed: bool = True

    @property
    def beats_random(self) -> bool:
        return self.correlation > self.random_95

    def __str__(self) -> str:
        word = "agrees better than chance" if self.beats_random else "does NOT agree better than chance"
        removal = "exact removal" if self.signed else "the size of exact removal"
        return (f"rank correlation with {removal} of {len(self.units)} units {self.correlation:.2f} "
                f"(random scores: {self.random:.2f}, 95% within {self.random_95:.2f}): {word}")  # fmt: skip

    def to_dict(self) -> dict[str, object]:
        said = {name: plain(value) for name, value in vars(self).items()}
        return {**said, "beats_random": self.beats_random, "text": str(self)}


@dataclass(frozen=True)
class Attribution(View):
    """What each unit of the text does for the answer, by one method, with its grade."""

    caveat: ClassVar[str] = (
        "what the answer hangs on as the model computes it, not whether it should; taking a token away also "
        "moves what follows it, and two tokens that say the same hide each other"
    )
    method: str
    metric: str
    tokens: tuple[int, ...]
    """What the scores are of: the text, or the source of an encoder-decoder."""
    units: tuple[tuple[int, ...], ...]
    """Positions that make one unit: by default each token alone."""
    scores: Tensor
    """(units,) float64; above 0 speaks for the answer (of `gradient`, a norm, which has no sign)."""
    value: float
    """log p(answer), in nats; with a foil log p(target) - log p(foil)."""
    control: Control | None
    """None where the scores are the exact ones, and nothing is left to grade them by."""

    def ranked(self) -> list[int]:
        """Units by their score, largest first."""
        return self.scores.argsort(descending=True).tolist()

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.attribution(self.to_dict(), words(self.tokens))


def attribute(
    model: nn.Module, tokens: Tensor | Sequence[int], target: int | None = None, foil: int | None = None, *,
    method: Method = "gradient_x_input", at: int = -1, answer: int = 0,
    source: Tensor | Sequence[int] | None = None, units: Sequence[Sequence[int]] | None = None, seed: int = 0,
) -> Attribution:  # fmt: skip
    """Put an answer down to the tokens (L,) that it was read from; `answer_score` explains the target.

    units: positions that belong together (a word, a document); by default each token that the answer could
    see. Costs one backward pass (integrated: 32) and up to 32 forward passes for the grade. Raises `Refused`.
    """
    known = (*METHODS, "leave_one_out")
    if method not in known:
        raise Refused(f"method is '{method}'{nearest(method, known)}; it can be {', '.join(known)}")
    parts = model_parts(model)
    metric = answer_score(model, tokens, target=target, foil=foil, at=at, answer=answer, source=source)
    chosen = visible_units(parts, metric) if units is None else _checked(metric, units)
    with torch.no_grad():
        value = float(metric.of(model))
    if method == "leave_one_out":
        scores = leave_one_out(model, metric, chosen, value)
        return Attribution(method, str(metric), metric.read, tuple(chosen), scores, value, None)
    by_token = METHODS[method](parts, metric)
    scores = torch.stack([by_token[list(unit)].sum() for unit in chosen])
    graded = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))[:GRADED].sort().values
    exact = leave_one_out(model, metric, [chosen[i] for i in graded.tolist()], value)
    control = grade(scores[graded], exact, tuple(graded.tolist()), seed, signed=method != "gradient")
    return Attribution(method, str(metric), metric.read, tuple(chosen), scores, value, control)


def visible_units(parts: ModelParts, metric: AnswerScore) -> list[tuple[int, ...]]:
    """Each token alone: in a decoder those that the answer could see, in an encoder all but the one asked."""
    config = getattr(parts.model, "config", None)
    asked = set(metric.positions) if getattr(config, "head", "") == "tokens" else set()
    if metric.source is not None:
        return [(place,) for place in range(len(metric.read))]
    if getattr(config, "kind", "") == "encoder":
        return [(place,) for place in range(len(metric.read)) if place not in asked]
    return [(place,) for place in range(min(metric.positions) + 1)]


def _checked(metric: AnswerScore, units: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    chosen = [tuple(int(place) for place in unit) for unit in units]
    n = len(metric.read)
    for unit in chosen:
        if not unit or not all(0 <= place < n for place in unit):
            raise Refused(f"unit {unit}: a unit has one or more of the positions 0 to {n - 1}")
    return chosen


@torch.no_grad()
def leave_one_out(
    model: nn.Module, metric: AnswerScore, units: Sequence[Sequence[int]], value: float | None = None
) -> Tensor:
    """Exactly: log p(answer) with each unit minus without it, (units,) float64; shorter texts, no mask."""
    value = float(metric.of(model)) if value is None else value
    scores = torch.empty(len(units), dtype=torch.float64)
    left = [metric.without(unit) for unit in units]
    same: dict[tuple[int, tuple[tuple[int, int], ...]], list[int]] = {}
    for i, shorter in enumerate(left):  # equally long texts with the same question go through together
        same.setdefault((len(shorter.read), shorter.targets), []).append(i)
    for group in same.values():
        for some in chunks(len(group)):
            members = [group[i] for i in some]
            scores[members] = value - _scores(model, [left[i] for i in members])
    return scores


def _scores(model: nn.Module, questions: Sequence[AnswerScore]) -> Tensor:
    """The scores of questions that differ in their tokens only."""
    first = questions[0]
    rows = torch.tensor([q.tokens for q in questions], device=device_of(model))
    source = None
    if first.source is not None:
        source = torch.tensor([q.source for q in questions], device=rows.device)
    return first.score(logits_at(model, rows, first.positions, source)).cpu()


def grade(
    scores: Tensor, exact: Tensor, units: tuple[int, ...], seed: int = 0, *, signed: bool = True
) -> Control:
    """Rank correlation of scores (n,) with the exact ones or their size, beside that of random scores."""
    exact = exact if signed else exact.abs()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(RANDOM, len(exact), generator=generator).argsort(-1).double()
    by_chance = _correlation(drawn, ranks(exact))
    return Control(
        spearman(scores, exact), float(by_chance.mean()), float(by_chance.abs().quantile(0.95)), units,
        tuple(exact.tolist()), signed,
    )  # fmt: skip


def spearman(a: Tensor, b: Tensor) -> float:
    """The correlation of ranks, ties sharing the mean of theirs (Spearman 1904); no number where all tie."""
    return float(_correlation(ranks(a)[None], ranks(b)))


def _correlation(rows: Tensor, other: Tensor) -> Tensor:
    """Of each row of ranks (n, units) with the ranks (units,)."""
    rows, other = rows - rows.mean(-1, keepdim=True), other - other.mean()
    return (rows @ other) / (rows.norm(dim=-1) * other.norm())


def ranks(x: Tensor) -> Tensor:
    """0 for the least; equal numbers share the mean of their ranks: (n,) -> (n,) float64."""
    below = (x[:, None] > x[None]).sum(-1)
    equal = (x[:, None] == x[None]).sum(-1)
    return below.double() + (equal.double() - 1) / 2


def _at_the_text(parts: ModelParts, metric: AnswerScore) -> tuple[Tensor, Tensor]:
    """The gradient of the score at the embeddings of what is read, and how those differ from the average
    token: (L, D) each.

    Not from nothing: a norm makes a token twice as large the same token, so the slope towards nothing is 0.
    """
    model = parts.model
    with differentiable():
        score, leaf = embedded(parts, lambda: metric.of(model).sum())
        grad = torch.autograd.grad(score, leaf)[0]
    average = parts.embedding.weight.detach().double().mean(0)  # type: ignore[union-attr, operator]
    return grad[0].double().cpu(), (leaf.detach()[0].double() - average).cpu()


def _gradient_x_input(parts: ModelParts, metric: AnswerScore) -> Tensor:
    grad, x = _at_the_text(parts, metric)
    return (grad * x).sum(-1)


def _gradient(parts: ModelParts, metric: AnswerScore) -> Tensor:
    return _at_the_text(parts, metric)[0].norm(dim=-1)


def _integrated(parts: ModelParts, metric: AnswerScore) -> Tensor:
    """Gradients along the straight line from a text of average tokens to the text (midpoint rule)."""
    _, x = _at_the_text(parts, metric)
    model, total = parts.model, torch.zeros_like(x)
    shares = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS
    for some in chunks(STEPS):
        left_out = (1 - shares[some.start : some.stop])[:, None, None] * x
        leaves: list[Tensor] = []

        def nearer(out: Tensor, left_out: Tensor = left_out, leaves: list[Tensor] = leaves) -> Tensor | None:
            if leaves:
                return None  # the target of an encoder-decoder is read as it is
            leaves.append((out.detach() - left_out.to(out)).requires_grad_())
            return leaves[0]

        with differentiable(), edited([Edit(parts.embedding, "out", nearer)]):
            score = metric.of(model, metric.rows(model, len(some))).sum()
            total += torch.autograd.grad(score, leaves[0])[0].double().sum(0).cpu()
    return (total / STEPS * x).sum(-1)


METHODS: dict[str, Callable[[ModelParts, AnswerScore], Tensor]] = {
    "gradient_x_input": _gradient_x_input,
    "integrated": _integrated,
    "gradient": _gradient,
}
"""What each fast method gives: a score of every position of what is read, (L,) float64."""
