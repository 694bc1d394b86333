"""The norms, forward and backward, against their formulas."""

from __future__ import annotations

import pytest
import torch

from transom.model.layers import LayerNorm, RMSNorm


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 4, 8)])
def test_rms_norm_and_its_gradient_follow_the_formula(shape):
    norm = RMSNorm(shape[-1], eps=1e-2).double()
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    formula = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), formula)
    slope = torch.randn_like(x)
    ours, theirs = (torch.autograd.grad(y, (x, norm.weight), slope) for y in (norm(x), formula))
    torch.testing.assert_close(ours, theirs)


def test_rms_norm_passes_finite_differences():
    norm = RMSNorm(6, eps=1e-3).double()
    assert torch.autograd.gradcheck(norm, torch.randn(4, 6, dtype=torch.float64, requires_grad=True))


def test_the_value_is_the_same_with_and_without_gradients():
    norm, x = RMSNorm(32, eps=1e-6), torch.randn(7, 32).bfloat16()
    with_gradient = norm(x.clone().requires_grad_())
    assert torch.equal(with_gradient, norm(x))


def test_layer_norm_follows_the_formula():
    norm = LayerNorm(16, eps=1e-5)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = torch.randn(5, 16)
    spread = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), (x - x.mean(-1, keepdim=True)) / spread * norm.weight + norm.bias)
