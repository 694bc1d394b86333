"""The loss by runs of logits: what it holds, and what it leaves out where nothing learns it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from transom.model import losses
from transom.model.losses import cross_entropy, cross_entropy_plain, run_rows

N, D, V = 300, 32, 700


def parts(**learn: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((N, D), (V, D), (V,)))
    for name, tensor in {"hidden": hidden, "weight": weight, "bias": bias}.items():
        tensor.requires_grad_(learn.get(name, True))
    return hidden, weight, bias, torch.randint(0, V, (N,))


def test_a_run_is_half_as_many_rows_as_the_model_is_wide_where_the_vocabulary_is_large() -> None:
    assert run_rows(4096, 192) == losses.RUN_BYTES // (4 * 4096)
    assert run_rows(49152, 576) == 288
    assert run_rows(10**9, 1) == 1


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("hidden",), ("bias",), ("weight",)])
def test_what_does_not_learn_has_no_gradient_and_the_rest_has_the_same(
    frozen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "RUN_BYTES", 4 * V * 64)
    found = []
    for loss in (cross_entropy, cross_entropy_plain):
        hidden, weight, bias, targets = parts(**dict.fromkeys(frozen, False))
        value = loss(hidden, weight, targets, bias=bias, smoothing=0.1)
        value.backward()
        found.append((value, hidden.grad, weight.grad, bias.grad))
    for ours, plain in zip(*found, strict=True):
        assert (ours is None) == (plain is None)
        if ours is not None and plain is not None:
            torch.testing.assert_close(
                ours.double(), plain.double(), rtol=1e-4, atol=1e-5
            )  # logits are float32
    assert sum(one is None for one in found[0]) == len(frozen)


def test_an_evaluation_computes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, targets = parts()
    made: list[object] = []
    real = torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda *args, **more: made.append(args) or real(*args, **more))
    with torch.no_grad():
        cross_entropy(hidden, weight, targets, bias=bias)
    assert not made
    cross_entropy(hidden, weight, targets, bias=bias)
    assert len(made) == 2
