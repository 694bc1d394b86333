"""Recorded gradients are autograd's own, branches add up, and recording changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import transom
from transom.errors import Refused
from transom.insight.gradient_recorder import record_gradients
from transom.model.build import build
from transom.model.config import Experts, ModelConfig

SMALL = ModelConfig(60, 32, 2, 4, 2, head_dim=8, ffn_dim=48, max_len=64)
TOKENS = torch.randint(3, 60, (2, 13), generator=torch.Generator().manual_seed(1))


def loss_of(net: nn.Module, **named: object) -> Tensor:
    return net.logits(net(TOKENS, **named)).square().mean()


def test_gradients_are_autograd_s_and_branches_add_up() -> None:
    net = build(SMALL)
    with record_gradients(net) as kept:
        loss_of(net).backward()
    block = net.layers[0]
    x = net.embed(TOKENS).detach().requires_grad_()
    above = net.layers[1](block(x, *_arguments(net)), *_arguments(net))
    net.logits(net.final_norm(above)).square().mean().backward()
    torch.testing.assert_close(kept.resid(0), x.grad)
    total = kept.resid(0, "after") + kept.branch(0, "ffn") + kept.branch(0, "attention")
    torch.testing.assert_close(kept.resid(0), total)
    assert kept.branch(0, "attention").norm() > 0
    assert kept.norms().shape == (3, 2, 13)
    torch.testing.assert_close(kept.norms()[0], kept.resid(0).norm(dim=-1))


def _arguments(net: nn.Module) -> tuple:
    from transom.model.attend import Rule
    from transom.model.positions import rotation

    rotary = rotation(torch.arange(13)[None], net.frequencies, torch.float32)
    return Rule(causal=True), rotary, None


def test_figures_of_a_training_step() -> None:
    net = build(
        SMALL.with_(experts=Experts(n_experts=4, n_active=2, ffn_dim=16, first_dense=1), activation="relu")
    )
    with torch.no_grad():
        net.layers[0].ffn.up_proj.weight[:12] = 0  # a quarter of the units
    with record_gradients(net) as kept:
        loss_of(net).backward()
    figures = kept.figures()
    assert set(figures) == {"grad_norm", "attention_entropy", "dead_units", "router_load"}
    assert set(figures["grad_norm"]) == {"0", "1"}
    assert figures["dead_units"]["0"] >= 0.25
    assert kept.load(1).sum() == 1 and 0.25 <= figures["router_load"]["1"] <= 0.5
    with transom.look(net) as seen:
        net(TOKENS)
    rows = sorted({round(i * 12 / 7) for i in range(8)})
    expected = torch.special.entr(seen.attention(0).weights).sum(-1)[:, rows].mean()
    assert figures["attention_entropy"]["0"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_step_learns_the_same(dtype: torch.dtype) -> None:
    plain, recorded = build(SMALL), build(SMALL)
    loss_of(plain, dtype=dtype).backward()
    with record_gradients(recorded) as kept:
        loss_of(recorded, dtype=dtype).backward()
    for a, b in zip(plain.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert "attention_entropy" in kept.figures()


def test_a_point_without_gradient_is_refused() -> None:
    net = build(SMALL)
    with record_gradients(net) as kept, torch.no_grad():
        net(TOKENS)
    with pytest.raises(Refused, match="no gradient passed"):
        kept.resid(0)
    after = build(SMALL.with_(norm_position="after", norm="layer"))
    with record_gradients(after) as kept:
        loss_of(after).backward()
    with pytest.raises(Refused, match="norms after the sum"):
        kept.branch(0, "ffn")
    with pytest.raises(Refused, match="no router"):
        kept.load(0)
