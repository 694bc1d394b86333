"""Attention maps recomputed from what a kernel was given, each row checked against what it answered.

A weight is exp(score - normaliser): one row or one head costs one small product, and figures of a whole map
are reduced tile by tile, so that no (L, M) map is held. Every tile must give the kernel's own output, in the
directions that were kept, before anything of it is shown. Read next: recorded_calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from transom.errors import Refused

from . import attention_figures
from .html import Picture
from .recorded_calls import AttentionArgs, RecordedCall, changed
from .view import View, Words

TILE_BYTES = 4 << 20
"""Weights held at a time by reductions."""
MAX_MAP_BYTES = 1 << 30
"""A map larger than this is not made whole."""
CHECKED_ROWS = 4
LIMITS = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""The largest difference to the kernel's output, in units of the largest value."""


class Mismatch(Refused):
    """What was recomputed is not what the kernel did, so it is not shown."""


class Check(NamedTuple):
    """Whether recomputed rows give the kernel's own output: largest difference, verdict, reason if not."""

    error: float
    ok: bool
    reason: str


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call of a forward pass, in the order of the pass."""

    kept: RecordedCall
    """What the kernel was asked and answered."""
    layer: int
    """Counted from 0."""
    kind: str
    """'self'; 'cross': to another text; 'encoder': of the encoder that the cross attention reads."""

    @property
    def name(self) -> str:
        """The module that it happened in."""
        return self.kept.name

    @property
    def rule(self) -> AttentionArgs:
        """What the kernel was told."""
        return self.kept.rule

    @property
    def n_heads(self) -> int:
        """H, the query heads."""
        return self.kept.query.shape[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, L, M)."""
        batch, heads, n_queries, _ = self.kept.query.shape
        return batch, heads, n_queries, self.kept.key.shape[2]

    def under(self, **rule: Any) -> Call:
        """The same call taken for one under another rule: its check must fail where they differ."""
        return replace(self, kept=changed(self.kept, **rule))

    def check(self, batch: int = 0) -> Check:
        """Recompute a few rows of every head and compare them with the kernel's output."""
        n_queries = self.shape[2]
        rows = sorted({round(i * (n_queries - 1) / max(1, CHECKED_ROWS - 1)) for i in range(CHECKED_ROWS)})
        checks = [self._checked(slice(row, row + 1), batch)[1] for row in rows]
        worst = max(checks, key=lambda check: (not check.ok, check.error))
        return (
            worst
            if worst.ok
            else worst._replace(reason=self._why(worst, slice(rows[-1], rows[-1] + 1), batch))
        )

    def rows(self, rows: slice, batch: int = 0, heads: slice = slice(None)) -> tuple[Tensor, float]:
        """Weights (H, R, M) of queries `rows`, and their largest difference to the kernel's output.

        Raises Mismatch when they do not give it.
        """
        weights, check = self._checked(rows, batch, heads)
        if not check.ok:
            raise Mismatch(f"{self.name}: not shown: {self._why(check, rows, batch)}")
        if weights.shape[-1] < self.shape[3]:  # what a causal query cannot see was left out
            weights = torch.nn.functional.pad(weights, (0, self.shape[3] - weights.shape[-1]))
        return weights, check.error

    def tiles(self, batch: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time, of all heads: (rows, weights (H, R, up to M)); later keys have weight 0.

        Raises Mismatch at the first tile that does not give the kernel's output.
        """
        _, heads, n_queries, n_keys = self.shape
        height = max(1, min(n_queries, TILE_BYTES // (4 * heads * n_keys)))
        for start in range(0, n_queries, height):
            rows = slice(start, min(start + height, n_queries))
            weights, check = self._checked(rows, batch)
            if not check.ok:
                raise Mismatch(f"{self.name}: not shown: {self._why(check, rows, batch)}")
            yield rows, weights

    @torch.no_grad()
    def _checked(self, rows: slice, batch: int, heads: slice = slice(None)) -> tuple[Tensor, Check]:
        kept = self.kept
        if self.rule.dropout:
            return torch.empty(0), Check(math.inf, False, f"dropout {self.rule.dropout:g} was on")
        weights, seen = recompute(kept, batch, heads, rows)
        values = kept.proof.values[batch, :, : weights.shape[-1]]
        given = _grouped(weights, values, self.n_heads, heads)
        wanted = kept.proof.output[batch, heads, rows]
        limit = LIMITS.get(kept.query.dtype, 1e-5)
        unit = max(1.0, float(values.abs().max()))
        error = float((given - wanted).abs().max()) / unit
        rest = float((weights.sum(-1) - seen.to(weights.dtype)).abs().max())
        error = max(error, rest) if kept.normaliser is not None else error
        fits = error <= limit  # not so for NaN
        return weights, Check(error, fits, "" if fits else f"differs from the kernel by {error:.1e}")

    def _why(self, check: Check, rows: slice, batch: int) -> str:
        """A mismatch in words: the one part of the rule without which the kernel's output comes out."""
        rule = self.rule
        if rule.dropout:
            return f"{check.reason}: what the kernel drew is not known; call model.eval() before"
        said = f"recomputed rows differ from the kernel's output by {check.error:.1e}"
        for part in ("softcap", "mask", "bias", "causal"):
            had, without = getattr(rule, part), self.under(**{part: False if part == "causal" else None})
            if had is not None and had is not False and without._checked(rows, batch)[1].ok:
                return f"{said}; they fit without the {part}: the kernel was not given it"
        limit = LIMITS.get(self.kept.query.dtype, 1e-5)
        causes = "another soft-cap, window, bias or sink, or keys overwritten since"
        return f"{said}, above {limit:g} ({rule}): {causes}"


def recompute(kept: RecordedCall, batch: int, heads: slice, rows: slice) -> tuple[Tensor, Tensor]:
    """Weights (H, R, M) of one text, at least float32, and whether each query sees anything, (H, R) bool.

    Keys after the last one that a causal tile can see are left out.
    """
    rule, wide = kept.rule, torch.promote_types(kept.query.dtype, torch.float32)
    n_heads, n_queries = kept.query.shape[1:3]
    rows = slice(*rows.indices(n_queries))
    if kept.written is not None:
        weights = kept.written[batch, heads, rows].to(wide)
        return weights, (weights > 0).any(-1)
    n_keys = min(rows.stop, kept.key.shape[2]) if rule.causal else kept.key.shape[2]
    query = kept.query[batch, heads, rows].to(wide)
    key = kept.key[batch, :, :n_keys].to(wide)
    scores = _grouped(query, key.mT, n_heads, heads).mul_(rule.scale)
    if rule.softcap is not None:
        scores = scores.div_(rule.softcap).tanh_().mul_(rule.softcap)
    if rule.bias is not None:
        scores += _part(rule.bias, kept, batch, heads, rows, n_keys)
    if rule.mask is not None:
        scores.masked_fill_(~_part(rule.mask, kept, batch, heads, rows, n_keys), -math.inf)
    if rule.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + rows.start)
        scores.masked_fill_(later, -math.inf)
    sees = scores.amax(-1) > -math.inf
    if kept.normaliser is None:
        normaliser = scores.logsumexp(-1)
    else:
        normaliser = kept.normaliser[batch, heads, rows].to(wide)
    normaliser = normaliser.masked_fill(~sees, 0)
    return scores.sub_(normaliser[..., None]).exp_(), sees


def _part(x: Tensor, kept: RecordedCall, batch: int, heads: slice, rows: slice, n_keys: int) -> Tensor:
    """What a mask or bias says of one tile: broadcast to (B, H, L, M), then cut."""
    whole = (*kept.query.shape[:3], kept.key.shape[2])
    return x.expand(whole)[batch, heads, rows, :n_keys]


def _grouped(left: Tensor, right: Tensor, n_heads: int, heads: slice) -> Tensor:
    """left (H, R, X) of the query heads `heads` times right (G, X, Y) of their groups: (H, R, Y)."""
    per_group = n_heads // len(right)
    if len(left) == n_heads:  # the heads of a group side by side: nothing is copied for each of them
        stacked = left.reshape(len(right), -1, left.shape[-1])
        return torch.matmul(stacked, right).view(*left.shape[:2], -1)
    return torch.matmul(left, right[[head // per_group for head in range(n_heads)[heads]]])


@dataclass(frozen=True, eq=False)
class AttentionMap(View):
    """Weights that a model used: (L, M) of a head, (M,) of a row of it, (H, L, M) or (H, M) of all heads."""

    weights: Tensor
    """float32; the row of a query that sees anything sums to 1."""
    layer: int
    """Counted from 0."""
    head: int | None
    """Counted from 0; None: all of the layer."""
    row: int | None
    """The query, counted from 0; None: all."""
    kind: str
    """'self', 'cross' or 'encoder', as for `Seen.attention`."""
    error: float
    """The largest difference of these rows to the kernel's output."""
    name: str
    """The module that attended."""
    caveat: ClassVar[str] = (
        "weights that were used; what was done with them, and whether it mattered, is not shown"
    )

    def draw(self, words: Words) -> Picture:
        """Draw it by the places of its tokens, which it does not know."""
        view = self.to_dict()
        if self.head is None:
            return attention_figures.layer_of_heads(view)
        n_keys = self.weights.shape[-1]
        n_queries = len(self.weights) if self.row is None else 1 + self.row
        places = [str(i) for i in range(max(n_queries, n_keys))]
        if self.kind == "cross":
            return attention_figures.attention(view, places[:n_queries], places[:n_keys])
        return attention_figures.attention(view, places)


def attention_map(call: Call, head: int | None, row: int | None, batch: int = 0) -> AttentionMap:
    """Recompute one row, one head or all of a call; raises Refused for what is not there or too large."""
    n_batch, n_heads, n_queries, n_keys = call.shape
    for what, index, size in (("head", head, n_heads), ("row", row, n_queries), ("batch", batch, n_batch)):
        if index is not None and not -size <= index < size:
            raise Refused(
                f"{call.name} has {size} {what}{'s' if size > 1 else ''}; there is no {what} {index}"
            )
    head, row = (None if i is None else i % n for i, n in ((head, n_heads), (row, n_queries)))
    heads = slice(None) if head is None else slice(head, head + 1)
    rows = slice(0, n_queries) if row is None else slice(row, row + 1)
    size = 4 * (n_heads if head is None else 1) * (rows.stop - rows.start) * n_keys
    if size > MAX_MAP_BYTES:
        raise Refused(
            f"{call.name}: a map of {size / 2**30:.1f} GiB ({n_queries} x {n_keys}); give row= or head=,"
            " or ask for heads(), which holds no map"
        )
    weights, error = call.rows(rows, batch, heads)
    weights = weights.float()
    weights = weights if head is None else weights[0]
    weights = weights if row is None else weights.select(-2, 0)
    return AttentionMap(weights, call.layer, head, row, call.kind, error, call.name)
