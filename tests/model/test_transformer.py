"""Every kind of decoder the config can say, attention or recurrence, keeps the same promises."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from transom.model.build import Model, build
from transom.model.config import SIZES, Experts, ModelConfig, RopeScaling
from transom.model.losses import cross_entropy, cross_entropy_plain
from transom.model.transformer import Transformer

TINY = ModelConfig(
    vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_len=64
)
VARIANTS = {
    "llama": TINY,
    "untied": TINY.with_(tie_embeddings=False),
    "qk-norm": TINY.with_(qk_norm=True),
    "gpt-2": TINY.with_(
        norm="layer", position="learned", activation="gelu_tanh", gated=False,
        qkv_bias=True, out_bias=True, ffn_bias=True, n_kv_heads=4,
    ),
    "2017": TINY.with_(
        norm="layer", norm_position="after", position="sinusoidal", activation="relu", gated=False,
        scale_embeddings=True, n_kv_heads=4,
    ),
    "window": TINY.with_(window=5),
    "window on one layer": TINY.with_(window=5, window_layers=(True, False)),
    "softcaps": TINY.with_(attn_softcap=5.0, logit_softcap=10.0),
    "stretched": TINY.with_(rope_scaling=RopeScaling("llama3", 4.0, original_max_len=16)),
    "no positions": TINY.with_(position="none", activation="relu2", gated=False),
    "relative": TINY.with_(position="relative", attn_scale=1.0, relative_buckets=8, relative_max_distance=12),
    "experts": TINY.with_(experts=Experts(8, 2, 24, n_shared=1, first_dense=1)),
    "experts by loss": TINY.with_(
        experts=Experts(4, 2, 24, score="softmax", balance="loss", balance_rate=0.1)
    ),
    "whole qk-norm": TINY.with_(qk_norm=True, qk_norm_over="projection"),
    "rnn": TINY.with_(cell="rnn"),
    "lstm": TINY.with_(cell="lstm"),
    "gru": TINY.with_(cell="gru", tie_embeddings=False),
}  # fmt: skip


@dataclass
class Rows:
    tokens: Tensor
    targets: Tensor
    documents: Tensor | None = None
    positions: Tensor | None = None


def rows(batch: int = 3, length: int = 20, seed: int = 0) -> Rows:
    tokens = torch.randint(
        0, TINY.vocab_size, (batch, length + 1), generator=torch.Generator().manual_seed(seed)
    )
    return Rows(tokens[:, :-1], tokens[:, 1:].clone())


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request) -> Model:
    return build(request.param).eval()


def test_shapes_types_and_copies(model):
    batch = rows()
    hidden = model(batch.tokens)
    logits = model.logits(hidden)
    assert hidden.shape == (3, 20, 32) and logits.shape == (3, 20, 50) and logits.dtype == torch.float32
    assert model(batch.tokens, dtype=torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(copy.deepcopy(model)(batch.tokens), hidden)


def test_a_later_token_never_changes_an_earlier_output(model):
    batch = rows()
    changed = batch.tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % TINY.vocab_size
    before, after = model(batch.tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_cached_equals_uncached(model):
    tokens = rows().tokens
    state = model.new_state(3, 32)
    pieces = [model(part, state=state) for part in tokens.split([7, 1, 1, 11], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens), rtol=0, atol=1e-5)
    assert state.lengths == [20, 20, 20]


def test_ragged_rows_equal_each_row_alone(model):
    tokens, lengths = rows().tokens, [5, 9, 7]
    state = model.new_state(3, 32)
    model(tokens[:, :9], state=state)
    state.truncate(lengths)
    ahead = torch.stack([tokens[row, n : n + 4] for row, n in enumerate(lengths)])
    together = torch.cat([model(ahead[:, :3], state=state), model(ahead[:, 3:], state=state)], 1)
    for row, n in enumerate(lengths):
        alone = model(tokens[row : row + 1, : n + 4])[:, n:]
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_reordered_rows_go_on_as_copies(model):
    tokens = rows().tokens
    state = model.new_state(3, 32)
    model(tokens[:, :10], state=state)
    state.reorder([2, 0, 0, 1])
    order = torch.tensor([2, 0, 0, 1])
    torch.testing.assert_close(
        model(tokens[order, 10:], state=state), model(tokens[order])[:, 10:], rtol=0, atol=1e-5
    )


def test_packed_equals_unpacked(model):
    """Two documents in one row give the losses and gradients that each gives alone."""
    first, second = rows(1, 8, seed=1), rows(1, 12, seed=2)
    packed = Rows(
        torch.cat([first.tokens, second.tokens], 1),
        torch.cat([first.targets, second.targets], 1),
        documents=torch.tensor([[0] * 8 + [1] * 12]),
        positions=torch.cat([torch.arange(8), torch.arange(12)])[None],
    )
    together = model.loss(packed)
    apart = model.loss(first) + model.loss(second)
    torch.testing.assert_close(together, apart)
    grads = [torch.autograd.grad(x, list(model.parameters()), allow_unused=True) for x in (together, apart)]
    for ours, theirs in zip(*grads, strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_recomputed_activations_give_the_same_gradients(model):
    batch = rows()
    model.train()
    plain = torch.autograd.grad(model.loss(batch), list(model.parameters()), allow_unused=True)
    model.checkpoint_activations = True
    again = torch.autograd.grad(model.loss(batch), list(model.parameters()), allow_unused=True)
    for a, b in zip(plain, again, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_learns_one_batch_by_heart(model):
    batch = rows(2, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        (model.loss(batch) / batch.targets.numel()).backward()
        optimizer.step()
    assert model.loss(batch) / batch.targets.numel() < 0.1


def test_bfloat16_arithmetic_is_close_and_trains_float32_masters(model):
    batch = rows()
    exact, coarse = model.loss(batch), model.loss(batch, dtype=torch.bfloat16)
    assert abs(exact - coarse) / exact < 0.02
    coarse.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())


def test_too_long_a_row_is_refused(model):
    with pytest.raises(ValueError, match="65 tokens in a row; this model reads at most 64"):
        model(torch.zeros(1, 65, dtype=torch.int64))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("run_bytes", [1, 4096, 1 << 24])
def test_chunked_loss_equals_the_plain_one(monkeypatch, softcap, run_bytes, smoothing):
    monkeypatch.setattr("transom.model.losses.RUN_BYTES", run_bytes)
    hidden = torch.randn(37, 16, dtype=torch.float32).requires_grad_()
    weight, bias = torch.randn(23, 16).requires_grad_(), torch.randn(23).requires_grad_()
    targets = torch.randint(0, 23, (37,))
    targets[::5] = -100
    for offset in (None, bias):
        learned = (hidden, weight) if offset is None else (hidden, weight, bias)
        ours = cross_entropy(hidden, weight, targets, softcap, offset, smoothing)
        plain = cross_entropy_plain(hidden, weight, targets, softcap, offset, smoothing)
        torch.testing.assert_close(ours, plain)
        for a, b in zip(*(torch.autograd.grad(3 * x, learned) for x in (ours, plain)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_loss_is_a_sum_over_rows(model):
    batch = rows(4)
    halves = [Rows(batch.tokens[i : i + 2], batch.targets[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(model.loss(batch), sum(model.loss(half) for half in halves))


def test_first_loss_is_that_of_a_guess(model):
    batch = rows(8)
    mean = model.loss(batch).item() / batch.targets.numel()
    assert abs(mean - torch.tensor(50.0).log().item()) < 0.6


def test_the_same_seed_gives_the_same_weights():
    one, two, other = Transformer(TINY, seed=3), Transformer(TINY, seed=3), Transformer(TINY, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)


@pytest.mark.parametrize("name", ["nano", "mini"])
def test_flops_agree_with_those_counted(name):
    config = ModelConfig(vocab_size=512, **SIZES[name]).with_(max_len=64)
    model = Transformer(config)
    batch = rows(2, 64)
    with FlopCounterMode(display=False) as counter:
        model.loss(batch).backward()
    counted = counter.get_total_flops() / batch.tokens.numel()
    assert abs(counted / model.flops_per_token(64) - 1) < 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"n_kv_heads": 3}, "not a multiple"),
        ({"head_dim": 7}, "pairs of channels"),
        ({"window": 0}, "window is 0"),
        ({"window": 4, "window_layers": (True,)}, "names 1 layers of 2"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"kind": "encoder-decoder"}, "needs n_encoder_layers"),
        ({"n_encoder_layers": 2}, "one stack only"),
        ({"head": "classify", "labels": ("a", "b")}, "stands on an encoder"),
        ({"kind": "encoder", "head": "classify", "labels": ()}, "0 labels; this head needs at least 1"),
        ({"kind": "encoder", "head": "tag", "labels": ("a",)}, "1 labels; this head needs at least 2"),
        ({"kind": "encoder", "cell": "lstm"}, "not an encoder"),
        ({"experts": Experts(2, 3, 8)}, "n_active is 3"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TINY.with_(**changes)


def test_a_full_cache_says_so():
    state = Transformer(TINY).new_state(1, 4)
    with pytest.raises(ValueError, match="holds 4 tokens a row; 5 were asked for"):
        Transformer(TINY)(torch.zeros(1, 5, dtype=torch.int64), state=state)
