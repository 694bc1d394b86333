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


def given_encoder() -> Transformer:
    shape = dict(vocab_size=50, dim=16, n_layers=3, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=24)
    parts = dict(max_len=16, kind="encoder", position="learned", segments=2, embed_norm=True, norm="layer")
    head = dict(gated=False, norm_position="after", head="classify", labels=("a", "b"), qkv_bias=True)
    return Transformer(ModelConfig(**shape, **parts, **head))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_lower_layers_and_a_new_head_have_rates_of_their_own(name: str) -> None:
    """Torch's own AdamW over groups that are made by hand; Muon's matrices as a share of a step at rate 1."""
    decay, lr, head_lr, matrix_lr = 0.8, 1e-3, 5e-3, 2e-3
    chosen = OptimSettings(name=name, layer_decay=decay, head_lr=head_lr)  # type: ignore[arg-type]
    ours, theirs, plain = given_encoder(), given_encoder(), given_encoder()
    moving = Optimizers(ours, chosen, Rates(lr, matrix_lr))
    even = Optimizers(plain, OptimSettings(name=name), Rates(lr, matrix_lr))  # type: ignore[arg-type]
    groups, share = [], {}
    for at, weight in theirs.named_parameters():
        depth = {"layers.2": 1, "layers.1": 2, "layers.0": 3}.get(at[:8], 4 if "embed" in at else 0)
        share[at] = head_lr / lr if at.startswith("head") else decay**depth
        matrix = weight.ndim == 2 and "embed" not in at and at != "head.out.weight"
        pulled = 0.1 if weight.ndim == 2 else 0.0
        groups.append({"params": [weight], "lr": (matrix_lr if matrix else lr) * share[at] * 0.5,
                       "weight_decay": pulled})  # fmt: skip
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    before = {at: weight.detach().clone() for at, weight in ours.named_parameters()}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for one, other, third in zip(*(net.parameters() for net in (ours, theirs, plain)), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad, third.grad = one.grad.clone(), one.grad.clone()
        for optimizers in (moving, even):
            optimizers.set_factor(0.5)
            optimizers.step()
        adamw.step()
        if name == "muon":
            break  # from the second step on the weights, and what pulls at them, are others
    by_muon = {moving.names[id(weight)] for part in moving.parts[:-1] for g in part.param_groups
               for weight in g["params"]}  # fmt: skip
    assert len(by_muon) == (19 if name == "muon" else 0)
    for (at, one), other, third in zip(
        ours.named_parameters(), theirs.parameters(), plain.parameters(), strict=True
    ):
        if at in by_muon:
            moved, evenly = one - before[at], third - before[at]
            torch.testing.assert_close(moved, share[at] * evenly, rtol=1e-4, atol=5e-7)
        else:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-7)
