"""Preferences are learned as pair by pair: DPO and ORPO equal TRL's, however a step is cut up or shared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.conftest import Tiny
from transom.checkpoint.folder import commit
from transom.checkpoint.huggingface import save_model
from transom.data.examples import ConversationRows, PreferenceRows, Preferences
from transom.data.ragged import Ragged
from transom.errors import Refused
from transom.model.config import ModelConfig
from transom.model.losses import sequence_losses, sequence_losses_plain
from transom.model.transformer import Transformer
from transom.settings import TrainSettings
from transom.training import preference_score, reference
from transom.training.evaluate import EvalSet, score
from transom.training.gradient import take_gradient
from transom.training.loop import train
from transom.training.objectives import Preference
from transom.training.parallelism import World

N = 12
LOSSES = {"dpo": dict(loss="dpo"), "cdpo": dict(loss="dpo", smoothing=0.1), "orpo": dict(loss="orpo")}


def model(**changes: Any) -> Transformer:
    shape = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8,
             "ffn_dim": 24, "max_len": 64}  # fmt: skip
    return Transformer(ModelConfig(**{**shape, **changes})).double()


@pytest.fixture(scope="module")
def rows() -> PreferenceRows:
    """Pairs with prompts of 3 to 9 tokens, and answers of 1 to 30 of different lengths."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 40, rng.integers(3, 10)) for _ in range(N)]

    def side() -> ConversationRows:
        ids = [np.append(prompt, rng.integers(1, 40, rng.integers(1, 31))) for prompt in prompts]
        flags = [np.arange(len(row)) >= len(prompt) for row, prompt in zip(ids, prompts, strict=True)]
        return ConversationRows(Ragged.of(ids), np.concatenate(flags), np.arange(N))

    return PreferenceRows(side(), side())


def order_of(rows: PreferenceRows, least_rows: int = 1) -> Preferences:
    """All pairs in one step, with what another model would have said of them."""
    order = Preferences(rows, 10**6, pad_id=0, least_rows=least_rows)
    order.reference = -np.random.default_rng(1).uniform(5, 90, (N, 2)).astype(np.float32)
    return order


def gradient_of(net: Transformer, parts: list[Any], **options: Any) -> tuple[float, dict[str, torch.Tensor]]:
    named = dict(net.named_parameters())
    n_targets = sum(part.n_targets for part in parts)
    objective = Preference(net, torch.float64, **options)
    taken = take_gradient(objective, parts, n_targets, named, World(), 0, 0)
    return taken.loss, {n: w.grad.clone() for n, w in named.items() if w.grad is not None}


def assert_equal(one: tuple[float, Any], other: tuple[float, Any]) -> None:
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    for name, grad in one[1].items():
        torch.testing.assert_close(grad, other[1][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", LOSSES)
def test_padded_is_unpadded_is_accumulated_is_shared(kind: str, rows: PreferenceRows) -> None:
    net, options = model(), LOSSES[kind]
    order = order_of(rows, least_rows=3)
    whole = order.batch(0)
    assert whole.n_targets == N and whole.tokens.shape[1] < rows.chosen.tokens.longest
    together = gradient_of(net, [whole], **options)
    alone = [order.take(np.array([at])) for at in range(N)]
    assert_equal(gradient_of(net, alone, **options), together)
    for size in (1, 5):
        parts = whole.split(size)
        assert sum(part.tokens.numel() for part in parts) < whole.tokens.numel()
        assert_equal(gradient_of(net, parts, **options), together)
    for world in (2, 3):
        shares = [order.batch(0, rank, world) for rank in range(world)]
        assert_equal(gradient_of(net, shares, **options), together)


def plain_logprobs(net: Transformer, side: ConversationRows, mean: bool) -> torch.Tensor:
    """Of each answer, in one plain forward pass by itself."""
    said = []
    for at in range(N):
        ids = torch.from_numpy(side.tokens[at].astype(np.int64))[None]
        logprobs = net.logits(net(ids)).double().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
        flags = torch.from_numpy(side.learned[side.tokens.starts[at] + 1 : side.tokens.starts[at + 1]])
        said.append(logprobs[flags].mean() if mean else logprobs[flags].sum())
    return torch.stack(said)


@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_is_the_published_formula(kind: str, rows: PreferenceRows) -> None:
    """In float64, from plain forward passes: Rafailov et al. 2023, eq. 7; Mitchell 2023; Hong et al. 2024."""
    net, order, sigmoid = model(), order_of(rows), torch.nn.functional.logsigmoid
    chosen, rejected = (plain_logprobs(net, side, kind == "orpo") for side in (rows.chosen, rows.rejected))
    if kind == "orpo":
        odds = [said - torch.log(1 - said.exp()) for said in (chosen, rejected)]
        wanted = -chosen - 0.1 * sigmoid(odds[0] - odds[1])
    else:
        ref = torch.from_numpy(order.reference).double()
        z = 0.1 * ((chosen - ref[:, 0]) - (rejected - ref[:, 1]))
        flipped = LOSSES[kind].get("smoothing", 0.0)
        wanted = -(1 - flipped) * sigmoid(z) - flipped * sigmoid(-z)
    loss, _ = gradient_of(net, [order.batch(0)], **LOSSES[kind])
    assert loss == pytest.approx(wanted.mean().item(), abs=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("bias", [False, True])
def test_sequence_losses_are_those_of_all_logits_at_once(
    softcap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transom.model.losses.RUN_BYTES", 4 * 37 * 5)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(*shape, generator=generator).requires_grad_() for shape in ((4, 9, 8), (37, 8), (37,))
    )
    targets = torch.randint(37, (4, 9), generator=generator)
    targets[torch.rand(4, 9, generator=generator) < 0.4] = -100
    inputs = [hidden, weight, *([offset] if bias else [])]
    found = []
    for way in (sequence_losses, sequence_losses_plain):
        losses = way(hidden, weight, targets, softcap, offset if bias else None)
        made_of = torch.nn.functional.logsigmoid(losses[:2] - losses[2:]).sum()
        found.append((losses, *torch.autograd.grad(made_of, inputs)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_is_measured_beside_the_loss(rows: PreferenceRows) -> None:
    order, net = order_of(rows), model()
    objective = Preference(net, torch.float64)
    found = score(objective, EvalSet.examples(order, 200, N), World())
    assert found is not None and found.n_targets == N
    said = torch.stack(
        [plain_logprobs(net, side, False) for side in (rows.chosen, rows.rejected)], 1
    ).detach()
    ref = torch.from_numpy(order.reference)
    margin = 0.1 * ((said - ref)[:, 0] - (said - ref)[:, 1])
    before, after = ref[:, 0] > ref[:, 1], said[:, 0] > said[:, 1]
    wanted = (margin > 0, margin, after, after & ~before, before & ~after)
    sums = {name: float(one.sum()) for name, one in zip(objective.measures, wanted, strict=True)}
    assert found.sums == pytest.approx(sums, abs=1e-4)
    shown = found.to_dict()
    assert shown["accuracy"]["value"] == pytest.approx(float((margin > 0).double().mean()))
    assert shown["likelier_gain"]["value"] == pytest.approx(float((after.double() - before.double()).mean()))
    assert shown["pairs"] == N and shown["margin"] == pytest.approx(margin.mean().item(), abs=1e-5)


def test_a_verdict_needs_an_interval() -> None:
    much = {"preferred": 70.0, "margin": 20.0, "likelier": 60.0, "gained": 25.0, "lost": 5.0}
    words = preference_score.in_words(much, 100)
    assert "70.0%" in words and "more often than by chance" in words and words.endswith(": better")
    little = {"preferred": 54.0, "margin": 1.0, "likelier": 51.0, "gained": 3.0, "lost": 2.0}
    words = preference_score.in_words(little, 100)
    assert "which can be chance" in words and words.endswith(": no measurable change")


# --- runs


def pairs(path: Path, n: int = 60) -> Path:
    """Questions whose polite answer is the chosen one."""
    with open(path, "w") as file:
        for at in range(n):
            pair = {"prompt": f"What is {at}?", "chosen": f"Please: {at % 7}.", "rejected": f"No, {at % 5}!"}
            file.write(json.dumps(pair) + "\n")
    return path


@pytest.fixture
def few(tmp_path: Path) -> dict[str, Any]:
    return dict(data__source=str(pairs(tmp_path / "pairs.jsonl")), data__cache=None, model__max_len=64,
                batch__tokens=None, batch__texts=8, save_every=4, keep=9, prompt=None,
                optim__lr=3e-3)  # fmt: skip


def test_a_run_begins_at_indifference_and_resumes_with_the_same_bits(
    tiny: Tiny, few: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny(**few, steps=8, out=str(tmp_path / "whole")))
    assert whole.task == "preference" and whole.unit == "pair" and "What is" in whole.prompt
    assert whole.references == {"indifference": math.log(2)}
    losses = [event["loss"] for event in whole.metrics if event["event"] == "step"]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0]
    held_out = [event for event in whole.metrics if event["event"] == "held_out"][-1]
    assert held_out["accuracy"]["value"] > 0.9 and "more often than by chance" in whole.sentence
    assert "no measurable change" in whole.sentence or "better" in whole.sentence

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "save" and event["step"] == 4 and "checkpoints" in event["path"]:
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        train(tiny(**few, steps=8, out=str(again)), on_event=stop)

    def never(*_: Any) -> Any:
        raise AssertionError("a resumed run takes its reference from changed weights")

    monkeypatch.setattr(reference, "logprobs_of", never)
    run = train(tiny(out=str(again), resume=True, **few, steps=8))
    assert run.step == 8 and run.weights_sha256 == whole.weights_sha256


def test_a_run_without_a_reference(tiny: Tiny, few: dict[str, Any], tmp_path: Path) -> None:
    run = train(tiny(**few, steps=8, preference__loss="orpo", model__kind="lstm", out=str(tmp_path / "run")))
    steps = [event["loss"] for event in run.metrics if event["event"] == "step"]
    assert run.references == {} and steps[-1] < steps[0] and "of two answers in" in run.sentence
    assert len(list((tmp_path / "run" / "data").glob("*/prepared.json"))) == 1


def test_settings_that_mean_nothing_are_refused(tiny: Tiny, few: dict[str, Any], tmp_path: Path) -> None:
    for changes, says in (
        ({"preference__loss": "orpo", "optim__label_smoothing": 0.1}, "orpo has none"),
        ({"optim__label_smoothing": 0.5}, "below 0.5"),
        ({"task": "sft", "data__map": ("prompt=prompt", "completion=chosen"), "preference__beta": 0.5},
         "preference is set, but the task is sft"),
    ):  # fmt: skip
        with pytest.raises(Refused, match=says):
            train(tiny(**{**few, **changes}, out=str(tmp_path / "refused")))


def test_a_rate_of_its_own_from_pretrained_weights() -> None:
    from transom.training.architecture import rates

    optim, config = TrainSettings().with_({"optim.name": "adamw"}).optim, model().config
    assert rates(optim, config, "preference", True).lr == 5e-6
    assert rates(optim, config, "preference", True, lora=True).lr == 5e-5
    assert rates(optim, config, "sft", True).lr == 5e-5


# --- TRL


@pytest.fixture
def both(rows: PreferenceRows, tmp_path: Path) -> tuple[PreferenceRows, list[Transformer], list[Any]]:
    """Pairs that end as TRL has them end, two models of ours, and the same two read by transformers."""
    transformers = pytest.importorskip("transformers")
    sides = [ConversationRows(Ragged(side.tokens.flat.copy(), side.tokens.starts), side.learned, side.n_bytes)
             for side in (rows.chosen, rows.rejected)]  # fmt: skip
    for side in sides:
        side.tokens.flat[side.tokens.starts[1:] - 1] = 39
    ours = [Transformer(model(qk_norm=False).config, seed) for seed in (3, 4)]
    theirs = []
    for seed, net in enumerate(ours):
        with commit(tmp_path / str(seed)) as folder:
            save_model(folder, net)
        theirs.append(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(seed)))
    return PreferenceRows(*sides), ours, theirs


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own, of names that transformers gives up
def test_dpo_equals_trl(both: tuple[Any, list[Any], list[Any]], tmp_path: Path) -> None:
    """One batch through TRL's own trainer, from text on: the same loss to 1e-4."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rows, (ours, before), theirs = both
    words = Tokenizer(models.WordLevel({f"t{at}": at for at in range(40)}, "t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t39", pad_token="t0")
    texts: list[dict[str, str]] = []
    for at in range(N):
        first, last = rows.chosen.tokens.starts[at : at + 2]
        n = int((~rows.chosen.learned[first:last]).sum())
        one, other = ([f"t{word}" for word in side.tokens[at]] for side in (rows.chosen, rows.rejected))
        parts = {"prompt": one[:n], "chosen": one[n:], "rejected": other[n:]}
        texts.append({
            name: (" " if name != "prompt" else "") + " ".join(part) for name, part in parts.items()
        })  # fmt: skip
    config = trl.DPOConfig(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=N, beta=0.1, report_to=[], use_cpu=True,
        bf16=False, max_length=64, activation_checkpointing=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        theirs[0], ref_model=theirs[1], args=config, train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
    )  # fmt: skip
    wanted = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader()))).item()
    order = order_of(rows)
    order.reference = reference.logprobs_of(Preference(before), order, World())
    loss, _ = gradient_of(ours, [order.batch(0)])
    assert abs(wanted - math.log(2)) > 1e-3 and loss == pytest.approx(wanted, abs=1e-4)


@pytest.mark.heavy
def test_orpo_equals_trl(both: tuple[Any, list[Any], list[Any]]) -> None:
    """TRL's log-probabilities and odds ratio. Its mean -log p takes in the prompt, and weighs long answers
    more; the paper's (eq. 6), which is of the answer alone, stands for it here.
    """
    trainer = pytest.importorskip("trl.experimental.orpo").ORPOTrainer
    rows, (ours, _), (theirs, _) = both
    said = []
    for side in (rows.chosen, rows.rejected):
        ids, documents = side.tokens.padded(np.arange(N), 0)
        learned, _ = Ragged(side.learned.view(np.uint8), side.tokens.starts).padded(np.arange(N), 0)
        tokens = torch.from_numpy(ids)
        labels = tokens.masked_fill(torch.from_numpy(learned) == 0, -100)
        logits = theirs(tokens, attention_mask=torch.from_numpy(documents + 1)).logits
        said.append(trainer.get_batch_logps(logits, labels, average_log_prob=True))
    itself = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    ratios = trainer.odds_ratio_loss(itself, *said)[0]
    loss, _ = gradient_of(ours, [order_of(rows).batch(0)], loss="orpo")
    assert loss == pytest.approx((-said[0] - ratios).mean().item(), abs=1e-4)
