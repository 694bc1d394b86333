"""Scores of every token of the vocabulary: products of hidden states with a matrix, summed in float32.

A product in bfloat16 is summed in float32 too, but written in steps of 1/256 of itself: a score of 16 by
0.06, which a log-probability feels as much as a choice between two tokens does. So it is written twice: the
product, and what is missing to it, which is the same product with what is there already taken off before it
is rounded. That costs a second product and no float32 copy of the matrix. Read next: losses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 4096
"""Tokens whose row of the matrix is widened at a time, where no product in two parts is to be had."""


def scores(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden (..., D), weight (V, D) and bias (V,) of any type -> (..., V) float32."""
    if hidden.dtype.itemsize >= 4:
        return rounded_scores(hidden, weight, bias)
    found: Tensor = _Product.apply(hidden, weight)  # type: ignore[assignment]
    return found if bias is None else found + bias.float()


def rounded_scores(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same by one product in the type of `hidden`: of 16 bits, enough for a gradient, which is rounded to
    them anyway.

    A second product would cost a step of six layers 3% at 4,096 tokens and more at more.
    """
    return F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)).float()


class _Product(torch.autograd.Function):
    """`wide_product` with the gradient of the product in the type of `hidden`."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return wide_product(hidden, weight.to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0].to(hidden.dtype)
        of_weight = grad.flatten(0, -2).T @ hidden.flatten(0, -2)
        return grad @ weight.to(hidden.dtype), of_weight.to(weight.dtype)


def wide_product(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (..., D) and weight (V, D), both of the same 16-bit type -> (..., V) float32."""
    if hidden.is_cuda:
        return torch.mm(hidden.flatten(0, -2), weight.T, out_dtype=torch.float32).view(*hidden.shape[:-1], -1)
    if hidden.dtype == torch.bfloat16 and hidden.is_cpu and multiplies_bfloat16():
        return in_two_parts(hidden, weight)
    return torch.cat([F.linear(hidden.float(), piece.float()) for piece in weight.split(PIECE)], dim=-1)


def in_two_parts(hidden: Tensor, weight: Tensor) -> Tensor:
    """The product as float32 from two in bfloat16; weight (V, D), as it is or laid out by oneDNN."""
    linear = torch.ops.mkldnn._linear_pointwise
    most = linear(hidden, weight, None, "none", [], "")
    rest = linear.binary(hidden, most, weight, None, "sub")
    return most.float().add_(rest)


def multiplies_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 on this CPU."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
