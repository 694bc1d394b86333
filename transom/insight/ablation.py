"""What a part of the model does for an answer: take the part away and ask again.

Every row of a batch lacks another part, so a whole grid of heads is a few forward passes. A part is replaced
by nothing, by its mean over the text, or by what it said at another place of it (resample): zero is a value
that the model may never have met, which can do harm of its own, the other two are not. Later layers make up
for what is gone (McGrath et al. 2023, "The Hydra effect"), so an effect can be too large or too small.
Read next: patching.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import Refused, nearest
from ..model.recurrent import Recurrent
from . import figures
from .answer_score import AnswerScore, answer_score, chunks
from .hooks import Edit, edited
from .html import Picture
from .module_finder import ModelParts, model_parts
from .token_probabilities import token_probabilities
from .view import View, Words

What = Literal["heads", "attention", "ffn", "layers", "experts"]
How = Literal["zero", "mean", "resample"]
Unit = tuple[int, int]
"""(layer, head or expert); of whole layers and branches (layer, 0)."""
WHAT = ("heads", "attention", "ffn", "layers", "experts")
HOW = ("zero", "mean", "resample")
DRAWS = 4
"""Times that a resampled part is drawn anew."""


@dataclass(frozen=True)
class Ablation(View):
    """The change in log p(answer) without each part."""

    caveat: ClassVar[str] = (
        "not how much the part matters: later layers make up for what is gone and two parts that do the same "
        "hide each other, while zero in its place is a value never met, which can do harm of its own"
    )
    what: str
    how: str
    metric: str
    units: tuple[Unit, ...]
    before: float
    """log p(answer), in nats, of the whole model; with a foil log p(target) - log p(foil)."""
    change: Tensor
    """(units,) float64, in nats: without the part minus with it; below 0 the part speaks for the answer."""
    spread: Tensor
    """(units, 2): the least and the largest change over draws; equal where nothing is drawn."""

    def ranked(self) -> list[tuple[Unit, float]]:
        """Units with their change, those that the answer needs most first."""
        pairs = zip(self.units, self.change.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: pair[1])

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.ablation(self.to_dict())


def ablate(
    model: nn.Module, tokens: Tensor | Sequence[int], what: What = "heads", how: How = "zero", *,
    target: int | None = None, foil: int | None = None, at: int = -1, answer: int = 0,
    source: Tensor | Sequence[int] | None = None, units: Sequence[Unit] | None = None, seed: int = 0,
) -> Ablation:  # fmt: skip
    """Take away each of `units` in turn (by default all of their kind) and measure the answer.

    `answer_score` explains what is measured. Of an encoder-decoder the parts are those of its decoder.
    Raises `Refused`, also for experts replaced by anything but zero: what an expert would have said to a
    token that does not go through it is never computed.
    """
    for name, value, known in (("what", what, WHAT), ("how", how, HOW)):
        if value not in known:
            raise Refused(f"{name} is '{value}'{nearest(value, known)}; it can be {', '.join(known)}")
    if what == "experts" and how != "zero":
        raise Refused(f"experts can only be taken away (zero), not {how}: what one would have said to a "
                      "token that does not go through it is never computed")  # fmt: skip
    parts = model_parts(model)
    metric = answer_score(model, tokens, target=target, foil=foil, at=at, answer=answer, source=source)
    every = all_units(parts, what)
    chosen = every if units is None else [_known(tuple(unit), every, what) for unit in units]
    with torch.no_grad():
        before = float(metric.of(model))
        if what == "experts":
            draws = [_without_experts(parts, metric, chosen)]
        else:
            said = what_they_say(parts, metric, what)
            generator = torch.Generator().manual_seed(seed)
            draws = [
                _without(parts, metric, what, chosen, replacements(said, how, generator))
                for _ in range(DRAWS if how == "resample" else 1)
            ]
    change = torch.stack(draws) - before
    spread = torch.stack((change.amin(0), change.amax(0)), dim=-1)
    return Ablation(what, how, str(metric), tuple(chosen), before, change.mean(0), spread)


@dataclass(frozen=True)
class HeadAblation(View):
    """How likely each token of an answer is with and without one head."""

    caveat: ClassVar[str] = Ablation.caveat
    tokens: tuple[int, ...]
    first: int
    """The answer begins at this position of the tokens."""
    layer: int
    head: int
    how: str
    """What stands in its place, in words."""
    before: Tensor
    """(n,) float64 log p of each token of the answer, in nats, with the head,"""
    after: Tensor
    """and without it."""

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        return figures.head_ablation(self.to_dict(), words(self.tokens))


@torch.no_grad()
def ablate_head(
    model: nn.Module, tokens: Sequence[int], layer: int, head: int, *, first: int = 1,
    source: Sequence[int] | None = None,
) -> HeadAblation:  # fmt: skip
    """Judge the tokens (L,) from `first` on anew while one head says its mean over the text; of an
    encoder-decoder a head of its decoder's own attention. Raises `Refused`.
    """
    parts = model_parts(model)
    modules = places(parts, "heads")
    for name, value, known in (("layer", layer, len(modules)), ("head", head, parts.n_heads)):
        if not 0 <= value < known:
            raise Refused(f"{name} is {value}; this model has 0 to {known - 1}")
    read = tuple(tokens[:-1])
    metric = AnswerScore(
        read, ((len(read) - 1, tokens[-1]),), None, None if source is None else tuple(source)
    )
    said = what_they_say(parts, metric, "heads")
    whole = token_probabilities(model, tokens, top=1, source=source).logprob
    instead = replacements(said, "mean", torch.Generator().manual_seed(0))[layer]
    with edited(replacing(modules[layer], "heads", parts.n_heads, [(0, head)], instead)):
        without = token_probabilities(model, tokens, top=1, source=source).logprob
    before, after = whole[first - 1 :], without[first - 1 :]
    how = "replaced by its mean over the text"
    return HeadAblation(tuple(tokens), first, layer, head, how, before, after)


def all_units(parts: ModelParts, what: What) -> list[Unit]:
    """Every part of a kind."""
    if what == "experts":
        routers = parts.routers()
        return [(layer, e) for layer, router in routers.items() for e in range(router.experts.n_experts)]
    many = parts.n_heads if what == "heads" else 1
    return [(layer, i) for layer in range(parts.n_layers) for i in range(many)]


def places(parts: ModelParts, what: What) -> list[nn.Module]:
    """The module of each layer at which a kind of part is changed."""
    if isinstance(parts.model, Recurrent):
        raise Refused("a recurrence has no heads or branches to take away: each layer is all there is")
    if what == "layers":
        return list(parts.blocks)
    return [parts.feed_forward(i) if what == "ffn" else parts.heads_out(i) for i in range(parts.n_layers)]


def what_they_say(parts: ModelParts, metric: AnswerScore, what: What) -> list[Tensor]:
    """What the parts of each layer say in the whole model: (L, units, width) a layer."""
    kept: list[Tensor] = []
    edits = []
    for module in places(parts, what):
        if what == "layers":
            edits.append(Edit(module, "in", kept.append))
        edits.append(Edit(module, "in" if what == "heads" else "out", kept.append))
    with edited(edits):
        metric.of(parts.model)
    if what == "layers":  # a layer says what it adds to the stream
        kept = [out - x for x, out in zip(kept[::2], kept[1::2], strict=True)]
    many = parts.n_heads if what == "heads" else 1
    return [x[0].unflatten(-1, (many, -1)) for x in kept]


def replacements(said: Sequence[Tensor], how: How, generator: torch.Generator) -> list[Tensor]:
    """What stands where a part is taken away: like `said`, (L, units, width) a layer."""
    if how == "zero":
        return [torch.zeros_like(x) for x in said]
    if how == "mean":
        return [x.mean(0, keepdim=True).expand_as(x) for x in said]
    return [x[torch.randint(len(x), (len(x),), generator=generator).to(x.device)] for x in said]


def _without(
    parts: ModelParts, metric: AnswerScore, what: What, units: Sequence[Unit], instead: Sequence[Tensor]
) -> Tensor:
    """The score (units,) without each unit."""
    modules, scores = places(parts, what), []
    for some in chunks(len(units)):
        edits = []
        for layer in {units[i][0] for i in some}:
            hit = [(row, units[i][1]) for row, i in enumerate(some) if units[i][0] == layer]
            edits += replacing(modules[layer], what, parts.n_heads, hit, instead[layer])
        with edited(edits):
            scores.append(metric.of(parts.model, metric.rows(parts.model, len(some))))
    return torch.cat(scores).cpu()


def replacing(
    module: nn.Module, what: What, n_heads: int, hit: Sequence[tuple[int, int]], instead: Tensor
) -> list[Edit]:
    """Edits that put `instead` (L, units, width) in the place of some (row, unit) of one layer."""
    came: list[Tensor] = []

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        apart = x.unflatten(-1, (n_heads if what == "heads" else 1, -1))
        for row, unit in hit:
            new = instead[:, unit].to(x.dtype)
            apart[row, :, unit] = new if what != "layers" else came[-1][row] + new
        return apart.flatten(-2)

    if what == "layers":
        return [Edit(module, "in", came.append), Edit(module, "out", change)]
    return [Edit(module, "in" if what == "heads" else "out", change)]


def _without_experts(parts: ModelParts, metric: AnswerScore, units: Sequence[Unit]) -> Tensor:
    """The score (units,) when no token goes through an expert; the others keep their weights."""
    routers, scores = parts.routers(), []
    for some in chunks(len(units)):
        edits = []
        for layer in {units[i][0] for i in some}:
            gone = [units[i][1] if units[i][0] == layer else -1 for i in some]
            edits.append(Edit(routers[layer], "whole", _closing(gone)))
        with edited(edits):
            scores.append(metric.of(parts.model, metric.rows(parts.model, len(some))))
    return torch.cat(scores).cpu()


def _closing(gone: Sequence[int]) -> Callable[[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """What a router says when in row b no token may go to expert gone[b]."""

    def change(routed: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        chosen, weights = routed
        by_row = chosen.view(len(gone), -1, chosen.shape[-1])
        closed = by_row == torch.tensor(gone, device=chosen.device)[:, None, None]
        return chosen, weights.masked_fill(closed.view_as(weights), 0.0)

    return change


def _known(unit: tuple[int, ...], every: Sequence[Unit], what: str) -> Unit:
    if unit not in every:
        last = every[-1]
        raise Refused(f"{what} {unit}: this model has (layer, number) up to {last}, counted from 0")
    return unit  # type: ignore[return-value]
