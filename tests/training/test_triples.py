"""Triples: their negatives are told from the first texts of a whole step, as sentence-transformers has it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from transom.data.batches import TextPairBatch
from transom.data.formats import named_fields
from transom.data.task_guess import guess_task
from transom.data.triples import open_triples
from transom.errors import Refused
from transom.model.build import build
from transom.model.config import ModelConfig
from transom.settings import TrainSettings, load
from transom.training.data_check import check_data
from transom.training.gradient import take_gradient
from transom.training.loop import train
from transom.training.objectives import Contrast, no_negatives
from transom.training.parallelism import World

from .conftest import Tiny

ENCODER = ModelConfig(vocab_size=40, dim=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, ffn_dim=24,
                      max_len=16, kind="encoder", head="embed", pooling="mean", normalize=True)  # fmt: skip
ROW = {"anchor": "a cat", "positive": "a kitten", "negative": "a car"}


def triples(rows: int = 9) -> TextPairBatch:
    sides = torch.randint(40, (3, rows, 12), generator=torch.Generator().manual_seed(1))
    texts = torch.arange(3 * rows).view(rows, 3)
    return TextPairBatch(sides[0], None, sides[1], None, texts, torch.arange(rows), sides[2], None)


def test_the_loss_is_that_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    objective, batch = Contrast(build(ENCODER, 0).double(), torch.float64), triples()
    vectors = objective(batch, only_vectors=True)
    theirs = losses.MultipleNegativesRankingLoss(
        None, scale=20.0, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction"
    )
    wanted = theirs.compute_loss_from_embeddings(list(vectors.unbind(1)), None)
    assert objective(batch).item() / len(batch) == pytest.approx(wanted.item(), abs=1e-5)
    pairs = dataclasses.replace(batch, negative_tokens=None, texts=batch.texts[:, :2])
    assert objective(batch).item() > objective(pairs).item() + 0.1


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_a_step_in_pieces_is_the_step_as_a_whole(rows: int) -> None:
    found = []
    for at_once in (9, rows):
        net, batch = build(ENCODER, 0).double().train(), triples()
        named, objective = dict(net.named_parameters()), Contrast(net, torch.float64)
        taken = take_gradient(objective, batch.split(at_once), batch.n_targets, named, World(), 0, 0)
        grads = [weight.grad.flatten() for weight in named.values() if weight.grad is not None]
        found.append((taken.loss, torch.cat(grads)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert (found[1][1] - found[0][1]).norm() / found[0][1].norm() < 1e-6, "vectors are float32"


def test_a_negative_that_equals_a_text_of_a_pair_is_none_of_it() -> None:
    texts = torch.tensor([[0, 1, 2], [3, 4, 1], [5, 6, 0]])
    assert no_negatives(texts)[:, 3:].tolist() == [[False, True, True], [False] * 3, [False] * 3]


def test_rows_are_read_whatever_their_columns_are_called(tmp_path: Path) -> None:
    path = tmp_path / "triples.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps({**ROW, "negative": "a cap"}) + "\n")
    assert (
        guess_task(str(path))[0] == "embed"
        and "triples: anchor, positive, negative" in guess_task(str(path))[1]
    )
    assert [(one.source, one.target, one.negative) for one in open_triples(str(path))] == [
        ("a cat", "a kitten", "a car"), ("a cat", "a kitten", "a cap")]  # fmt: skip
    lists = tmp_path / "lists.jsonl"
    lists.write_text(json.dumps({"anchor": "a", "positive": "b", "negatives": ["c", "d"]}) + "\n")
    assert [one.negative for one in open_triples(str(lists))] == ["c", "d"]
    table = tmp_path / "table.csv"
    table.write_text("q,hit,miss\na cat,a kitten,a car\n")
    fields = named_fields(["anchor=q", "positive=hit", "negative=miss"])
    (only,) = open_triples(str(table), fields=fields)
    assert (only.negative, only.where) == ("a car", f"{table}:2")
    with pytest.raises(Refused, match=r"no columns are called .* --map negative=COLUMN"):
        open_triples(str(table))
    path.write_text(json.dumps({**ROW, "negative": " "}) + "\n")
    with pytest.raises(Refused, match="it has no negative; fill it in or remove the row"):
        list(open_triples(str(path)))


def test_the_check_shows_all_three(tmp_path: Path) -> None:
    path = tmp_path / "triples.jsonl"
    rows = [{side: f"{text} {n}" for side, text in ROW.items()} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = check_data(load(TrainSettings, {"data": {"source": str(path), "tokenizer": "bytes"}}))
    assert "a cat 0\n[[a kitten 0]]\nnot: a car 0" in str(found)


def test_a_run_learns_from_them_and_says_so(tiny: Tiny, tmp_path: Path) -> None:
    source = tmp_path / "triples.jsonl"
    rows = [
        {"anchor": f"{'abcd'[n % 4] * (3 + n % 5)} {n}", "positive": f"{n} {'stuv'[n % 4] * (2 + n % 7)}",
         "negative": f"{n + 1} {'wxyz'[n % 4] * (1 + n % 6)}"} for n in range(90)
    ]  # fmt: skip
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = train(tiny(data__source=str(source), data__cache=None, data__tokenizer="chars", steps=6,
                     batch__tokens=300, batch__micro=3, prompt=None, data__map=()))  # fmt: skip
    notes = [event["text"] for event in run.metrics if event["event"] == "note"]
    assert run.task == "embed" and any(
        "task: embed (triples: anchor, positive, negative" in one for one in notes
    )
    assert any("triples to learn from" in one for one in notes)
    n = run.ledger["data"]["held_out_examples"]
    assert run.references["chance"] == pytest.approx((math.log(2 * n) + math.log(n)) / 2, abs=1e-6)
    steps = [event["loss"] for event in run.metrics if event["event"] == "step"]
    assert steps[-1] < steps[0]
