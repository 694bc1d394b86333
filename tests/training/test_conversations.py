"""Conversations are learned as one by one, however they are laid into rows: packed, padded, cut, shared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transom
from tests.training.conftest import Tiny
from transom.__main__ import run
from transom.data.chat_template import BUILTIN
from transom.data.examples import ConversationRows
from transom.data.packing import Conversations
from transom.data.ragged import Ragged
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer
from transom.settings import TrainSettings, load
from transom.training.architecture import by_evidence
from transom.training.gradient import take_gradient
from transom.training.loop import train
from transom.training.objectives import LanguageModelling
from transom.training.parallelism import World

N = 12


def model(**changes: Any) -> Transformer:
    shape = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8,
             "ffn_dim": 24, "max_len": 64}  # fmt: skip
    return Transformer(ModelConfig(**{**shape, **changes})).double()


@pytest.fixture(scope="module")
def rows() -> ConversationRows:
    """Conversations of 5 to 40 tokens, of which one to three stretches are learned."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 41, N)
    flat = rng.integers(1, 40, lengths.sum()).astype(np.uint32)
    starts = np.append(0, np.cumsum(lengths))
    learned = np.zeros(len(flat), dtype=np.bool_)
    for first, last in zip(starts[:-1], starts[1:], strict=True):
        for _ in range(int(rng.integers(1, 4))):
            begin = int(rng.integers(first + 1, last))
            learned[begin : min(last, begin + int(rng.integers(1, 9)))] = True
    return ConversationRows(Ragged(flat, starts), learned, np.arange(N))


def gradient_of(net: Transformer, parts: list[Any]) -> tuple[float, dict[str, torch.Tensor]]:
    named = dict(net.named_parameters())
    n_targets = sum(part.n_targets for part in parts)
    taken = take_gradient(LanguageModelling(net, torch.float64), parts, n_targets, named, World(), 0, 0)
    return taken.loss, {n: w.grad.clone() for n, w in named.items() if w.grad is not None}


def assert_equal(one: tuple[float, Any], other: tuple[float, Any]) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, other[1][name], rtol=1e-5, atol=1e-7)


MODELS = {"rotary": {}, "learned": {"position": "learned"}, "window": {"window": 9}}


@pytest.mark.parametrize("kind", MODELS)
def test_packed_is_padded_is_unpadded_is_accumulated(kind: str, rows: ConversationRows) -> None:
    net = model(**MODELS[kind])
    packed = Conversations(rows, N, pad_id=0).batch(0)
    padded = Conversations(rows, N, pad_id=0, packed=False).batch(0)
    assert len(packed) < len(padded) == N and packed.documents is not None and padded.documents is None
    assert packed.n_targets == padded.n_targets == int(rows.learned.sum())
    together = gradient_of(net, [packed])
    assert_equal(gradient_of(net, [padded]), together)
    alone = [Conversations(rows, N, pad_id=0).take(np.array([at])) for at in range(N)]
    assert_equal(gradient_of(net, alone), together)
    for size in (1, 2, 3):
        assert_equal(gradient_of(net, packed.split(size)), together)


def test_the_loss_is_that_of_every_conversation_read_by_itself(rows: ConversationRows) -> None:
    """The oracle: one plain forward pass each, the log-probability of every learned token."""
    net = model()
    total = 0.0
    for at in range(N):
        ids = torch.from_numpy(rows.tokens[at].astype(np.int64))[None]
        logprobs = net.logits(net(ids)).double().log_softmax(-1)[0]
        flags = rows.learned[rows.tokens.starts[at] : rows.tokens.starts[at + 1]]
        for place in np.flatnonzero(flags):
            total -= logprobs[place - 1, ids[0, place]].item()
    loss, _ = gradient_of(net, [Conversations(rows, N, pad_id=0).batch(0)])
    assert loss == pytest.approx(total / int(rows.learned.sum()), abs=1e-5)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_step(world: int, rows: ConversationRows) -> None:
    net, order = model(), Conversations(rows, N, pad_id=0, least_rows=3)
    shares = [order.batch(0, rank, world) for rank in range(world)]
    assert_equal(gradient_of(net, shares), gradient_of(net, [order.batch(0)]))


def test_every_epoch_has_every_conversation_once_in_another_order(rows: ConversationRows) -> None:
    order = Conversations(rows, 5, seed=3, pad_id=0)
    assert order.steps_per_epoch == 2 and order.tokens_per_step == round(len(rows.learned) / 2)
    epochs = [[order.order.batch(2 * epoch + step) for step in (0, 1)] for epoch in (0, 1)]
    for both in epochs:
        assert sorted(np.concatenate(both)) == list(range(N))
    assert np.concatenate(epochs[0]).tolist() != np.concatenate(epochs[1]).tolist()
    again = Conversations(rows, 5, seed=3, pad_id=0).batch(3)
    assert torch.equal(again.tokens, order.batch(3).tokens)


def talks(path: Path, n: int = 60, **more: Any) -> Path:
    """Questions with one answer each, which a tiny model learns by heart."""
    colours = ["red", "blue", "green", "grey"]
    with open(path, "w") as file:
        for at in range(n):
            talk = [{"role": "user", "content": f"Which colour has number {at}?"},
                    {"role": "assistant", "content": f"It is {colours[at % 4]}."}]  # fmt: skip
            file.write(json.dumps({"messages": talk, **more}) + "\n")
    return path


def test_a_run_learns_to_answer_and_resumes_with_the_same_bits(tiny: Tiny, tmp_path: Path) -> None:
    few = dict(data__source=str(talks(tmp_path / "talks.jsonl")), data__cache=None, model__max_len=64,
               batch__tokens=None, batch__texts=8, save_every=4, keep=9, prompt=None)  # fmt: skip
    whole = train(tiny(**few, steps=8, out=str(tmp_path / "whole")))
    assert whole.task == "sft" and whole.unit == "answer token"
    assert whole.loss is not None and whole.loss < whole.references["uniform"]
    assert "Which colour" in whole.prompt
    again = tmp_path / "again"

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "save" and event["step"] == 4 and "checkpoints" in event["path"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny(**few, steps=8, out=str(again)), on_event=stop)
    resumed = train(tiny(out=str(again), resume=True, **few, steps=8))
    assert resumed.step == 8 and resumed.weights_sha256 == whole.weights_sha256


RULES = {
    10: (16, 20.0),
    499: (16, 20.0),
    500: (16, 10.0),
    1_999: (16, 10.0),
    2_000: (32, 3.0),
    10**6: (32, 3.0),
}


@pytest.mark.parametrize("n", RULES)
def test_fine_tuning_goes_by_what_there_is(n: int) -> None:
    texts, epochs = RULES[n]
    asked = {"task": "sft", "recipe": "evidence"}
    rule = by_evidence(load(TrainSettings, asked), n)
    assert rule == {"batch.texts": texts, "epochs": epochs}
    assert by_evidence(load(TrainSettings, {**asked, "steps": 5}), n) == {"batch.texts": texts}
    assert by_evidence(load(TrainSettings, {**asked, "batch.tokens": 500, "epochs": 1}), n) == {}
    assert by_evidence(load(TrainSettings, {"task": "classify"}), n) == {}
    assert by_evidence(load(TrainSettings, {"task": "lm", "recipe": "evidence"}), None) == {"epochs": 3.0}


@pytest.mark.heavy
def test_a_model_is_fine_tuned_by_its_verb(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base without a template gets ours, keeps it, and answers by it; the passes go by what there is."""
    base = train(tiny(steps=2, model__max_len=64, out=str(tmp_path / "base")))
    data, out = talks(tmp_path / "talks.jsonl", 40), tmp_path / "tuned"
    words = ["finetune", str(base.model_folder), "--data", str(data), "--out", str(out), "--dtype", "float32",
             "--device", "cpu", "--json"]  # fmt: skip
    capsys.readouterr()
    assert run([*words, "--epochs", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["task"] == "sft" and said["step"] == 4 and said["next_command"] == f"transom chat {out}"
    kept = load(TrainSettings, file=out / "settings.toml")
    assert kept.recipe == "evidence" and kept.batch.texts == 16 and kept.optim.name == "adamw"
    assert kept.method == "lora" and (out / "model" / "adapter_config.json").is_file()
    config = json.loads((out / "model" / "tokenizer_config.json").read_text())
    assert config["chat_template"] == BUILTIN["turns"]
    model = transom.load(out / "model", transom.Generator)
    ends = model.template.end_ids(model.tokenizer)
    assert ends <= model.eos_ids and len(ends) == 1
    assert isinstance(model.chat("Which colour has number 1?", max_tokens=4, temperature=0).text, str)
    assert run(["finetune", str(base.model_folder)]) == 2
    assert "--data FILE" in capsys.readouterr().err


def test_no_row_is_longer_than_the_longest_conversation() -> None:
    """A model may read no token more than that, whatever widths rows are rounded to."""
    lengths = np.array([23, 22, 11, 11])
    ids = Ragged(np.ones(lengths.sum(), dtype=np.uint32), np.append(0, np.cumsum(lengths)))
    rows = ConversationRows(ids, np.ones(lengths.sum(), dtype=np.bool_), np.ones(4, dtype=np.int64))
    batch = Conversations(rows, 4, pad_id=0).batch(0)
    assert batch.tokens.shape == (3, 23) and batch.n_targets == lengths.sum() - 4
