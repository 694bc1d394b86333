"""Muon against its plain twin, the division of weights among optimizers, and their state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.model.build import build
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer
from transom.settings import ModelSettings, OptimSettings
from transom.training.architecture import CAN, model_config
from transom.training.muon import Muon, orthogonalize, orthogonalize_plain
from transom.training.optimizers import Optimizers, Rates


def model() -> Transformer:
    return Transformer(ModelConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8,
                                   ffn_dim=24, max_len=16))  # fmt: skip


@settings(max_examples=scaled(25))
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), n=st.integers(1, 4), seed=st.integers(0, 99))
def test_batched_iterations_equal_the_plain_ones(rows: int, columns: int, n: int, seed: int) -> None:
    stack = torch.randn(n, rows, columns, generator=torch.Generator().manual_seed(seed))
    fast = orthogonalize(stack)
    plain = torch.stack([orthogonalize_plain(matrix) for matrix in stack])
    torch.testing.assert_close(fast, plain, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_near_one(dtype: torch.dtype) -> None:
    stack = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(orthogonalize(stack, dtype=dtype).float())
    assert values.min() > 0.4 and values.max() < 1.3


def test_a_step_of_muon_is_what_its_formula_says() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((8, 12), (12, 8), (8, 8))
    ]
    before = [w.detach().clone() for w in weights]
    momenta = [torch.zeros_like(w) for w in before]
    optimizer = Muon(weights, lr=0.1, momentum=0.9, weight_decay=0.2)
    for _ in range(2):
        for i, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=generator)
            momenta[i] = 0.9 * momenta[i] + 0.1 * weight.grad
            ahead = 0.1 * weight.grad + 0.9 * momenta[i]
            tall = weight.shape[0] > weight.shape[1]
            update = orthogonalize_plain(ahead.T if tall else ahead)
            update = update.T if tall else update
            before[i] = before[i] * (1 - 0.1 * 0.2) - 0.1 * 0.2 * max(weight.shape) ** 0.5 * update
        optimizer.step()
    for weight, expected in zip(weights, before, strict=True):
        torch.testing.assert_close(weight.detach(), expected, rtol=2e-3, atol=2e-3)


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
PLAIN, GATED = ATTENTION | {"up_proj", "down_proj"}, ATTENTION | {"gate_proj", "up_proj", "down_proj"}
RECURRENT = {"weight_ih_l0", "weight_hh_l0"}
LOOKS_BACK = RECURRENT | {"bridge", "q_proj", "k_proj", "mix_proj"}
TABLES = {"embed", "position_embed", "segment_embed"}
MOVED_BY: dict[tuple[str, str, int], tuple[set[str], set[str]]] = {
    **{("decoder", task, 0): (GATED, {"embed"}) for task in ("lm", "sft", "preference")},
    ("decoder", "lm", 4): (GATED, {"embed", "router"}),
    ("encoder", "mlm", 0): (PLAIN | {"dense"}, TABLES),
    ("encoder", "classify", 0): (PLAIN | {"dense"}, TABLES | {"out"}),
    ("encoder", "embed", 0): (PLAIN, TABLES),
    ("encoder-decoder", "translate", 0): (PLAIN, {"embed"}),
} | {
    (cell, task, 0): (LOOKS_BACK, {"embed", "score_proj"}) if task == "translate" else (RECURRENT, {"embed"})
    for cell in ("rnn", "lstm", "gru")
    for task in CAN[cell]
}
"""What Muon moves of each member, and what of two dimensions AdamW moves, by the part's name."""


def test_the_table_names_every_member_and_task() -> None:
    assert {(kind, task) for kind, task, _ in MOVED_BY} == {(k, task) for k in CAN for task in CAN[k]}


@pytest.mark.parametrize(("kind", "task", "experts"), MOVED_BY)
def test_muon_moves_every_matrix_and_adamw_the_rest(kind: str, task: str, experts: int) -> None:
    asked = ModelSettings(kind=kind, dim=32, n_layers=2, max_len=8, experts=experts)  # type: ignore[arg-type]
    labels = ("a", "b") if task == "classify" else ()
    with torch.device("meta"):
        net = build(model_config(asked, 50, task, labels, pad_id=0, eos_id=1, start_id=0))
    muon, adamw = Optimizers(net, OptimSettings(), Rates(1e-3, 1e-2)).parts
    of = {
        part: [weight for group in part.param_groups for weight in group["params"]] for part in (muon, adamw)
    }
    assert sorted(map(id, of[muon] + of[adamw])) == sorted(map(id, net.parameters()))
    names = {
        id(weight): name.removesuffix(".weight").split(".")[-1] for name, weight in net.named_parameters()
    }
    matrices, tables = MOVED_BY[kind, task, experts]
    assert {names[id(weight)] for weight in of[muon]} == matrices
    assert {names[id(weight)] for weight in of[adamw] if weight.ndim > 1} == tables


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_state_goes_out_and_in_unchanged(name: str) -> None:
    chosen = OptimSettings(name=name)  # type: ignore[arg-type]
    first, second = model(), model()
    one, two = (Optimizers(net, chosen, Rates(1e-3, 1e-2)) for net in (first, second))

    def step(net: Transformer, optimizers: Optimizers, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight in net.parameters():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizers.set_factor(0.5)
        optimizers.step()

    step(first, one, 0)
    second.load_state_dict(first.state_dict())
    two.load_state(one.state())
    step(first, one, 1)
    step(second, two, 1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
