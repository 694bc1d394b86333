"""Where in the model a difference between two texts is carried: put a piece of one run into the other.

Two texts of the same length, one that gives the answer (clean) and one that does not (corrupt). A piece of
the clean run, the residual stream before one layer at one position, or the output of one head, is put into
the corrupt run; what share of the answer comes back says what that piece carries (Vig et al. 2020; Meng et
al. 2022). Read next: ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import Refused, nearest
from . import figures
from .ablation import Unit, all_units, places, replacing, what_they_say
from .answer_score import AnswerScore, answer_score, chunks
from .hooks import Edit, edited
from .html import Picture
from .module_finder import ModelParts, model_parts
from .view import View, Words

Points = Literal["resid", "heads", "attention", "ffn"]
POINTS = ("resid", "heads", "attention", "ffn")


@dataclass(frozen=True)
class Patching(View):
    """How much of the answer each piece of the clean run brings back."""

    caveat: ClassVar[str] = (
        "for this pair of texts only: a piece that carries nothing of their difference shows nothing, "
        "however much the answer needs it"
    )
    points: str
    metric: str
    answer: int
    """The token whose probability is followed."""
    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    clean_score: float
    """log p(answer), in nats, of the clean text; with a foil log p(target) - log p(foil)."""
    corrupt_score: float
    units: tuple[Unit, ...]
    """(layer, position) of the residual stream before a layer, else (layer, head) or (layer, 0)."""
    change: Tensor
    """(units,) float64, in nats: of the corrupt run, with the piece minus without it."""
    restored: Tensor
    """(units,) change over the difference of the two texts: 0 nothing, 1 all of it."""

    def draw(self, words: Words) -> Picture:
        """Draw it; words gives the texts of its tokens."""
        view = self.to_dict()
        return figures.patching(view, words(self.clean), words(self.corrupt), words([self.answer])[0])


def patch(
    model: nn.Module, clean: Tensor | Sequence[int], corrupt: Tensor | Sequence[int],
    points: Points = "resid", *, target: int | None = None, foil: int | None = None, at: int = -1,
    source: Tensor | Sequence[int] | None = None,
) -> Patching:  # fmt: skip
    """Put each piece of the clean run into the corrupt one. Raises `Refused`.

    target: by default the model's answer to the clean text; the others as `answer_score` explains.
    """
    if points not in POINTS:
        raise Refused(f"points is '{points}'{nearest(points, POINTS)}; it can be {', '.join(POINTS)}")
    parts = model_parts(model)
    good = answer_score(model, clean, target=target, foil=foil, at=at, source=source)
    bad = replace(good, tokens=tuple(int(t) for t in torch.as_tensor(corrupt).flatten().tolist()))
    if len(good.tokens) != len(bad.tokens):
        raise Refused(f"the clean text has {len(good.tokens)} tokens and the corrupt one {len(bad.tokens)}; "
                      "a piece goes to its own position, so they must be equally long")  # fmt: skip
    with torch.no_grad():
        clean_score, corrupt_score = float(good.of(model)), float(bad.of(model))
        if abs(clean_score - corrupt_score) < 1e-9:
            raise Refused("both texts give the answer the same probability: there is no difference to trace")
        units, pieces = _pieces(parts, good, points)
        scores = []
        for some in chunks(len(units)):
            with edited(_putting(parts, points, [units[i] for i in some], pieces)):
                scores.append(bad.of(model, bad.rows(model, len(some))))
    change = torch.cat(scores).cpu() - corrupt_score
    return Patching(
        points, str(good), good.targets[0][1], good.tokens, bad.tokens, clean_score, corrupt_score,
        tuple(units), change, change / (clean_score - corrupt_score),
    )  # fmt: skip


def _pieces(parts: ModelParts, clean: AnswerScore, points: Points) -> tuple[list[Unit], list[Tensor]]:
    """Every unit, and what each layer of the clean run holds: (L, units, width), of the stream (L, 1, D)."""
    if points != "resid":
        return all_units(parts, points), what_they_say(parts, clean, points)
    kept: list[Tensor] = []
    with edited([Edit(block, "in", kept.append) for block in places(parts, "layers")]):
        clean.of(parts.model)
    units = [(layer, place) for layer in range(parts.n_layers) for place in range(len(clean.tokens))]
    return units, [x[0][:, None] for x in kept]


def _putting(
    parts: ModelParts, points: Points, units: Sequence[Unit], pieces: Sequence[Tensor]
) -> list[Edit]:
    """Edits of a batch whose row i gets the piece of units[i]."""
    edits = []
    for layer in {layer for layer, _ in units}:
        hit = [(row, unit) for row, (of, unit) in enumerate(units) if of == layer]
        if points == "resid":
            edits.append(Edit(parts.blocks[layer], "in", _at_places(hit, pieces[layer])))
        else:
            edits += replacing(places(parts, points)[layer], points, parts.n_heads, hit, pieces[layer])
    return edits


def _at_places(hit: Sequence[tuple[int, int]], piece: Tensor) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        for row, place in hit:
            x[row, place] = piece[place, 0]
        return x

    return change
