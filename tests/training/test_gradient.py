"""Why averaging averages is wrong: pieces of a step add up to the step, however it is cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from transom.data.batches import TextPairBatch
from transom.data.order import Batch
from transom.model.build import build
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer
from transom.training.gradient import clip, step_seed, take_gradient
from transom.training.objectives import Contrast, LanguageModelling
from transom.training.parallelism import World


def model(**changes: object) -> Transformer:
    shape = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "head_dim": 8,
             "ffn_dim": 24, "max_len": 16}  # fmt: skip
    return Transformer(ModelConfig(**{**shape, **changes}))  # type: ignore[arg-type]


def batch(rows: int = 8, uneven: bool = True) -> Batch:
    """Rows of which the later ones carry less loss: there the mean of means goes wrong."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(40, (rows, 17), generator=generator)
    targets = tokens[:, 1:].clone()
    if uneven:
        for row in range(rows):
            targets[row, : 2 * row % 16] = -100
    kept = (targets != -100).sum(1)
    return Batch(tokens[:, :-1].contiguous(), targets, None, None, torch.arange(rows), kept, kept)


def gradient_of(net: Transformer, whole: Batch, rows: int) -> tuple[float, dict[str, torch.Tensor]]:
    named = dict(net.named_parameters())
    taken = take_gradient(LanguageModelling(net), whole.split(rows), whole.n_targets, named, World(), 0, 0)
    return taken.loss, {
        name: weight.grad.clone() for name, weight in named.items() if weight.grad is not None
    }


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_accumulated_equals_unaccumulated(rows: int) -> None:
    net, whole = model(), batch()
    loss, grads = gradient_of(net, whole, 8)
    piecewise_loss, piecewise = gradient_of(net, whole, rows)
    assert piecewise_loss == pytest.approx(loss, rel=1e-6)
    for name, grad in grads.items():
        torch.testing.assert_close(piecewise[name], grad, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_targets() -> None:
    net, whole = model(), batch()
    loss, _ = gradient_of(net, whole, 3)
    logits = net.logits(net(whole.tokens))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), whole.targets.flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_over_an_epoch_every_target_counts_alike_however_few_share_its_step() -> None:
    """A step of 2 rows and one of 6: with the mean of both as the divisor they add up to one step of all."""
    net, whole = model(), batch(rows=8, uneven=False)
    named = dict(net.named_parameters())
    together = gradient_of(net, whole, 8)[1]
    total = {name: torch.zeros_like(weight) for name, weight in named.items()}
    parts = whole.split(2)
    for part in (parts[:1], parts[1:]):
        n_targets = sum(one.n_targets for one in part)
        take_gradient(
            LanguageModelling(net), part, n_targets, named, World(), 0, 0, divisor=whole.n_targets / 2
        )
        for name, weight in named.items():
            total[name] += weight.grad / 2  # type: ignore[operator]
    for name, gradient in total.items():
        assert torch.allclose(gradient, together[name], atol=1e-6)


def test_packed_equals_unpacked() -> None:
    """Two documents in one row, kept apart, teach what they teach in rows of their own."""
    net = model()
    tokens = torch.randint(40, (1, 17), generator=torch.Generator().manual_seed(3))
    inputs, targets = tokens[:, :-1], tokens[:, 1:].clone()
    targets[0, 6] = -100  # where the first document ends; in a row of its own it has no next token
    kept = (targets != -100).sum(1)
    documents = torch.tensor([[0] * 7 + [1] * 9], dtype=torch.int32)
    positions = torch.tensor([[*range(7), *range(9)]])
    packed = Batch(inputs, targets, documents, positions, torch.arange(1), kept, kept)
    _, together = gradient_of(net, packed, 1)

    rows, wanted = torch.zeros(2, 9, dtype=torch.long), torch.full((2, 9), -100)
    rows[0, :7], rows[1] = inputs[0, :7], inputs[0, 7:]
    wanted[0, :7], wanted[1] = targets[0, :7], targets[0, 7:]
    kept = (wanted != -100).sum(1)
    apart = Batch(rows, wanted, None, None, torch.arange(2), kept, kept)
    _, separately = gradient_of(net, apart, 2)
    assert packed.n_targets == apart.n_targets
    for name, grad in separately.items():
        torch.testing.assert_close(together[name], grad, rtol=1e-4, atol=1e-6)


def test_checkpointed_activations_change_nothing() -> None:
    whole = batch()
    plain, lean = model(dropout=0.2), model(dropout=0.2)
    lean.checkpoint_activations = True
    _, kept = gradient_of(plain, whole, 4)
    _, computed_again = gradient_of(lean, whole, 4)
    for name, grad in kept.items():
        torch.testing.assert_close(computed_again[name], grad)


def test_gradients_of_bf16_arithmetic_are_float32() -> None:
    net, whole = model(), batch()
    objective = LanguageModelling(net, torch.bfloat16)
    named = dict(net.named_parameters())
    taken = take_gradient(objective, whole.split(4), whole.n_targets, named, World(), 0, 0)
    assert {w.grad.dtype for w in named.values() if w.grad is not None} == {torch.float32}
    exact, _ = gradient_of(net, whole, 4)
    assert taken.loss == pytest.approx(exact, rel=1e-2)


def test_clipping_keeps_the_direction_and_bounds_the_norm() -> None:
    net, whole = model(), batch()
    named = dict(net.named_parameters())
    taken = take_gradient(LanguageModelling(net), [whole], whole.n_targets, named, World(), 0, 0)
    before = {name: w.grad.clone() for name, w in named.items() if w.grad is not None}
    clip(named, taken.norm, taken.norm / 4)
    norm = sum(w.grad.square().sum() for w in named.values() if w.grad is not None) ** 0.5
    assert float(norm) == pytest.approx(taken.norm / 4, rel=1e-4)
    for name, grad in before.items():
        torch.testing.assert_close(named[name].grad, grad / 4)
    clip(named, taken.norm, 0)
    assert torch.allclose(named["embed.weight"].grad, before["embed.weight"] / 4)  # type: ignore[arg-type]


def test_seeds_of_micro_batches_differ() -> None:
    seeds = {step_seed(0, s, m, r) for s in range(20) for m in range(5) for r in range(4)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 0, 0, 0) != step_seed(0, 0, 0, 0)


def test_a_batch_without_targets_scores_nothing() -> None:
    net, whole = model(), batch()
    silent = dataclasses.replace(
        whole, targets=torch.full_like(whole.targets, -100), row_targets=0 * whole.row_targets
    )
    assert net.loss(silent).item() == 0


def pairs(rows: int = 11) -> TextPairBatch:
    """Texts that belong together; two share a target, two are equal, one text stands on both sides."""
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randint(40, (rows, 12), generator=generator) for _ in range(2))
    other[3], other[7], one[7], one[5] = other[2], other[6], one[6], other[9]
    known: dict[bytes, int] = {}
    texts = [
        [known.setdefault(side[row].numpy().tobytes(), len(known)) for side in (one, other)]
        for row in range(rows)
    ]
    return TextPairBatch(one, None, other, None, torch.tensor(texts), torch.arange(rows))


def contrast(whole: TextPairBatch, rows: int) -> tuple[float, dict[str, torch.Tensor]]:
    net = build(ENCODER, 0).double().train()
    objective, named = Contrast(net, torch.float64), dict(net.named_parameters())
    taken = take_gradient(objective, whole.split(rows), whole.n_targets, named, World(), 0, 0)
    return taken.loss, {n: weight.grad for n, weight in named.items() if weight.grad is not None}


ENCODER = ModelConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=24,
                      max_len=16, kind="encoder", head="embed", pooling="mean", normalize=True)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 2, 4, 10])
def test_every_pair_of_a_step_is_a_negative_however_the_step_is_cut(rows: int) -> None:
    loss, grads = contrast(pairs(), 11)
    piecewise_loss, piecewise = contrast(pairs(), rows)
    assert piecewise_loss == pytest.approx(loss, rel=1e-6)
    whole = torch.cat([grad.flatten() for grad in grads.values()])
    apart = torch.cat([piecewise[name].flatten() for name in grads]) - whole
    assert whole.norm() > 0 and apart.norm() / whole.norm() < 1e-6, "vectors are float32"


def test_equal_texts_are_nobodys_negatives() -> None:
    """Written out: of pair i the candidates are its partner and what equals none of its texts."""
    net, whole = build(ENCODER, 0).double(), pairs()
    objective = Contrast(net, torch.float64)
    one, other = objective(whole, only_vectors=True).unbind(1)
    numbers, expected = whole.texts.tolist(), 0.0
    for i, (mine, partner) in enumerate(numbers):
        for forward in (True, False):
            scores = []
            for j, (first, second) in enumerate(numbers):
                a, b = (i, j) if forward else (j, i)
                equal = first == mine or second == partner or numbers[b][1] == numbers[a][0]
                if i == j or not equal:
                    scores.append(objective.scale * one[a] @ other[b])
            own = objective.scale * one[i] @ other[i]
            expected += (torch.logsumexp(torch.stack(scores), 0) - own).item() / 2
    assert objective(whole).item() == pytest.approx(expected, rel=1e-6)
    changed = dataclasses.replace(whole, texts=torch.arange(22).view(11, 2))
    assert objective(changed).item() > objective(whole).item()


def test_a_pass_that_only_keeps_step_adds_nothing() -> None:
    net, whole = model(), batch()
    loss, grads = gradient_of(net, whole, 4)
    named = dict(net.named_parameters())
    parts = [*whole.split(4), None]
    taken = take_gradient(LanguageModelling(net), parts, whole.n_targets, named, World(), 0, 0)
    assert taken.loss == loss
    for name, grad in grads.items():
        assert torch.equal(named[name].grad, grad)  # type: ignore[arg-type]
