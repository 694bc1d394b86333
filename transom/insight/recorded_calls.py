"""What a fused attention kernel was asked and what it answered: kept by reference, never the map.

Query, key, the `AttentionArgs` and the kernel's own normaliser are enough to recompute any row. Of values and
output a few random directions are kept: enough to check every row of a recomputed map (Freivalds 1977) at a
sixteenth of the memory. Source: FlashAttention's log-sum-exp, Dao et al. 2022.
Read next: attention_recorder, maps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DIRECTIONS = 4
"""Random directions of values and output that are kept. A wrong map passes with a chance below 1e-5."""


@dataclass(frozen=True, eq=False)
class AttentionArgs:
    """What a kernel was told besides query, key and value: who may look at whom, how scores are shaped."""

    scale: float
    """Factor of the dot products."""
    causal: bool = False
    """Query i sees the keys 0 .. i."""
    mask: Tensor | None = None
    """Bool, True where a query may look; broadcast to (B, H, L, M)."""
    bias: Tensor | None = None
    """Added to the scores; broadcast to (B, H, L, M)."""
    softcap: float | None = None
    """Scores are squashed to cap * tanh(score / cap), before bias and mask."""
    dropout: float = 0.0
    """The chance with which the kernel dropped a weight."""

    def __str__(self) -> str:
        said = [f"scale {self.scale:.4g}"]
        said += ["causal"] if self.causal else []
        said += [] if self.mask is None else ["masked"]
        said += [] if self.bias is None else ["biased"]
        said += [] if self.softcap is None else [f"soft-cap {self.softcap:g}"]
        return ", ".join(said + ([f"dropout {self.dropout:g}"] if self.dropout else []))


class Proof(NamedTuple):
    """Random directions of what a kernel read and wrote: values (B, G, M, P) and output (B, H, L, P)."""

    values: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class RecordedCall:
    """One call of a kernel: query (B, H, L, K), key (B, G, M, K), its normaliser (B, H, L) if it gave one."""

    name: str
    """The module it happened in."""
    query: Tensor
    key: Tensor
    rule: AttentionArgs
    normaliser: Tensor | None
    """log of the sum of exp(score) over the keys of each query."""
    proof: Proof
    tokens: Tensor | None
    """(B, M) the ids of the keys, where as many were read before."""
    written: Tensor | None = None
    """The map (B, H, L, M) itself, where the model wrote it out: then query and key have no width."""


def prove(value: Tensor, output: Tensor) -> Proof:
    """Project values (B, G, M, K) and output (B, H, L, K) on directions drawn from one seed."""
    wide = torch.promote_types(value.dtype, torch.float32)
    width = value.shape[-1]
    drawn = torch.Generator().manual_seed(width)
    directions = torch.randn(width, DIRECTIONS, generator=drawn).to(value.device, wide)
    return Proof(value.detach().to(wide) @ directions, output.detach().to(wide) @ directions)


@dataclass(frozen=True, eq=False)
class RecordedRecurrence:
    """One fused pass of a recurrence, as torch was given it: layers one above the other."""

    name: str
    cell: str
    read: Tensor
    """(B, L, in), or (L, B, in) where not `batch_first`."""
    first: tuple[Tensor, ...]
    """The parts of the state before it, (layers, B, D) each."""
    weights: list[Tensor]
    out: Tensor
    n_layers: int
    one_way: bool
    batch_first: bool


class CallInputs(NamedTuple):
    """What one call was given; heads before positions."""

    query: Tensor
    key: Tensor
    value: Tensor
    rule: AttentionArgs


def bound(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> CallInputs:
    """The arguments of `F.scaled_dot_product_attention`, by name."""
    boolean = attn_mask is not None and attn_mask.dtype == torch.bool
    asked = AttentionArgs(
        scale=1 / math.sqrt(query.shape[-1]) if scale is None else scale,
        causal=is_causal,
        mask=attn_mask if boolean else None,
        bias=None if attn_mask is None or boolean else attn_mask.detach(),
        dropout=dropout_p,
    )
    return CallInputs(query, key, value, asked)


def apart(module: nn.Module | None, given: CallInputs, out: Tensor) -> tuple[CallInputs, Tensor]:
    """A call in which the heads of one query that share a key stand where queries do, as one of H heads.

    A step of decoding lays them so, here and in `transformers`: (B, G, H / G, K) is (B, H, 1, K).
    """
    if given.query.dim() != 4 or given.key.dim() != 4:
        return given, out
    together = (given.key.shape[1], given.query.shape[2])
    if together[1] == 1 or given.query.shape[1] != together[0] or together != _shared_heads(module):
        return given, out
    query, out = (x.reshape(len(x), -1, 1, x.shape[-1]) for x in (given.query, out))
    mask, bias = (_apart(x, together) for x in (given.rule.mask, given.rule.bias))
    return given._replace(query=query, rule=replace(given.rule, mask=mask, bias=bias)), out


def _shared_heads(module: nn.Module | None) -> tuple[int, int]:
    """Heads of keys of the module, and how many of queries share one: by our names, or `transformers`'."""
    if module is not None and hasattr(module, "n_kv_heads"):
        return module.n_kv_heads, module.n_heads // module.n_kv_heads  # type: ignore[return-value, operator]
    shared = getattr(module, "num_key_value_groups", 1)
    return getattr(getattr(module, "config", None), "num_attention_heads", 0) // shared, shared


def _apart(mask: Tensor | None, together: tuple[int, int]) -> Tensor | None:
    """A mask of such a call, broadcast to (B, G, H / G, M), as one of (B, H or 1, 1, M)."""
    if mask is None or mask.dim() < 4 or mask.shape[1:3] == (1, 1):
        return mask
    return mask.expand(-1, *together, -1).reshape(len(mask), -1, 1, mask.shape[-1])


def of_kernel(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any, attn_mask: Tensor | None = None, **named: Any
) -> CallInputs:
    """The arguments of a kernel itself: a mask that is not by name comes fourth."""
    if rest and (rest[0] is None or isinstance(rest[0], Tensor)):
        attn_mask, rest = rest[0], rest[2:]  # and whether the normaliser is wanted
    dropout = rest[0] if rest else named.get("dropout_p", 0.0)
    causal = rest[1] if len(rest) > 1 else named.get("is_causal", False)
    return bound(query, key, value, attn_mask, dropout, causal, named.get("scale"))


def four(x: Tensor) -> Tensor:
    """(..., L, K) as (B, H, L, K): a single head has none of its own."""
    x = x.detach()
    return x if x.dim() == 4 else x.reshape(-1, 1, *x.shape[-2:]) if x.dim() == 3 else x[None, None]


def changed(kept: RecordedCall, **rule: Any) -> RecordedCall:
    """The same call under another rule: what a wrong recomputation would take it for."""
    return replace(kept, rule=replace(kept.rule, **rule))
