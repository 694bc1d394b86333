"""Scores of the vocabulary: float32 sums whatever the weights are; the oracle is float64."""

from __future__ import annotations

import pytest
import torch

from transom.inference.onednn_weights import PackedVocabulary
from transom.model.losses import cross_entropy
from transom.model.scores import multiplies_bfloat16, scores


def case(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weights, bias, and the scores in float64; scores are of size 20."""
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, 96, generator=generator).to(dtype)
    weight = (2 * torch.randn(5000, 96, generator=generator)).to(dtype)
    bias = torch.randn(5000, generator=generator)
    return hidden, weight, bias, hidden.double() @ weight.double().T + bias.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("n", [1, 3, 40])
def test_scores_are_summed_and_kept_in_float32(n: int, dtype: torch.dtype) -> None:
    hidden, weight, bias, exact = case(n, dtype)
    found = scores(hidden, weight, bias)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)  # bfloat16: steps of 0.06 to 0.25


@pytest.mark.parametrize("n", [1, PackedVocabulary.FEW, PackedVocabulary.FEW + 1])
def test_packed_scores_are_the_same(n: int) -> None:
    if not multiplies_bfloat16():
        pytest.skip("this machine does not multiply bfloat16")
    hidden, weight, bias, exact = case(n, torch.bfloat16)
    found = PackedVocabulary(weight, bias)(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-3)


def test_the_loss_in_bfloat16_is_that_of_exact_scores() -> None:
    hidden, weight, bias, exact = case(64, torch.bfloat16)
    targets = torch.arange(64)
    exact_loss = torch.nn.functional.cross_entropy(exact, targets, reduction="sum")
    with torch.no_grad():
        loss = cross_entropy(hidden, weight, targets, bias=bias)
    assert abs(float(loss) - float(exact_loss)) < 1e-3 * 64**0.5


def test_the_gradient_of_scores_is_that_of_the_product() -> None:
    hidden, weight, bias, _ = case(4, torch.bfloat16)
    given = [x.requires_grad_() for x in (hidden, weight, bias)]
    ours = torch.autograd.grad(scores(*given).square().sum() / 1000, given)
    wide = [x.detach().double().requires_grad_() for x in given]
    theirs = torch.autograd.grad((wide[0] @ wide[1].T + wide[2]).square().sum() / 1000, wide)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 0.01
