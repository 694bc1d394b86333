"""Encoders and encoder-decoders, attention or recurrence: padding, order of reading, decoding, heads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from transom.model.build import Model, build
from transom.model.config import ModelConfig
from transom.model.positions import distance_bucket
from transom.model.recurrent import RecurrentLayer, reversed_places

TINY = ModelConfig(
    vocab_size=50, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=48, max_len=64
)
PLAIN = TINY.with_(norm="layer", gated=False, qkv_bias=True, out_bias=True, ffn_bias=True)
BERT = PLAIN.with_(
    kind="encoder", norm_position="after", position="learned", activation="gelu", segments=2, embed_norm=True
)
TWO = dict(kind="encoder-decoder", n_encoder_layers=2)
TRANSLATORS = {
    "2017": PLAIN.with_(
        **TWO, norm_position="after", position="sinusoidal", scale_embeddings=True, head_bias=True
    ),
    "pre-norm": TINY.with_(**TWO, position="rotary"),
    "relative": TINY.with_(**TWO, position="relative", attn_scale=1.0, logit_scale=32**-0.5),
    "rnn": TINY.with_(**TWO, cell="rnn"),
    "lstm": TINY.with_(**TWO, cell="lstm"),
    "gru": TINY.with_(**TWO, cell="gru"),
}


@pytest.fixture(params=TRANSLATORS.values(), ids=TRANSLATORS.keys())
def model(request: pytest.FixtureRequest) -> Model:
    return build(request.param).eval()


def pairs(seed: int = 0, lengths: tuple[int, ...] = (9, 5, 7), target: int = 8) -> Any:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(0, 50, (len(lengths), max(lengths)), generator=generator)
    documents = torch.zeros_like(source, dtype=torch.int32)
    for row, length in enumerate(lengths):
        documents[row, length:] = -1
    tokens = torch.randint(0, 50, (len(lengths), target + 1), generator=generator)
    return SimpleNamespace(
        source=source, source_documents=documents, tokens=tokens[:, :-1], targets=tokens[:, 1:].clone(),
        documents=None, positions=None,
    )  # fmt: skip


def test_padding_changes_nothing(model: Model) -> None:
    batch, lengths = pairs(), (9, 5, 7)
    together = model(batch.tokens, memory=model.encode(batch.source, documents=batch.source_documents))
    for row, length in enumerate(lengths):
        alone = model(batch.tokens[row : row + 1], memory=model.encode(batch.source[row : row + 1, :length]))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-5)


def test_targets_of_unequal_length_give_the_losses_of_each_alone(model: Model) -> None:
    batch = pairs()
    batch.documents = torch.zeros(3, 8, dtype=torch.int32)
    for row, length in enumerate((8, 3, 6)):
        batch.documents[row, length:] = -1
        batch.targets[row, length:] = -100
    together, apart = model.loss(batch), torch.tensor(0.0)
    for row, (length, read) in enumerate(zip((8, 3, 6), (9, 5, 7), strict=True)):
        apart = apart + model.loss(SimpleNamespace(
            source=batch.source[row : row + 1, :read], source_documents=None,
            tokens=batch.tokens[row : row + 1, :length], targets=batch.targets[row : row + 1, :length],
            documents=None, positions=None,
        ))  # fmt: skip
    torch.testing.assert_close(together, apart)
    learned = list(model.parameters())
    for a, b in zip(
        *(torch.autograd.grad(x, learned, allow_unused=True) for x in (together, apart)), strict=True
    ):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_the_target_sees_all_of_the_source_and_nothing_ahead(model: Model) -> None:
    batch = pairs(lengths=(9, 9, 9))
    before = model(batch.tokens, memory=model.encode(batch.source))
    later = batch.tokens.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 50
    after = model(later, memory=model.encode(batch.source))
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    for place in (0, 8):
        other = batch.source.clone()
        other[:, place] = (other[:, place] + 1) % 50
        changed = model(batch.tokens, memory=model.encode(other))
        assert ((changed - before).abs().amax(-1) > 1e-7).all()


def test_step_by_step_equals_at_once_also_for_beams(model: Model) -> None:
    """Rows that share a source, reordered among themselves, cut back, and with a sentence gone."""
    batch = pairs()
    whole = model(batch.tokens, memory=model.encode(batch.source, documents=batch.source_documents))
    memory = model.encode(batch.source, documents=batch.source_documents)
    state = model.new_state(3, 16, memory=memory)
    with torch.no_grad():
        model(batch.tokens[:, :4], state=state)
        state.truncate([3, 2, 4])
        state.reorder([0, 0, 1, 1, 2, 2])
        assert state.memory is not None and state.memory.group == 2 and len(state.memory.hidden) == 3
        state.reorder([1, 0, 3, 3, 4, 5])
        rows, at = [0, 0, 1, 1, 2, 2], [3, 3, 2, 2, 4, 4]
        for _ in range(2):
            step = torch.stack([batch.tokens[row, place] for row, place in zip(rows, at, strict=True)])
            hidden = model(step[:, None], state=state)
            expected = torch.stack([whole[row, place] for row, place in zip(rows, at, strict=True)])
            torch.testing.assert_close(hidden[:, 0], expected, rtol=0, atol=1e-5)
            at = [place + 1 for place in at]
            state.reorder([0, 1, 4, 5] if len(rows) == 6 else [0, 1, 2, 3])
            rows, at = [0, 0, 2, 2], [at[0], at[1], at[-2], at[-1]]
        assert state.memory.group == 2 and len(state.memory.hidden) == 2


def test_a_decoder_without_its_source_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="give the memory"):
        model(torch.zeros(1, 3, dtype=torch.int64))


def test_smoothing_belongs_to_training_only(model: Model) -> None:
    batch = pairs()
    plain = model.loss(batch)
    assert torch.equal(plain, model.loss(batch, smoothing=0.2))
    assert model.train().loss(batch, smoothing=0.2) != plain


# --- encoders and their heads


def test_an_encoder_sees_both_ways_and_no_padding() -> None:
    model = build(BERT.with_(head_transform=True, head_bias=True)).eval()
    batch = pairs()
    together = model(batch.source, documents=batch.source_documents)
    for row, length in enumerate((9, 5, 7)):
        alone = model(batch.source[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=0, atol=1e-5)
    changed = batch.source.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 50
    assert not torch.allclose(model(changed, documents=batch.source_documents)[:, 0], together[:, 0])
    assert model.logits(together).shape == (3, 9, 50)


def test_a_masked_loss_counts_only_what_was_masked() -> None:
    model = build(BERT.with_(head_transform=True, head_bias=True)).eval()
    batch = pairs(target=9)
    batch.targets[:] = -100
    batch.targets[0, 3], batch.targets[2, 7] = 11, 12
    scores = model.logits(model(batch.tokens)).log_softmax(-1)
    torch.testing.assert_close(model.loss(batch), -(scores[0, 3, 11] + scores[2, 7, 12]))


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_heads_of_whole_texts(pooling: Any) -> None:
    batch = pairs()
    classify = build(BERT.with_(head="classify", labels=("a", "b", "c"), pooling=pooling)).eval()
    hidden = classify(batch.source, documents=batch.source_documents)
    scores = classify.label_logits(hidden, batch.source_documents)  # type: ignore[union-attr]
    alone = classify.label_logits(classify(batch.source[1:2, :5]))  # type: ignore[union-attr]
    assert scores.shape == (3, 3)
    torch.testing.assert_close(scores[1:2], alone, rtol=0, atol=1e-5)

    embed = build(BERT.with_(head="embed", pooling=pooling, normalize=True)).eval()
    vectors = embed.vectors(embed(batch.source, documents=batch.source_documents), batch.source_documents)  # type: ignore[union-attr]
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(vectors[1:2], embed.vectors(embed(batch.source[1:2, :5])), rtol=0, atol=1e-5)  # type: ignore[union-attr]


def test_a_head_for_every_token() -> None:
    tagger = build(BERT.with_(head="tag", labels=("in", "out"))).eval()
    assert tagger.label_logits(tagger(pairs().source)).shape == (3, 9, 2)  # type: ignore[union-attr]


# --- recurrences


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_the_fused_pass_equals_the_equations(cell: str) -> None:
    layer = RecurrentLayer(cell, 6, 5).double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    first = [torch.randn(3, 5, dtype=torch.float64) for _ in range(layer.n_parts)]
    fused, plain = layer(x, first), layer.steps_plain(x, first)
    torch.testing.assert_close(fused, plain, rtol=0, atol=1e-12)
    pull = torch.randn_like(fused)
    learned = [x, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(y, learned, pull) for y in (fused, plain)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_text_is_turned_without_its_padding() -> None:
    documents = torch.tensor([[0, 0, 0, -1, -1], [0, 0, 0, 0, 0]])
    assert reversed_places(documents.shape, documents, documents.device).tolist() == [
        [2, 1, 0, 3, 4],
        [4, 3, 2, 1, 0],
    ]


# --- relative positions


@pytest.mark.parametrize("causal", [True, False])
def test_buckets_of_distances(causal: bool) -> None:
    """Every distance has one bucket, near ones their own, farther ones never a smaller one."""
    distance = torch.arange(-300, 301)
    bucket = distance_bucket(distance, 32, 128, causal)
    assert bucket.min() == 0 and bucket.max() == 31
    behind = bucket[:301].flip(0)
    assert (behind.diff() >= 0).all() and behind[:8].tolist() == list(range(8))
    if causal:
        assert (bucket[300:] == 0).all()
    else:
        assert set(bucket[301:].tolist()).isdisjoint(behind.tolist())
