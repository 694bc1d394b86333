"""Every task of every member: it learns, ends with the same bits when resumed, and its folder is used."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import transom
from transom.checkpoint.huggingface import load_config
from transom.data.examples import Classification as Labelled
from transom.data.examples import LabelledRows
from transom.data.ragged import Ragged
from transom.errors import Refused
from transom.model.build import build
from transom.model.experts import routers
from transom.settings import ModelSettings, OptimSettings, TrainSettings, load
from transom.training.architecture import model_config, rates
from transom.training.evaluate import EvalSet
from transom.training.example_tasks import class_weights
from transom.training.loop import train
from transom.training.objectives import Classification
from transom.training.report import Report
from transom.training.tasks import choose_task

from .conftest import Tiny

WORDS = "red blue green grey big small old new cat dog bird fish sat ran flew slept here there".split()  # noqa: SIM905
FORMS = dict(zip(WORDS, ["rot", "blau", "grün", "grau", "groß", "klein", "alt", "neu", "Katze", "Hund", "Vogel", "Fisch", "saß", "lief", "flog", "schlief", "hier", "dort"], strict=True))  # noqa: E501  # fmt: skip


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences of four words with their translation word by word, and with the animal as their class."""
    folder = tmp_path_factory.mktemp("examples")
    rng = np.random.default_rng(0)
    rows = [
        [WORDS[rng.integers(*span)] for span in ((0, 8), (8, 12), (12, 16), (16, 18))] for _ in range(300)
    ]
    rows = list(dict.fromkeys(map(tuple, rows)))
    pairs = [f"{' '.join(row)}\t{' '.join(FORMS[word] for word in row)}\n" for row in rows]
    (folder / "pairs.tsv").write_text("source\ttarget\n" + "".join(pairs))
    classes = [f"{row[1]}\t{' '.join(row)}\n" for row in rows]
    (folder / "classes.tsv").write_text("label\ttext\n" + "".join(classes))
    return folder


SMALL = {"batch__tokens": 256, "batch__micro": None, "data__val_fraction": 0.1, "model__max_len": 48}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "translate": ("pairs.tsv", {"task": "translate"}),
    "translate with gru": ("pairs.tsv", {"task": "translate", "model__kind": "gru", "model__head_dim": None}),
    "classify": ("classes.tsv", {"task": "classify"}),
    "embed": ("pairs.tsv", {"task": "embed"}),
    "masks": ("", {"task": "mlm", "model__max_len": 32}),
    "experts": ("", {"model__experts": 4, "model__max_len": 32}),
    "lstm": ("", {"model__kind": "lstm", "model__max_len": 32, "model__head_dim": None}),
}


def settings_of(name: str, tiny: Tiny, examples: Path, **more: Any) -> Any:
    file, changes = RUNS[name]
    named = {"data__source": str(examples / file), "data__tokenizer": "chars"} if file else {}
    if name == "masks":
        named = {"data__tokenizer": "bpe", "data__vocab_size": 300}
    return tiny(**{**SMALL, **named, **changes, **more})


@pytest.mark.parametrize("name", RUNS)
def test_a_run_learns_and_resumes_with_the_same_bits(
    name: str, tiny: Tiny, examples: Path, tmp_path: Path
) -> None:
    whole = train(
        settings_of(name, tiny, examples, steps=8, save_every=4, keep=9, out=str(tmp_path / "whole"))
    )
    assert whole.loss is not None and whole.loss < max(whole.references.values())
    assert ("bigram" in whole.references) == (whole.task == "lm")  # what precedes a mask is not all there is
    stopped = tmp_path / "stopped"

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "save" and event["step"] == 4 and "checkpoints" in event["path"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            settings_of(name, tiny, examples, steps=8, save_every=4, keep=9, out=str(stopped)), on_event=stop
        )
    again = train(load(type(settings_of(name, tiny, examples)), {"out": str(stopped), "resume": True}))
    assert again.step == 8 and again.weights_sha256 == whole.weights_sha256


def test_a_translator_learns_to_translate(tiny: Tiny, examples: Path) -> None:
    run = train(
        settings_of(
            "translate",
            tiny,
            examples,
            steps=250,
            data__tokenizer="bpe",
            data__vocab_size=400,
            model__dropout=0.0,
        )
    )
    translator = transom.load(run.model_folder)
    rows = [line.split("\t") for line in (examples / "pairs.tsv").read_text().splitlines()[1:41]]
    right = sum(translator.translate(source, beam=2).text == target for source, target in rows)
    assert right >= 36, f"{right} of 40; {translator.translate(rows[0][0]).text!r} for {rows[0]}"


@pytest.mark.parametrize(("epochs", "dropped"), [(6, 0.0), (14, 0.2)])
def test_pairs_that_are_seen_often_are_learned_with_dropout(
    epochs: int, dropped: float, tiny: Tiny, examples: Path
) -> None:
    often = {"epochs": epochs, "steps": None, "batch__tokens": 100_000, "eval_every": 99}
    run = train(settings_of("translate", tiny, examples, **often))
    assert load_config(run.model_folder)[0].dropout == dropped


def test_a_classifier_learns_its_classes_and_a_translator_of_them_can_begin_there(
    tiny: Tiny, examples: Path, tmp_path: Path
) -> None:
    run = train(settings_of("classify", tiny, examples, steps=120))
    classifier = transom.load(run.model_folder)
    assert classifier.classify("red cat sat here").label == "cat"
    assert classifier.classify("red cat sat here", reject_below=1.0).label is None
    begun = train(settings_of("classify", tiny, examples, steps=1, model__weights=str(run.model_folder),
                              model__dim=None, model__n_layers=None, model__head_dim=None,
                              model__max_len=None, data__tokenizer="auto",
                              out=str(tmp_path / "begun")))  # fmt: skip
    assert begun.loss is not None and begun.loss < 1.0 < begun.references["uniform"]
    assert begun.ledger["begun_from"] == str(run.model_folder)


def test_the_load_of_experts_is_told_and_kept_even(tiny: Tiny) -> None:
    run = train(tiny(steps=60, model__experts=4, model__max_len=32, batch__tokens=512, batch__micro=None,
                     optim__lr=0.03))  # fmt: skip
    steps = [event for event in run.metrics if event["event"] == "step"]
    assert {"max_violation", "entropy", "dead_experts"} == set(steps[0]["load"])
    assert steps[-1]["load_lately"]["dead_experts"] == 0
    model = transom.load(run.model_folder).model
    assert any(bool(router.correction.any()) for router in routers(model) if router.correction is not None)


def test_the_task_is_guessed_from_the_data_and_said(examples: Path, tiny: Tiny) -> None:
    said: list[dict[str, Any]] = []
    for file, task in (("pairs.tsv", "translate"), ("classes.tsv", "classify")):
        settings = tiny(data__source=str(examples / file))
        assert choose_task(settings, Report(True, said.append)).task == task
    assert [event["text"].split(" (")[0] for event in said] == ["task: translate", "task: classify"]
    assert choose_task(tiny(model__kind="encoder"), Report(False)).task == "mlm"


def test_data_that_is_not_there_is_refused_before_a_word_is_said(tiny: Tiny, tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    (tmp_path / "empty").mkdir()
    for source, says in (("nope.txt", "no such file"), ("empty", "no text files in this folder")):
        with pytest.raises(Refused, match=says):
            choose_task(tiny(data__source=str(tmp_path / source)), Report(True, said.append))
    assert not said


def test_a_table_whose_names_say_nothing_gets_a_command(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mails.csv"
    for head, cells, says in (
        ("Nr;Anfrage;Bereich", ("{n}", "die Anfrage {n}", "Bereich {c}"),
         "to learn classes: transom train {file} --task classify --data.field Anfrage --data.label Bereich"),
        ("Nr;Frage;Antwort", ("{n}", "die Frage {n}", "die Antwort {n}"),
         "to learn pairs: transom train {file} --task translate "
         "--data.field Frage --data.target-field Antwort"),
    ):  # fmt: skip
        rows = [";".join(cell.format(n=n, c="ab"[n % 2]) for cell in cells) for n in range(20)]
        file.write_text("\n".join([head, *rows]) + "\n")
        with pytest.raises(Refused, match=says.format(file=file)):
            choose_task(tiny(data__source=str(file)), Report(False))


def test_embedded_examples_have_a_budget_of_their_own(tiny: Tiny) -> None:
    bare = load(TrainSettings, {"task": "translate"})
    assert choose_task(bare, Report(False)).budget == 180
    assert choose_task(bare.with_({"budget": 60}), Report(False)).budget == 60
    assert choose_task(bare.with_({"steps": 9}), Report(False)).budget is None
    assert choose_task(bare.with_({"data.source": "x.tsv"}), Report(False)).budget == 600


@pytest.mark.parametrize("wanted", [1, 40, 150])
def test_what_is_scored_along_the_way_is_about_as_long_as_all(wanted: int) -> None:
    lengths = np.random.default_rng(0).integers(2, 40, 300)
    rows = [np.full(length, 3, dtype=np.uint32) for length in lengths]
    whole = Labelled(LabelledRows(Ragged.of(rows), np.zeros(300, dtype=np.int64)), 256, pad_id=0)
    batches = whole.eval_batches(256)
    widths, scored = (
        [batch.tokens.shape[1] for batch in some] for some in (batches, EvalSet.examples(whole, 256, wanted))
    )
    assert len(scored) < len(widths) and np.mean(scored) == pytest.approx(np.mean(widths), rel=0.15)


@pytest.mark.parametrize("asked", ["none", "auto", "balanced"])
def test_weighed_classes_are_learned_when_the_scores_give_the_odds_of_the_data(asked: str) -> None:
    counts = np.array([90, 10])
    config = model_config(ModelSettings(dim=16, n_layers=1, max_len=8), 20, "classify", ("a", "b"), pad_id=0)
    model = build(config).train()
    objective = Classification(model, weights=class_weights(counts, asked)[0])
    with torch.no_grad():
        model.head.out.weight.zero_()  # type: ignore[union-attr]
        model.head.out.bias.copy_(torch.tensor([0.75, 0.25]).log())  # type: ignore[union-attr]
    rows = np.tile(np.array([3, 4, 5], dtype=np.uint32), (4, 1))
    batch = Labelled(LabelledRows(Ragged.of(list(rows)), np.array([0, 0, 0, 1])), 99, pad_id=0).batch(0)
    objective(batch).backward()
    bias = model.head.out.bias  # type: ignore[union-attr]
    torch.testing.assert_close(bias.grad, torch.zeros(2), atol=1e-6, rtol=0)


def test_a_quarter_is_learned_as_a_quarter(tmp_path: Path, tiny: Tiny) -> None:
    """Nine to one: of texts with `x` a quarter is rare, of those with `y` one in fifty."""
    rng = np.random.default_rng(0)
    rows = [("x", "rare")] * 150 + [("x", "common")] * 450 + [("y", "rare")] * 18 + [("y", "common")] * 882
    texts = [f"{kind} {''.join(rng.choice(list('abcdefgh'), 3))}\t{label}\n" for kind, label in rows]
    source = tmp_path / "uneven.tsv"
    source.write_text("text\tlabel\n" + "".join(rng.permutation(texts)))
    run = train(tiny(data__source=str(source), data__tokenizer="chars", data__cache=None, task="classify",
                     epochs=8, steps=None, batch__tokens=512, batch__micro=None, eval_every=999,
                     model__max_len=8))  # fmt: skip
    classifier = transom.load(run.model_folder, dtype="float32")
    for kind, wanted in (("x", 0.25), ("y", 0.02)):
        found = classifier.classify([text.split("\t")[0] for text in texts if text.startswith(kind)])
        learned = np.mean([one.probabilities["rare"] for one in found])
        assert learned == pytest.approx(wanted, abs=0.05), kind


def test_rare_classes_count_more_where_classes_are_uneven() -> None:
    counts = np.array([90, 10])
    auto, said = class_weights(counts, "auto")
    assert auto is not None and "9.0 times" in said
    assert auto[1] / auto[0] == pytest.approx(3.0)  # the root of nine
    assert float((auto * torch.tensor(counts)).sum() / 100) == pytest.approx(1.0)
    assert class_weights(np.array([60, 40]), "auto")[0] is None
    balanced = class_weights(counts, "balanced")[0]
    assert balanced is not None and balanced[1] / balanced[0] == pytest.approx(9.0)
    assert class_weights(counts, "none")[0] is None
    for asked in ("auto", "balanced"):  # a class of which no example is left has no share in the mean
        weights = class_weights(np.array([90, 10, 0]), asked)[0]
        assert weights is not None and weights[:2].tolist() == class_weights(counts, asked)[0].tolist()  # type: ignore[union-attr]
        assert weights[2] == 1


def test_a_class_of_which_no_text_fits_is_named_and_training_goes_on(tmp_path: Path, tiny: Tiny) -> None:
    rows = [f"{'abcd'[n % 4]} {n},a\n{'wxyz'[n % 4]} {n},b\n" for n in range(100)]
    source = tmp_path / "classes.csv"
    source.write_text("text,label\n" + "".join(rows) + f"{'long ' * 50},c\n")
    said: list[str] = []
    settings = tiny(data__source=str(source), data__tokenizer="chars", task="classify", steps=4,
                    data__cache=None)  # fmt: skip
    run = train(settings, on_event=lambda event: said.append(str(event.get("text", ""))))
    assert run.step == 4 and math.isfinite(run.loss or math.nan)
    assert any("no example of 'c' is left" in text for text in said)


def test_given_weights_learn_from_windows_of_the_length_that_was_asked_for(tiny: Tiny) -> None:
    given = str(train(tiny(steps=1, model__max_len=128)).model_folder)
    shaped = dict(model__dim=None, model__n_layers=None, model__head_dim=None, data__tokenizer="auto")
    run = train(tiny(steps=2, out=str(tiny().out) + "-2", model__weights=given, model__max_len=16, **shaped))
    assert load_config(run.model_folder)[0].max_len == 128, "the model reads as much as before"
    told = (run.folder / "settings.toml").read_text()
    assert "max_len = 16" in told
    assert run.tokens == 2 * 256
    again = train(load(TrainSettings, {"out": str(run.folder), "resume": True}))
    assert again.step == 2


def test_a_rate_that_is_given_alone_moves_the_matrices_too() -> None:
    config = model_config(ModelSettings(), 100)
    rule = rates(OptimSettings(name="muon"), config, "lm")
    slower = rates(OptimSettings(name="muon", lr=rule.lr / 4), config, "lm")
    assert slower.matrix_lr == pytest.approx(rule.matrix_lr / 4)
    assert rates(OptimSettings(name="muon", lr=1e-3, matrix_lr=2e-3), config, "lm").matrix_lr == 2e-3
