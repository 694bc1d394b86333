"""Another head on the body that a folder holds: what is taken, what is drawn, what may be left over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaModel,
)

from tests.checkpoint.oracle import randomize, some_tokens, tensors_of
from transom.checkpoint.huggingface import load_model, save_model
from transom.errors import Refused
from transom.model.build import build
from transom.model.config import ModelConfig

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}
CLASSES = {"head": "classify", "labels": ("no", "yes", "perhaps")}
KINDS = {
    "bare": (BertModel, BertConfig),
    "masked": (BertForMaskedLM, BertConfig),
    "classes": (BertForSequenceClassification, BertConfig),
    "roberta": (RobertaModel, RobertaConfig),
}


def folder_of(kind: str, tmp_path: Path) -> Path:
    model, config = KINDS[kind]
    randomize(model(config(**SMALL))).save_pretrained(tmp_path / kind)
    return tmp_path / kind


def body_of(model) -> dict[str, torch.Tensor]:
    return {name: w for name, w in model.state_dict().items() if not name.startswith("head.")}


@pytest.mark.parametrize("kind", KINDS)
def test_the_body_is_the_folders_and_the_head_is_drawn(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    plain = load_model(folder)
    ours = load_model(folder, head=CLASSES, seed=4)
    for name, weight in body_of(plain).items():
        assert torch.equal(ours.state_dict()[name], weight), name
    assert ours.config.labels == CLASSES["labels"] and ours.config.dropout == plain.config.dropout
    again, other = load_model(folder, head=CLASSES, seed=4), load_model(folder, head=CLASSES, seed=5)
    assert torch.equal(again.head.out.weight, ours.head.out.weight)
    assert not torch.equal(other.head.out.weight, ours.head.out.weight)
    with torch.no_grad():
        assert ours.eval().label_logits(ours(some_tokens(97))).shape == (2, 3)


@pytest.mark.parametrize("kind", ["bare", "classes"])
def test_the_pooler_is_taken_where_the_first_position_stands_for_the_text(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    pooler = next(w for name, w in tensors_of(folder).items() if name.endswith("pooler.dense.weight"))
    assert torch.equal(load_model(folder, head=CLASSES).head.dense.weight, pooler)
    mean = load_model(folder, head=CLASSES | {"pooling": "mean"})
    assert not torch.equal(mean.head.dense.weight, pooler)
    assert mean.config.pooling == "mean"


@pytest.mark.parametrize(
    "head",
    [
        {"head": "tag", "labels": ("a", "b")},
        {"head": "embed", "pooling": "mean", "normalize": True},
        {"head": "tokens", "head_transform": True, "head_bias": True},
    ],
    ids=lambda head: head["head"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_head_on_every_body_is_saved_and_comes_back(kind, head, tmp_path):
    ours = load_model(folder_of(kind, tmp_path), head=head).eval()
    (tmp_path / "saved").mkdir()
    save_model(tmp_path / "saved", ours)
    back = load_model(tmp_path / "saved").eval()
    assert back.config == ours.config
    for name, weight in ours.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight), name


def test_the_head_that_is_there_already_stays(tmp_path, llama):
    """The same classes, or a language model that learns on: nothing is drawn, nothing is lost."""
    folder = folder_of("classes", tmp_path)
    plain = load_model(folder)
    again = load_model(folder, head={"head": "classify", "labels": ("LABEL_0", "LABEL_1"), "dropout": 0.2})
    assert again.config.dropout == 0.2
    for name, weight in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    (tmp_path / "untied").mkdir()
    model = build(load_model(llama).config.with_(tie_embeddings=False))
    save_model(tmp_path / "untied", model)
    again = load_model(tmp_path / "untied", head={"head": "tokens", "head_bias": False})
    assert torch.equal(again.head.weight, model.head.weight)


def test_on_our_own_format_too(tmp_path):
    config = ModelConfig(
        vocab_size=50, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=24, max_len=20,
        kind="encoder", head_bias=True, tie_embeddings=False,
    )  # fmt: skip
    model = build(config)
    save_model(tmp_path, model)
    ours = load_model(tmp_path, head=CLASSES)
    assert ours.config.head == "classify" and torch.equal(ours.embed.weight, model.embed.weight)


def test_half_precision(tmp_path):
    ours = load_model(folder_of("bare", tmp_path), head=CLASSES, dtype=torch.bfloat16)
    assert {weight.dtype for weight in ours.parameters()} == {torch.bfloat16}


def test_a_head_that_cannot_stand_there(tmp_path, llama):
    with pytest.raises(Refused, match="a head that can classify stands on an encoder, not on a decoder"):
        load_model(llama, head=CLASSES)
    folder = folder_of("bare", tmp_path)
    with pytest.raises(Refused, match=r"bare: 0 labels; this head needs at least 1"):
        load_model(folder, head={"head": "classify", "labels": ()})


def test_only_heads_may_be_left_over(tmp_path):
    folder = folder_of("masked", tmp_path)
    weights = {name: w.clone() for name, w in tensors_of(folder).items()}
    save_file(weights | {"bert.extra.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(Refused, match=r"'bert\.extra\.weight' of shape \(2,\) has no place"):
        load_model(folder, head=CLASSES)
    weights.pop("bert.embeddings.LayerNorm.bias")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(Refused, match=r"'bert\.embeddings\.LayerNorm\.bias' of shape \(32,\) is missing"):
        load_model(folder, head=CLASSES)
    with pytest.raises(Refused, match="is missing"):
        load_model(folder)
