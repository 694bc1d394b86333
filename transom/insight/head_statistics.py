"""The grid of heads: a few figures of every map of a model, none of which is ever held whole.

Each figure is a mean over the queries of one text, reduced tile by tile. The share of the first token, the
sink that many head_statistics rest on, stands apart. Read next: maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from transom.errors import Refused, nearest

from . import attention_figures
from .html import Picture
from .maps import Call
from .view import View, Words

FIGURES = {
    "entropy": "nats of a row of weights: 0 for one key, log M for all alike",
    "distance": "tokens between a query and what it uses, weighted",
    "sink": "weight of the first token, over queries after it",
    "peak": "the largest weight of a row",
    "previous": "weight of the token just before the query",
    "duplicate": "weight of other places with the query's own token, over queries that have such",
}
"""Every figure of a head, and what it says."""
FAR = 4
"""Tokens away from which on what a head uses is far."""
TINY = 1e-30
"""Weights below take no part in the entropy; `torch.special.entr` is seven times as slow on a CPU."""
OF_PLACES: tuple[str, ...] = ("distance", "previous", "duplicate")
"""Figures that need queries and keys to be of one text."""


@dataclass(frozen=True, eq=False)
class HeadGrid(View):
    """Figures of every head of every layer, each (n_layers, H) float32."""

    figures: dict[str, Tensor]
    """By name: entropy, distance, sink, peak, previous, duplicate, as far as they can be had."""
    layers: tuple[int, ...]
    """Which layer each row is."""
    kind: str
    """'self', 'cross' or 'encoder', as for `Seen.attention`."""
    missing: dict[str, str]
    """Figures that cannot be had, with the reason."""
    caveat: ClassVar[str] = "means over the queries of one text; a head may do something else on another"

    def figure(self, name: str) -> Tensor:
        """One figure of all heads, (n_layers, H); raises Refused with the reason where it cannot be had."""
        if name in self.figures:
            return self.figures[name]
        if name in self.missing:
            raise Refused(f"no '{name}' here: {self.missing[name]}")
        raise Refused(f"no figure is called '{name}'{nearest(name, FIGURES)} there are {', '.join(FIGURES)}")

    @property
    def entropy(self) -> Tensor:
        """Nats of a row of weights."""
        return self.figure("entropy")

    @property
    def distance(self) -> Tensor:
        """Tokens between a query and what it uses."""
        return self.figure("distance")

    @property
    def sink(self) -> Tensor:
        """Weight of the first token."""
        return self.figure("sink")

    @property
    def peak(self) -> Tensor:
        """The largest weight of a row."""
        return self.figure("peak")

    @property
    def previous(self) -> Tensor:
        """Weight of the token just before."""
        return self.figure("previous")

    @property
    def duplicate(self) -> Tensor:
        """Weight of other places with the query's own token."""
        return self.figure("duplicate")

    @property
    def worth(self) -> Tensor:
        """How much a head moves, (n_layers, H): weight that is sharp, far, and neither on the first token nor
        on the one before; between two texts, weight that is sharp.
        """
        if self.kind == "cross":
            return self.peak
        return self.peak * (1 - self.sink) * (1 - self.previous) * (self.distance / FAR).clamp(max=1)

    def ranked(self, by: str = "entropy", lowest: bool = False) -> list[tuple[int, int, float]]:
        """Heads as (layer, head, figure), sorted by one figure."""
        values = self.figure(by)
        order = values.flatten().argsort(descending=not lowest).tolist()
        places = [divmod(i, values.shape[1]) for i in order]
        return [(self.layers[at], head, float(values[at, head])) for at, head in places]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with what each figure says."""
        return {**super().to_dict(), "says": {name: FIGURES[name] for name in self.figures}}

    def draw(self, words: Words) -> Picture:
        """Draw its figures as maps of layers by heads."""
        return attention_figures.grid_of_heads(self.to_dict())


def head_grid(calls: Sequence[Call], batch: int = 0) -> HeadGrid:
    """The grid of calls of one kind, a layer each; raises Mismatch where a map is not the kernel's."""
    missing: dict[str, str] = {}
    if calls[0].kind == "cross":
        missing = dict.fromkeys(OF_PLACES, "queries and keys are different texts")
    elif any(_tokens(call, batch) is None for call in calls):
        missing = {"duplicate": "the ids of the keys were not seen; was the model given embeddings?"}
    wanted = [name for name in FIGURES if name not in missing]
    rows = [_of_call(call, wanted, batch) for call in calls]
    figures = {name: torch.stack([row[name] for row in rows]).float() for name in wanted}
    return HeadGrid(figures, tuple(call.layer for call in calls), calls[0].kind, missing)


def _tokens(call: Call, batch: int) -> Tensor | None:
    ids = call.kept.tokens
    if ids is None or call.shape[2] != call.shape[3]:
        return None
    return ids[min(batch, len(ids) - 1)]


@torch.no_grad()
def _of_call(call: Call, wanted: Sequence[str], batch: int) -> dict[str, Tensor]:
    """The figures (H,) of one call, summed over tiles and divided once."""
    _, n_heads, n_queries, n_keys = call.shape
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(wanted, 0)
    for rows, weights in call.tiles(batch):
        places = torch.arange(rows.start, rows.stop, device=weights.device) + (n_keys - n_queries)
        for name, (total, count) in _of_tile(call, weights, places, wanted, rows, batch).items():
            sums[name] = sums[name] + total if name in sums else total
            counts[name] += count
    return {name: sums[name] / max(1, counts[name]) for name in wanted}


def _of_tile(
    call: Call, weights: Tensor, places: Tensor, wanted: Sequence[str], rows: slice, batch: int
) -> dict[str, tuple[Tensor, int]]:
    """Sums (H,) over the rows of a tile (H, R, M), and over how many rows."""
    n_rows, keys = weights.shape[1], torch.arange(weights.shape[2], device=weights.device)
    after = places > 0
    found: dict[str, tuple[Tensor, int]] = {
        "entropy": (-(weights.clamp_min(TINY).log_() * weights).sum((1, 2)), n_rows),
        "peak": (weights.amax(-1).sum(-1), n_rows),
        "sink": ((weights[..., 0] * after).sum(-1), int(after.sum())),
    }
    if "distance" in wanted:
        apart = (places.to(weights.dtype)[:, None] - keys.to(weights.dtype)).abs_()
        found["distance"] = (_weighed(weights, apart), n_rows)
        before = weights.gather(-1, (places - 1).clamp(0)[None, :, None].expand(len(weights), -1, 1))[..., 0]
        found["previous"] = ((before * after).sum(-1), int(after.sum()))
    ids = _tokens(call, batch)
    if "duplicate" in wanted and ids is not None:
        same = (ids[rows, None] == ids[: len(keys)]) & (places[:, None] != keys)
        found["duplicate"] = (_weighed(weights, same.to(weights.dtype)), int(same.any(-1).sum()))
    return found


def _weighed(weights: Tensor, cells: Tensor) -> Tensor:
    """The sum over a tile of weights (H, R, M) times cells (R, M): (H,), without a copy of the tile."""
    return torch.mv(weights.flatten(1), cells.flatten())


@torch.no_grad()
def received(call: Call, batch: int = 0) -> Tensor:
    """How much weight each key gets, as a mean over the queries: (H, M) float32."""
    _, n_heads, n_queries, n_keys = call.shape
    total = torch.zeros(n_heads, n_keys)
    for _, weights in call.tiles(batch):
        total[:, : weights.shape[-1]] += weights.sum(1).float().cpu()
    return total / n_queries


@torch.no_grad()
def thumbnails(call: Call, size: int = 64, batch: int = 0) -> Tensor:
    """All maps of a layer, small: (H, up to size, up to size) uint8, 255 for a block with all the weight.

    A cell is the weight that its queries give to its keys together, as a mean over its queries.
    """
    _, n_heads, n_queries, n_keys = call.shape
    high, wide = min(size, n_queries), min(size, n_keys)
    row_of = torch.arange(n_queries) * high // n_queries
    column_of = torch.arange(n_keys) * wide // n_keys
    pooled = torch.zeros(n_heads, high, wide)
    for rows, weights in call.tiles(batch):
        columns = torch.zeros(*weights.shape[:2], wide)
        columns.index_add_(2, column_of[: weights.shape[-1]], weights.float().cpu())
        pooled.index_add_(1, row_of[rows], columns)
    pooled /= torch.bincount(row_of, minlength=high)[:, None]
    return (255 * pooled).round().to(torch.uint8)
