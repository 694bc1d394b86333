"""Examinations: that a real advantage is seen, that none is invented, and what is refused."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

import transom
from transom import __main__ as door
from transom.data import prepare_examples as preparing
from transom.data.labelled import Labelled
from transom.data.pairs import Pair, open_pairs
from transom.errors import Refused
from transom.evaluation.baselines import TfidfLogistic, TranslationMemory
from transom.evaluation.examine import examine, examine_classifier, examine_translator, examined, remedy
from transom.settings import TrainSettings, load
from transom.training.loop import train


@dataclass
class Answer:
    text: str = ""
    mean_logprob: float = 0.0
    probabilities: dict[str, float] = field(default_factory=dict)


class Counting:
    """Knows the rule that no bag of words can: whether the word `x` stands before the word `y`."""

    def classify(self, texts: list[str], *, cut: bool = False) -> list[Answer]:
        sure = [0.9 if text.split().index("x") < text.split().index("y") else 0.1 for text in texts]
        return [Answer(probabilities={"after": 1 - p, "before": p}) for p in sure]


class Same:
    """The baseline itself, in the clothes of a model."""

    def __init__(self, train: list[Labelled]) -> None:
        self.model = TfidfLogistic().fit([item.text for item in train], [item.label for item in train])

    def classify(self, texts: list[str], *, cut: bool = False) -> list[Answer]:
        rows = self.model.probabilities(texts).tolist()
        return [Answer(probabilities=dict(zip(self.model.labels, row, strict=True))) for row in rows]


def ordered(n: int, seed: int) -> list[Labelled]:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = list(rng.choice(["a", "b", "c", "d", "e"], 8))
        first, second = sorted(rng.choice(9, 2, replace=False))
        before = bool(rng.random() < 0.5)
        words.insert(first, "x" if before else "y")
        words.insert(second + 1, "y" if before else "x")
        rows.append(Labelled(" ".join(words), "before" if before else "after", f"made.tsv:{i + 1}"))
    return rows


def test_a_model_that_knows_more_is_called_better_by_how_much() -> None:
    report = examine_classifier(Counting(), ordered(300, 0), ordered(200, 1))
    assert report.differences[0].estimate.low > 20
    assert report.verdict.startswith("better than TF-IDF + logistic regression by")
    assert "points of accuracy (95% interval" in report.verdict
    assert report.samples == ()
    text = str(report)
    assert f"verdict: {report.verdict}" in text and "always '" in text and "macro-F1" in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["verdict"] == report.verdict and plain["score"]["accuracy"]["value"] == 1


def test_the_baseline_is_not_better_than_itself() -> None:
    train, test = ordered(200, 2), ordered(100, 3)
    report = examine_classifier(Same(train), train, test)
    assert [difference.estimate.value for difference in report.differences] == [0, 0]
    assert report.verdict.startswith("not better than TF-IDF") and "chance" in report.verdict
    assert report.verdicts[1].startswith("no verdict on points of macro-F1 beside TF-IDF")
    assert report.samples and report.samples[0].startswith("  made.tsv:")


def test_uneven_classes_bring_a_second_baseline() -> None:
    train = [item for i, item in enumerate(ordered(400, 4)) if item.label == "before" or i % 5 == 0]
    names = [rival.name for rival in examine_classifier(Counting(), train, ordered(60, 5)).rivals]
    assert len(names) == 3 and names[1].endswith("classes weighed equally")


class Looked:
    def __init__(self, answers: dict[str, str]) -> None:
        self.answers, self.beam = answers, 0

    def translate(self, texts: list[str], *, beam: int) -> list[Answer]:
        self.beam = beam
        return [Answer(self.answers[text], -i / len(texts)) for i, text in enumerate(texts)]


def test_a_translator_is_measured_against_the_stronger_of_two_baselines() -> None:
    dates = list(open_pairs("dates"))[:600]
    train, test = dates[:500], dates[500:]
    knows = Looked({pair.source: pair.target for pair in test})
    report = examine_translator(knows, train, test, beam=3)
    assert report.unsure_below == pytest.approx(-0.94, abs=0.01) == report.to_dict()["unsure_below"]
    assert knows.beam == 3 and report.score.to_dict()["exact"]["value"] == 1
    assert [rival.name for rival in report.rivals] == ["the source, copied", TranslationMemory.name]
    assert report.verdict.startswith(f"better than {TranslationMemory.name} by")
    assert [difference.unit for difference in report.differences] == ["points of exact answers", "BLEU"]
    assert test[0].target in str(report) and "signature" not in str(report) and "tok:13a" in str(report)


def test_a_translator_that_copies_is_told_so() -> None:
    pairs = [
        Pair(f"ein Haus Nummer {i} steht am Ufer", f"a house number {i} is near", f"x:{i}") for i in range(60)
    ]
    report = examine_translator(Looked({p.source: p.source for p in pairs}), pairs[:30], pairs[30:])
    assert report.verdict.startswith("not better than")


def test_short_answers_are_judged_by_whether_they_are_exact() -> None:
    pairs = [Pair(f"Wort {i}", f"word {i}", f"x:{i}") for i in range(80)]
    report = examine_translator(Looked({p.source: p.target for p in pairs}), pairs[:40], pairs[40:])
    assert report.score.bleu is None and [d.unit for d in report.differences] == ["points of exact answers"]
    assert report.verdict.startswith("better than") and "BLEU" not in "".join(r.said for r in report.rivals)


@pytest.mark.parametrize(("n", "texts"), [(1, "1 held-out text"), (29, "29 held-out texts")])
def test_of_a_handful_of_texts_nothing_is_said_but_what_is_needed(n: int, texts: str) -> None:
    report = examine_classifier(Counting(), ordered(100, 0), ordered(n, 1))
    assert report.verdicts == [f"none: of {texts} nothing can be said; give at least 30"]
    assert "better" not in str(report) and "verdict: none" in str(report)
    assert report.score.accuracy.low < 0.91  # all are right, and that shows little


def test_a_folder_outside_of_any_run_needs_its_training_data(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="lies in no run.*--train"):
        examine(tmp_path)


TINY = {
    "data.tokenizer": "bytes", "model.dim": 32, "model.n_layers": 1, "model.head_dim": 16,
    "model.max_len": 128, "batch.micro": 16, "dtype": "float32", "device": "cpu",
}  # fmt: skip


def test_a_run_that_tells_classes_is_examined_on_what_it_held_out(tmp_path: Path) -> None:
    words = {"fruit": ["apple", "pear", "plum"], "tool": ["hammer", "saw", "drill"]}
    rows = [f"a {words[label][i % 3]} numbered {i}\t{label}" for i in range(120) for label in words]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    (tmp_path / "test.tsv").write_text("text\tlabel\nmy old saw\ttool\nthe ripe plum\tfruit\n")
    run = train(load(TrainSettings, {
        **TINY, "data.source": str(tmp_path / "train.tsv"), "task": "classify", "steps": 12,
        "data.val_fraction": 0.2, "out": str(tmp_path / "run"),
    }))  # fmt: skip
    report = examine(tmp_path / "run")
    assert report.task == "classify"
    assert report.score.n == run.ledger["data"]["held_out_examples"]
    assert report.test.endswith("train.tsv (held out)")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == json.loads(
        json.dumps(report.to_dict())
    )
    named = examine(tmp_path / "run" / "model", test=str(tmp_path / "test.tsv"))
    assert named.verdict.endswith("nothing can be said; give at least 30 (--test FILE)")
    assert named.score.n == 2 and named.test.endswith("test.tsv")


def test_what_a_run_prepared_is_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "".join(f"{label} number {i}\t{label}\n" for i in range(60) for label in ("fruit", "tool"))
    (tmp_path / "train.tsv").write_text(rows)
    settings = {**TINY, "data.source": str(tmp_path / "train.tsv"), "steps": 2, "out": str(tmp_path / "run")}
    settings["data.tokenizer"] = "bpe"
    train(load(TrainSettings, settings))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this was prepared before")

    monkeypatch.setattr(preparing, "survey_examples", refuse)
    assert examine(tmp_path / "run").task == "classify"
    said: list[str] = []
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    train(load(TrainSettings, {**settings, "resume": True, "steps": 3}),
          on_event=lambda event: said.append(str(event.get("text"))))  # fmt: skip
    assert any(text.startswith(f"prepared before: {tmp_path / 'run' / 'data'}") for text in said)


def test_a_run_that_learned_from_standard_input_asks_for_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"{label} number {i}\t{label}\n" for i in range(60) for label in ("fruit", "tool"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
    run = train(load(TrainSettings, {**TINY, "data.source": "-", "steps": 2, "out": str(tmp_path / "run")}))
    assert run.task == "classify"
    assert examined(run) is run, "what was trained is told, though it cannot be examined"
    with pytest.raises(
        Refused, match="learned from standard input, which is gone; name a file .* by --train"
    ):
        examine(tmp_path / "run")
    (tmp_path / "same.tsv").write_text(rows)
    report = examine(tmp_path / "run", train=str(tmp_path / "same.tsv"))
    assert report.score.n == run.ledger["data"]["held_out_examples"]


def test_texts_that_are_too_long_are_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    rows = [f"{label} {'word ' * (30 * (i % 2))}\t{label}" for i in range(60) for label in ("fruit", "tool")]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    settings = {
        **TINY, "data.source": str(tmp_path / "train.tsv"), "task": "classify", "steps": 2,
        "data.val_fraction": 0.2, "out": str(tmp_path / "run"),
    }  # fmt: skip
    with pytest.raises(Refused, match="limit is 128;.*--data.too-long cut"):
        train(load(TrainSettings, settings))
    said: list[str] = []
    run = train(
        load(TrainSettings, {**settings, "data.too_long": "cut"}),
        on_event=lambda event: said.append(str(event.get("text"))),
    )
    assert any("60 of 120 texts are longer than 128 tokens and are cut there: they lose 18%" in s
               for s in said)  # fmt: skip
    assert examine(tmp_path / "run").score.n == run.ledger["data"]["held_out_examples"]
    classifier = transom.load(run.model_folder)
    long = "fruit " + "word " * 30
    with pytest.raises(Refused, match="reads at most 128"):
        classifier.classify(long)
    cut, whole = classifier.classify([long, long[:126]], cut=True)
    assert cut.probabilities == pytest.approx(whole.probabilities, abs=1e-5)


def test_a_run_that_translates_is_examined_beside_its_baselines(tmp_path: Path) -> None:
    rows = [f"the number {i} is here\tdie Nummer {i} ist hier" for i in range(80)]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
    train(load(TrainSettings, {
        **TINY, "data.source": str(tmp_path / "pairs.tsv"), "task": "translate", "steps": 3,
        "out": str(tmp_path / "run"),
    }))  # fmt: skip
    report = examine(tmp_path / "run", beam=2)
    assert report.task == "translate" and len(report.rivals) == 2
    assert report.verdict.startswith(f"none: of {report.score.n} held-out texts nothing can be said")
    assert "--data.validation FILE), or train on 600 and more" in report.verdict
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["task"] == "translate"
    assert report.remedy == "" and str(report).endswith(report.verdict)
    enough = examine(tmp_path / "run", test=str(tmp_path / "pairs.tsv"), beam=1)
    assert "more pairs" in enough.remedy and str(enough).endswith(f"\n{enough.remedy}")
    assert examine(tmp_path / "run" / "model", beam=2).verdict == report.verdict
    with pytest.raises(Refused, match="no such folder; did you mean '.*/run'"):
        examine(tmp_path / "runs")


def test_a_classifier_from_nothing_is_told_of_given_weights() -> None:
    """By a command that is whole; one that began with them is told of something else."""
    data = {"source": "my tickets.csv", "field": "Subject", "label": "Team"}
    settings = load(TrainSettings, {"task": "classify", "data": data})
    words = shlex.split(remedy(settings, Path("run")).partition("tried: ")[2])
    assert words[:5] == ["transom", "train", "my tickets.csv", "--task", "classify"]
    _, bound, unknown = door.app.parse_known_args(words[1:])[:3]
    flags = bound.arguments["flags"]
    assert not unknown and (flags.data.field, flags.data.label) == ("Subject", "Team")
    assert "pretrained weights" not in remedy(
        settings.with_({"model.weights": flags.model.weights}), Path("run")
    )


def test_a_translator_is_told_how_to_go_on() -> None:
    settings = load(TrainSettings, {"task": "translate", "budget": "75s"})
    assert "(transom train --out 'my run' --resume --budget 4min)" in remedy(settings, Path("my run"))


def test_a_language_model_has_nothing_to_be_examined_in(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and ran\n" * 40)
    train(load(TrainSettings, {
        **TINY, "data.source": str(tmp_path / "text.txt"), "steps": 1, "task": "lm", "prompt": "",
        "model.max_len": 32, "batch.tokens": 128, "batch.micro": 4, "out": str(tmp_path / "run"),
    }))  # fmt: skip
    with pytest.raises(Refused, match="neither a translator nor a classifier"):
        examine(tmp_path / "run")
