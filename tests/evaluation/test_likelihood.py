"""The likelihood of given tokens, against the plain forward pass and against `transformers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import transom
from tests.evaluation.members import MEMBERS, write_model
from transom.evaluation import likelihood
from transom.evaluation.likelihood import Likelihood, Row, likelihoods, start_of


def rows_of(n: int, seed: int = 0) -> list[Row]:
    """Rows of different lengths, of which some parts are judged; some differ in their last token alone."""
    rng = np.random.default_rng(seed)
    rows = [Row(rng.integers(256, size=int(rng.integers(2, 60))).tolist(), 1) for _ in range(n)]
    rows = [Row(row.tokens, int(rng.integers(1, len(row.tokens)))) for row in rows]
    return [*rows, *(Row([*row.tokens[:-1], 7], 1) for row in rows[:5])]


def plainly(logits: torch.Tensor, row: Row) -> Likelihood:
    """By one pass over the row alone: logits (L, V)."""
    places = range(len(row.tokens) - 1 - row.judged, len(row.tokens) - 1)
    scores = logits.double().log_softmax(-1)
    logprobs = [float(scores[place, row.tokens[place + 1]]) for place in places]
    hits = [int(scores[place].argmax()) == row.tokens[place + 1] for place in places]
    return Likelihood(np.array(logprobs), np.array(hits))


@pytest.mark.parametrize("member", MEMBERS)
def test_it_is_what_the_plain_pass_over_each_row_says(
    member: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = transom.load(write_model(tmp_path / "model", **MEMBERS[member]), transom.Generator)
    monkeypatch.setattr(likelihood, "RUN_BYTES", 4 * 258 * 7)  # seven rows of logits at a time
    rows = rows_of(30)
    for found, row in zip(likelihoods(loaded.model, rows), rows, strict=True):
        wanted = plainly(loaded.logits(list(row.tokens)), row)
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=2e-5)
        assert (found.likeliest == wanted.likeliest).all()
        assert found.nats == pytest.approx(-wanted.logprobs.sum(), abs=1e-3)


def test_it_is_what_transformers_says(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_model(tmp_path / "model")
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = rows_of(20, seed=1)
    found = likelihoods(transom.load(folder, transom.Generator).model, rows)
    with torch.inference_mode():
        for one, row in zip(found, rows, strict=True):
            wanted = plainly(peer(torch.tensor([row.tokens])).logits[0], row)
            np.testing.assert_allclose(one.logprobs, wanted.logprobs, atol=2e-5)


def test_an_encoder_decoder_judges_a_target_by_its_source(tmp_path: Path) -> None:
    from transom.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer("bytes", iter(["any text"]), 258, frame="target")
    folder = write_model(tmp_path / "model", tokenizer=tokenizer, kind="encoder-decoder", n_encoder_layers=2,
                         start_id=257, norm="layer", position="sinusoidal", n_kv_heads=4)  # fmt: skip
    loaded = transom.load(folder, transom.Translator)
    sources = [[1, 2, 3], [4, 5, 6, 7, 8, 256], [1, 2, 3, 256], [9]]
    rows = [Row([257, 11, 12, 13, 256][: 3 + i % 3], 2, source) for i, source in enumerate(sources)]
    for found, row in zip(likelihoods(loaded.model, rows), rows, strict=True):
        with torch.inference_mode():
            memory = loaded.model.encode(torch.tensor([row.source]))
            hidden = loaded.model(torch.tensor([row.tokens]), memory=memory)
            wanted = plainly(loaded.model.logits(hidden)[0], row)
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=2e-5)


def test_what_differs_in_the_last_token_alone_is_read_once(tmp_path: Path) -> None:
    loaded = transom.load(write_model(tmp_path / "model"), transom.Generator)
    told: list[tuple[int, int]] = []
    choices = [Row([*range(40), choice], 1) for choice in range(200)]
    found = likelihoods(loaded.model, choices, lambda done, total: told.append((done, total)))
    assert told == [(40, 40)]
    assert sum(np.exp(one.logprobs[0]) for one in found) < 1 and sum(one.likeliest[0] for one in found) <= 1


def test_a_text_begins_as_it_did_in_training(tmp_path: Path) -> None:
    loaded = transom.load(write_model(tmp_path / "model"), transom.Generator)
    assert start_of(loaded.tokenizer) == [256]
