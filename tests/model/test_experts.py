"""Mixture of experts: the sorted grouped product against one token at a time; routing, balance, load."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.model.config import Experts, ModelConfig
from transom.model.experts import ROWS, MixtureOfExperts, grouped
from transom.model.initialize import initialize
from transom.model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=40, dim=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=32, max_len=32
)


def mixture(experts: Experts, gated: bool = True) -> MixtureOfExperts:
    mixed = MixtureOfExperts(CONFIG.with_(gated=gated), experts).double()
    initialize(mixed, 1, seed=1)
    with torch.no_grad():  # scores far enough apart that every expert is somebody's choice
        mixed.router.weight.mul_(100)
        if mixed.router.correction is not None:
            mixed.router.correction.normal_(0, 0.2)
    return mixed.eval()


KINDS = [
    Experts(*sizes, n_shared=shared, score=score, normalize=normalize, scale=1.7, balance=balance)
    for sizes, shared, score, normalize, balance in itertools.product(
        [(4, 1, 8), (6, 3, 8), (4, 4, 8)], [0, 2], ["softmax", "sigmoid"], [True, False], ["bias", "none"]
    )
]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("experts", KINDS, ids=str)
def test_grouped_equals_one_token_at_a_time(experts: Experts, gated: bool) -> None:
    check_against_plain(experts, gated, (3, 7))


@pytest.mark.parametrize("n_tokens", [ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])
def test_rows_that_fill_up_an_expert_change_nothing(n_tokens: int) -> None:
    check_against_plain(KINDS[0], True, (1, n_tokens))


def check_against_plain(experts: Experts, gated: bool, shape: tuple[int, int]) -> None:
    """Forward and gradients are those of the twin that goes token by token."""
    mixed = mixture(experts, gated)
    x = torch.randn(*shape, 16, dtype=torch.float64, requires_grad=True)
    fast, plain = mixed(x), mixed.mixed_plain(x)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)
    learned = [x, *mixed.parameters()]
    pull = torch.randn_like(fast)
    for a, b in zip(*(torch.autograd.grad(y, learned, pull) for y in (fast, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@settings(max_examples=scaled(60))
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), seed=st.integers(0, 99))
def test_grouped_product_equals_a_product_of_each_row(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(counts), 5, 3, generator=generator, dtype=torch.float64)
    rows = torch.randn(sum(counts), 3, generator=generator, dtype=torch.float64)
    owner = [expert for expert, count in enumerate(counts) for _ in range(count)]
    expected = torch.stack([weights[expert] @ row for expert, row in zip(owner, rows, strict=True)])
    torch.testing.assert_close(grouped(rows, weights, torch.tensor(counts)), expected)


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    """Dropless: what others send to an expert never pushes a token out of it."""
    mixed = mixture(Experts(4, 2, 8))
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    whole = mixed(x)
    for place in range(9):
        torch.testing.assert_close(mixed(x[:, place : place + 1])[:, 0], whole[:, place], rtol=0, atol=1e-12)


def test_all_tokens_may_choose_one_expert() -> None:
    mixed = mixture(Experts(4, 1, 8, balance="bias"))
    assert mixed.router.correction is not None
    mixed.router.correction.copy_(torch.tensor([0.0, 0.0, 100.0, 0.0]))
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(mixed(x), mixed.mixed_plain(x), rtol=0, atol=1e-10)
    mixed.train()(x)
    assert mixed.router.load.tolist() == [0.0, 0.0, 10.0, 0.0]


def test_only_training_passes_are_counted() -> None:
    mixed = mixture(Experts(4, 2, 8))
    mixed.eval()(torch.randn(2, 5, 16, dtype=torch.float64))
    assert mixed.router.load.sum() == 0
    mixed.train()(torch.randn(2, 5, 16, dtype=torch.float64))
    assert mixed.router.load.sum() == 2 * 5 * 2


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_balancing_evens_a_skewed_load_and_nothing_else_does(balance: str) -> None:
    """Tokens of one kind crowd the experts that like them; balanced, the largest load comes near the mean."""

    def violation(how: str) -> float:
        torch.manual_seed(0)
        experts = Experts(8, 2, 8, score="softmax" if how == "loss" else "sigmoid", balance=how,  # type: ignore[arg-type]
                          balance_rate={"bias": 0.02, "loss": 1.0}.get(how, 0.0))  # fmt: skip
        mixed = MixtureOfExperts(CONFIG, experts)
        initialize(mixed, 1, seed=0)
        direction = torch.randn(16)
        optimizer = torch.optim.Adam(mixed.router.parameters(), lr=0.02)
        load = torch.zeros(8)
        for step in range(300):
            mixed.router.load.zero_()
            x = torch.randn(1, 256, 16) + 2 * direction
            mixed.train()(x)
            if mixed.router.balance_loss is not None:
                optimizer.zero_grad()
                mixed.router.balance_loss.backward()
                optimizer.step()
            mixed.router.rebalance(mixed.router.load)
            load = load + mixed.router.load if step >= 250 else load
        return float(load.max() / load.mean() - 1)

    assert violation(balance) < 0.3 < violation("none")


def test_the_bias_chooses_but_does_not_mix() -> None:
    mixed = mixture(Experts(4, 4, 8, balance="bias"))  # all are chosen: the bias can change nothing
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    before = mixed(x)
    assert mixed.router.correction is not None
    mixed.router.correction.normal_()
    torch.testing.assert_close(mixed(x), before, rtol=0, atol=1e-12)


def test_active_parameters_leave_out_the_idle_experts() -> None:
    model = Transformer(CONFIG.with_(experts=Experts(8, 2, 24, n_shared=1, first_dense=1)))
    one = 3 * 16 * 24
    assert model.n_parameters - model.n_active_parameters == 6 * one
    dense = Transformer(CONFIG.with_(ffn_dim=3 * 24))
    router = 8 * 16
    first = 3 * 16 * (3 * 24 - 32)  # the first layer keeps its own width
    assert model.n_active_parameters == dense.n_parameters - first + router
