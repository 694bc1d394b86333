"""Measured twins for a CPU: skip them on a first reading, each computes what its plain form does.

`layers` and `attend` ask here where a tensor `is_cpu`, and nowhere else; this file decides which way pays.
Each twin tells what it was measured at, and its plain form is its oracle.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .attend import Rule

LEVELS = 256
"""A byte decides what dropout does with each activation, so a rate is met to the nearest 1/256."""

LONGEST = 512
"""Rows longer than this go through the fused kernel in both directions."""
BLOCK_QUERIES = 256
BLOCK_BYTES = 2 << 20

KERNEL_SPAN = 512
"""Slots that the kernel takes at a time, from the first on."""
SPANS = (64, 128, 256, KERNEL_SPAN)
"""How many of the last 512 a query is computed over."""
TOGETHER = 4
"""A block of fewer queries is multiplied in another order."""


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zero about `rate` of x and scale the rest: one random number of 64 bits serves eight activations.

    PyTorch draws one for each, in one thread. Measured for a translator of width 256: a fifth of the training
    step before, a fiftieth now.
    """
    dropped = min(LEVELS - 1, max(1, round(rate * LEVELS)))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * kept.to(x.dtype).mul_(LEVELS / (LEVELS - dropped))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis, by what is fastest for a gradient, for bfloat16, or for the rest."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return]
    if x.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        return _rms_norm_by_layer_norm(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def _rms_norm_by_layer_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The layer norm of x and -x side by side, whose mean is 0: four operators, where RMS norm takes ten.

    For bfloat16 alone: in float32 it is some units in the last place further off.
    """
    both = torch.cat((x, -x), dim=-1)
    return F.layer_norm(both, both.shape[-1:], eps=eps)[..., : x.shape[-1]] * weight


class _RMSNorm(torch.autograd.Function):
    """PyTorch's forward pass with a backward pass that reads memory half as often as its own on a CPU.

    Measured for 4,096 rows of 384 in bfloat16, forward and backward: 3.2 ms against 6.5 ms.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, weight.shape, weight, eps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # y = n w with n = x r and r = (mean(x^2) + eps)^-1/2, so dx = r (g w - n mean(g n w)).
        x, weight = ctx.saved_tensors
        width, wide = x.shape[-1], torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = norm.square_().div_(width).add_(ctx.eps).rsqrt_().to(x.dtype).view(-1, 1)
        normal = x.reshape(-1, width) * inverse
        grad = grads[0].reshape(-1, width)
        both = grad * normal
        grad_weight = both.sum(0, dtype=wide).to(weight.dtype)
        shared = (both @ weight).div_(-width)[:, None]
        grad_x = (grad * weight).addcmul_(normal, shared).mul_(inverse)
        return grad_x.view_as(x), grad_weight, None


# Attention


def attention(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor | None:
    """`attend` without a cap, where something beats or mends the fused kernel; None where nothing does."""
    if rule.bias is not None:
        return None
    if pays(query, key):
        n_queries, n_keys, n_heads = query.shape[1], key.shape[1], query.shape[2]
        key, value = (_one_per_query(x, n_heads) for x in (key, value))
        mask, causal = rule.mask(n_queries, n_keys, query.device), rule.is_plainly_causal(n_queries, n_keys)
        return blocked_attention(query, key, value, mask, causal, rule.scale_of(query))
    wants_gradient = torch.is_grad_enabled() and query.requires_grad
    if rule.causal and rule.documents is None and aligns(query.device, query.dtype) and not wants_gradient:
        return aligned_attention(query, key, value, rule)
    return None


def _one_per_query(x: Tensor, n_heads: int) -> Tensor:
    """Repeat grouped heads (B, M, G, K) so that each query head has its own: (B, M, H, K)."""
    return x if x.shape[2] == n_heads else x.repeat_interleave(n_heads // x.shape[2], dim=2)


def pays(query: Tensor, key: Tensor) -> bool:
    """Whether blocks beat the fused kernel here: training in bfloat16 on a CPU, short rows."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and query.requires_grad
        and 1 < query.shape[1] <= LONGEST
        and key.shape[1] <= LONGEST
    )


def blocked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """The fused kernel forward, batched products backward: query (B, L, H, K), key and value (B, M, H, K),
    mask (B or 1, 1, L, M) bool or None -> (B, L, H, K); `causal` says that the mask is the plain triangle.

    PyTorch's kernel is good forward, but its backward pass in bfloat16 runs far below the speed of the matrix
    units. Here that pass recomputes the weights block by block, as the kernel does, with one batched product
    for each of its five steps (Dao et al. 2022, algorithm 4); a block is sized to stay in cache. Measured
    backward and forward, two cores with AMX, 16 rows of 256, 6 heads of 64: 16 ms against 28 ms; 64 tokens:
    0.9 against 3.8 ms; from 1,024 tokens on the kernel wins. The oracle is `attend.attend_plain`.
    """
    return _BlockedAttention.apply(query, key, value, mask, causal, scale)  # type: ignore[no-any-return]


class _BlockedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.mask, ctx.scale = mask, scale
        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        # The kernel skips what its own causal flag hides; a mask it has to read.
        kernel_mask = None if causal else mask
        mixed = F.scaled_dot_product_attention(
            *heads_first, attn_mask=kernel_mask, is_causal=causal, scale=scale
        )
        return mixed.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        batch, n_queries, n_heads, _ = grads[0].shape
        query, key, value, grad = (_flat(x) for x in (*ctx.saved_tensors, grads[0]))
        n_keys = key.shape[1]
        hidden = None if ctx.mask is None else _additive(ctx.mask, query.dtype)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
        rows = min(n_queries, BLOCK_QUERIES)
        items = max(1, BLOCK_BYTES // (n_heads * rows * n_keys * query.element_size()))
        for item in range(0, batch, items):
            here = slice(item * n_heads, (item + items) * n_heads)
            for start in range(0, n_queries, rows):
                block = slice(start, start + rows)
                q, k, v, g = query[here, block], key[here], value[here], grad[here, block]
                scores = _scores(q, k, hidden, slice(item, item + items), block, n_heads, ctx.scale)
                pattern = scores.softmax(-1)
                grad_pattern = torch.bmm(g, v.transpose(1, 2))
                grad_scores = torch.ops.aten._softmax_backward_data(grad_pattern, pattern, -1, pattern.dtype)
                grad_value[here].baddbmm_(pattern.transpose(1, 2), g)
                grad_query[here, block] = torch.bmm(grad_scores, k)
                grad_key[here].baddbmm_(grad_scores.transpose(1, 2), q)
        for grad in (grad_query, grad_key):
            grad.mul_(ctx.scale)
        return (*(_unflat(x, n_heads) for x in (grad_query, grad_key, grad_value)), None, None, None)


def _scores(
    query: Tensor, key: Tensor, hidden: Tensor | None, items: slice, block: slice, n_heads: int, scale: float
) -> Tensor:
    """Scaled dot products of one block, (items * H, R, M), hidden slots at minus infinity."""
    if hidden is None:
        return torch.bmm(query, key.transpose(1, 2)).mul_(scale)
    part = hidden[:, block]
    if len(part) > 1:  # a mask of its own for each row of the batch: one copy a head
        part = part[items].repeat_interleave(n_heads, dim=0)
    return torch.baddbmm(part, query, key.transpose(1, 2), alpha=scale)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B or 1, 1, L, M) bool -> (B or 1, L, M): 0 where a query may look, minus infinity elsewhere."""
    zeros = torch.zeros(mask[:, 0].shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(~mask[:, 0], float("-inf"))


def _flat(x: Tensor) -> Tensor:
    """(B, L, H, K) -> (B * H, L, K), contiguous."""
    return x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _unflat(x: Tensor, n_heads: int) -> Tensor:
    """(B * H, L, K) -> (B, L, H, K)."""
    return x.view(-1, n_heads, *x.shape[1:]).transpose(1, 2)


def aligns(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether keys of this kind are read so, where no gradient is wanted."""
    return device.type == "cpu" and dtype == torch.bfloat16


def reach(slot: int) -> int:
    """Over how many slots, from the first on, the query of a slot is computed."""
    whole, left = divmod(slot, KERNEL_SPAN)
    return whole * KERNEL_SPAN + next(span for span in SPANS if left < span)


def aligned_attention(query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """`attend` of a causal rule without documents, bias or cap, with the bits of a query read alone: query
    (B, L, H, K), key (B, M, G, K).

    In float32 the order of a sum costs a millionth; in bfloat16 the smallest difference is rounded to a whole
    step somewhere, and a few layers later to as much as bfloat16 errs at all: a token's log-probability by
    0.2 nats. What is written beside others would then not be what a plain pass reads again. PyTorch's kernel
    sums in an order that depends on how many slots it is given and on whether a block has fewer than four
    queries. So a query is always computed over as many slots as its own place says (`reach`), those behind it
    hidden, and in blocks of four and more.
    A rule with `positions` must be of queries with one `reach`, which M is.
    """
    n_queries, n_keys = query.shape[1], key.shape[1]
    before, first, mixed = n_keys - n_queries, 0, []
    while first < n_queries:
        end, last = n_keys, n_queries
        if rule.positions is None:
            end = reach(before + first)
            last = min(end - before, n_queries)
        asked = _filled(query[:, first:last], -(last - first) % TOGETHER)
        over = (_filled(x[:, :end], max(0, end - n_keys)).transpose(1, 2) for x in (key, value))
        found = F.scaled_dot_product_attention(
            asked.transpose(1, 2), *over, attn_mask=_hidden(rule, slice(first, last), query, n_keys, end),
            scale=rule.scale, enable_gqa=query.shape[2] != key.shape[2],
        )  # fmt: skip
        mixed.append(found[:, :, : last - first])
        first = last
    return torch.cat(mixed, dim=2).transpose(
        1, 2
    )  # `insight.attention_recorder` takes this for the end of the call


def _filled(x: Tensor, more: int) -> Tensor:
    """(B, N, ...) with zeros behind: (B, N + more, ...)."""
    return F.pad(x, (0, 0, 0, 0, 0, more)) if more else x


def _hidden(rule: Rule, rows: slice, query: Tensor, n_keys: int, end: int) -> Tensor:
    """0 where some of the queries look and minus infinity elsewhere, (B or 1, 1, R, end), R filled up."""
    place = (rows.start, rows.stop, n_keys)
    found = rule._masks.get(place)
    if found is None:
        seen = rule.visible(torch.arange(rows.start, rows.stop), query.shape[1], n_keys)
        if seen is None:  # every key, as for the last token
            seen = torch.ones(1, 1, rows.stop - rows.start, n_keys, dtype=torch.bool)
        seen = F.pad(seen[..., :end], (0, max(0, end - n_keys)))
        filled = -(rows.stop - rows.start) % TOGETHER
        seen = torch.cat((seen, seen[:, :, -1:].expand(-1, -1, filled, -1)), dim=2)
        found = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, -math.inf)
        rule._masks[place] = found
    return found
