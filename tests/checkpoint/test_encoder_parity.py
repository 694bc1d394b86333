"""Parity of encoders with `transformers`, both ways: BERT and RoBERTa with every head, and without one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)

from tests.checkpoint.oracle import (
    TOLERANCE,
    assert_equal_tensors,
    randomize,
    read_by_transformers,
    some_tokens,
)
from transom.checkpoint.families import family_for
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.errors import Refused
from transom.model.build import build
from transom.model.config import ModelConfig

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
LABELS = {"id2label": {0: "ham", 1: "spam", 2: "other"}, "label2id": {"ham": 0, "spam": 1, "other": 2}}
AUTO = {
    "tokens": AutoModelForMaskedLM,
    "classify": AutoModelForSequenceClassification,
    "tag": AutoModelForTokenClassification,
    "embed": AutoModel,
}
# name -> (class of the model, of its config, what differs from the small config, our head)
CASES = {
    "bert-masked": (BertForMaskedLM, BertConfig, {}, "tokens"),
    "bert-masked-relu": (BertForMaskedLM, BertConfig, {"hidden_act": "relu", "type_vocab_size": 1}, "tokens"),
    "bert-masked-new-gelu": (BertForMaskedLM, BertConfig, {"hidden_act": "gelu_new"}, "tokens"),
    "bert-classes": (BertForSequenceClassification, BertConfig, LABELS, "classify"),
    "bert-tags": (BertForTokenClassification, BertConfig, LABELS, "tag"),
    "bert-bare": (BertModel, BertConfig, {"layer_norm_eps": 1e-5}, "embed"),
    "roberta-masked": (RobertaForMaskedLM, RobertaConfig, {}, "tokens"),
    "roberta-classes": (RobertaForSequenceClassification, RobertaConfig, LABELS, "classify"),
    "roberta-tags": (RobertaForTokenClassification, RobertaConfig, {"type_vocab_size": 1}, "tag"),
    "roberta-bare": (RobertaModel, RobertaConfig, {"pad_token_id": 3}, "embed"),
}
LENGTHS = (33, 20)


def make(name: str):
    model, config, changes, _ = CASES[name]
    return randomize(model(config(**(SMALL | changes))))


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts of unequal length: tokens (2, 33), and the documents (2, 33) that say where text ends."""
    tokens = some_tokens(97, least=5)
    documents = torch.zeros(2, LENGTHS[0], dtype=torch.int32)
    documents[1, LENGTHS[1] :] = -1
    return tokens, documents


def their_scores(model, head: str) -> torch.Tensor:
    """(B, L, ...) scores or hidden states with padding zeroed, or (B, C)."""
    tokens, documents = rows()
    tokens = tokens.masked_fill(documents < 0, model.config.pad_token_id)
    with torch.no_grad():
        out = model(tokens, attention_mask=(documents == 0).long())
    scores = out.last_hidden_state if head == "embed" else out[0] if head != "tokens" else out.logits
    return scores if head == "classify" else scores * (documents == 0)[..., None]


def our_scores(model, head: str) -> torch.Tensor:
    tokens, documents = rows()
    model.eval()
    with torch.no_grad():
        hidden = model(tokens, documents=documents)
        if head == "classify":
            return model.label_logits(hidden, documents)
        scores = {"tokens": model.logits, "tag": model.label_logits, "embed": lambda x: x}[head](hidden)
        return scores * (documents == 0)[..., None]


@pytest.mark.parametrize("name", CASES)
def test_in_and_out(name, tmp_path):
    theirs, head = make(name), CASES[name][3]
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.head == head
    expected = their_scores(theirs, head)
    torch.testing.assert_close(our_scores(ours, head), expected, rtol=0, atol=TOLERANCE)

    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours)
    unused = ("pooler",) if head == "embed" else ()  # a vector of a text takes no part of it
    back = read_by_transformers(tmp_path / "ours", AUTO[head], unused)
    assert type(back) is type(theirs)
    torch.testing.assert_close(their_scores(back, head), expected, rtol=0, atol=TOLERANCE)
    assert_equal_tensors(tmp_path / "theirs", tmp_path / "ours", unused)
    assert load_config(tmp_path / "theirs")[0] == load_config(tmp_path / "ours")[0] == ours.config
    assert back.config.id2label == theirs.config.id2label


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("bert-masked", {"layer_norm_eps": 0.5}),
        ("bert-masked", {"hidden_act": "silu"}),
        ("bert-classes", {"hidden_act": "gelu_new", "layer_norm_eps": 0.1}),
        ("roberta-tags", {"layer_norm_eps": 0.5}),
    ],
)
def test_the_oracle_would_notice(name, changes, tmp_path):
    theirs, head = make(name), CASES[name][3]
    theirs.save_pretrained(tmp_path)
    before = their_scores(theirs, head)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    after = our_scores(load_model(tmp_path), head)
    assert (after - before).abs().max() > 100 * TOLERANCE
    expected = their_scores(AUTO[head].from_pretrained(tmp_path).eval(), head)
    torch.testing.assert_close(after, expected, rtol=0, atol=TOLERANCE)


def test_as_the_first_bert_on_the_hub_is(tmp_path):
    """The head for next sentences, tied tensors stored twice, gamma and beta, a buffer among the weights."""
    theirs = randomize(BertForPreTraining(BertConfig(**SMALL)))
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "cls.seq_relationship.weight" in weights
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): w for name, w in weights.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): w.clone() for name, w in old.items()}
    old["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(old, tmp_path / "model.safetensors")
    tokens, documents = rows()
    with torch.no_grad():
        out = theirs(tokens, attention_mask=(documents == 0).long()).prediction_logits
    expected = out * (documents == 0)[..., None]
    torch.testing.assert_close(our_scores(load_model(tmp_path), "tokens"), expected, rtol=0, atol=TOLERANCE)
    twice = "bert.embeddings.LayerNorm"
    save_file(old | {f"{twice}.weight": torch.ones(32)}, tmp_path / "model.safetensors")
    with pytest.raises(
        Refused, match=rf"'{twice}\.(gamma|weight)' is another spelling of '{twice}\.(gamma|weight)'"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("head", ["tokens", "classify", "tag", "embed"])
def test_what_is_built_here_is_read_there(family, head, tmp_path):
    """From one of our configs, not from one of theirs: transformers computes what we compute."""
    config = ModelConfig(
        vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=40, max_len=37,
        kind="encoder", norm="layer", norm_position="after", norm_eps=1e-12, gated=False, activation="gelu",
        position="learned", position_offset=2 if family == "roberta" else 0, embed_norm=True, segments=2,
        qkv_bias=True, out_bias=True, ffn_bias=True, head=head, head_transform=True, head_bias=True, pad_id=1,
        labels=("no", "yes"), pooling="mean" if head == "embed" else "first",
    )  # fmt: skip
    model = build(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    found = family_for(config)
    assert found is not None and found.model_type == family
    save_model(tmp_path, model)
    theirs = read_by_transformers(tmp_path, AUTO[head], ("pooler",) if head == "embed" else ())
    assert type(theirs).__name__ == found.architecture_of(config)
    torch.testing.assert_close(their_scores(theirs, head), our_scores(model, head), rtol=0, atol=TOLERANCE)
