"""Scores of classes against scikit-learn's, and how they read."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from tests.scale import scaled
from transom.errors import Refused
from transom.evaluation.classification import ClassScore, score_classes


def made(n: int, n_classes: int, seed: int, prefix: str = "c") -> tuple[list[str], np.ndarray, list[str]]:
    """Labels, probabilities and truth of a classifier that is right more often than not."""
    rng = np.random.default_rng(seed)
    labels = [f"{prefix}{i:02}" for i in range(n_classes)]
    truth = rng.integers(n_classes, size=n)
    scores = rng.normal(size=(n, n_classes))
    scores[np.arange(n), truth] += 1.5
    raised = np.exp(scores)
    return labels, raised / raised.sum(axis=1, keepdims=True), [labels[i] for i in truth]


@given(st.integers(1, 60), st.integers(2, 6), st.integers(0, 1000))
@settings(max_examples=scaled(15))
def test_scores_equal_scikit_learns(n: int, n_classes: int, seed: int) -> None:
    labels, probabilities, truth = made(n, n_classes, seed)
    guessed = [labels[i] for i in probabilities.argmax(axis=1)]
    score = score_classes(labels, probabilities, truth)
    assert score.accuracy.value == pytest.approx(accuracy_score(truth, guessed))
    assert score.macro_f1.value == pytest.approx(f1_score(truth, guessed, average="macro", zero_division=0))
    assert (score.confusion == confusion_matrix(truth, guessed, labels=labels)).all()
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, guessed, labels=labels, zero_division=np.nan
    )
    for i, part in enumerate(score.per_class):
        found = [np.nan if share is None else share.value for share in (part.precision, part.recall)]
        assert found == pytest.approx([precision[i], recall[i]], nan_ok=True)
        assert part.f1 == pytest.approx(np.nan_to_num(f1[i])) and part.n == support[i]
    assert score.brier.value == pytest.approx(((probabilities - np.eye(n_classes)[
        [labels.index(label) for label in truth]]) ** 2).sum(axis=1).mean())  # fmt: skip


def test_answering_less_means_being_right_more() -> None:
    score = score_classes(*made(2000, 4, 0))
    coverage = [part.coverage for part in score.answered]
    accuracy = [part.accuracy for part in score.answered if part.accuracy is not None]
    assert coverage == sorted(coverage, reverse=True) and coverage[0] > coverage[-1]
    assert accuracy == sorted(accuracy)


def test_nothing_answered_is_said_and_not_divided_by() -> None:
    score = score_classes(["a", "b"], np.array([[0.6, 0.4], [0.55, 0.45]]), ["a", "b"])
    assert score.answered[-1].coverage == 0 and score.answered[-1].accuracy is None
    assert score.temperature is None
    assert "      -" in str(score)


def test_few_classes_are_a_matrix_and_many_are_their_worst_pairs() -> None:
    few, many = score_classes(*made(600, 12, 1)), score_classes(*made(600, 13, 1))
    assert "truth in rows" in str(few) and "most confused" not in str(few)
    assert "most confused of 13 classes" in str(many) and "truth in rows" not in str(many)
    assert max(map(len, str(few).splitlines())) <= 110
    worst = (many.confusion - np.diag(np.diag(many.confusion))).max()
    first = next(line for line in str(many).splitlines() if " called " in line)
    assert int(first.split()[0]) == worst


def test_long_names_are_numbered_and_the_matrix_stays_narrow() -> None:
    text = str(score_classes(*made(600, 12, 2, prefix="a class with quite a long name, number ")))
    assert max(map(len, text.splitlines())) <= 110
    matrix = text.split("truth in rows")[1].split("\n\n")[0]
    assert "12 a class wit" in matrix and matrix.splitlines()[1].split() == [str(i) for i in range(1, 13)]


def test_too_sure_is_said_with_its_cure() -> None:
    labels, probabilities, truth = made(1500, 3, 3)
    sharp = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)
    score = score_classes(labels, sharp, truth)
    assert score.temperature is not None and 2 < score.temperature < 4
    assert score.ece and score.ece_tempered is not None and score.ece_tempered < score.ece / 2
    line = next(line for line in str(score).splitlines() if "too sure" in line)
    assert line.endswith(f" with classify --temperature {score.temperature:.2f}") and len(line) <= 110


def test_what_chance_explains_is_not_called_a_fault() -> None:
    rng = np.random.default_rng(5)
    sure = rng.uniform(0.5, 1, 300)
    right = rng.random(300) < sure
    honest = score_classes(["a", "b"], np.stack([sure, 1 - sure], axis=1), ["a" if r else "b" for r in right])
    assert honest.ece and honest.ece_by_chance and honest.ece < honest.ece_by_chance
    assert "one that is calibrated would show up to" in str(honest) and "too s" not in str(honest)
    few = score_classes(*made(99, 3, 4))
    assert few.ece is None is few.ece_by_chance and "99 texts are too few" in str(few)


def test_macro_f1_has_an_interval_where_mistakes_and_every_class_are_many_enough() -> None:
    labels, probabilities, truth = made(200, 3, 6)
    whole = score_classes(labels, probabilities, truth).macro_f1
    assert whole.known and whole.low < whole.value < whole.high
    rare = [i for i, label in enumerate(truth) if label != "c02"][:150] + [truth.index("c02")]
    assert not score_classes(labels, probabilities[rare], [truth[i] for i in rare]).macro_f1.known
    right = [i for i in range(200) if probabilities[i].argmax() == labels.index(truth[i])]
    perfect = score_classes(labels, probabilities[right], [truth[i] for i in right])
    assert perfect.macro_f1.value == 1 and not perfect.macro_f1.known and not perfect.brier.known
    assert perfect.accuracy.low < 0.99 and "100.0% (too few for an interval)" in str(perfect)


def test_it_can_be_written_as_json() -> None:
    score = score_classes(*made(100, 3, 4))
    plain = json.loads(json.dumps(score.to_dict(), allow_nan=False))
    assert plain["n"] == 100 and np.array(plain["confusion"]).sum() == 100
    assert isinstance(score, ClassScore)


def test_mistakes_of_a_caller() -> None:
    labels, probabilities, truth = made(5, 2, 5)
    with pytest.raises(Refused, match="test text 5 has the label 'c1'.*did you mean 'c01'"):
        score_classes(labels, probabilities, [*truth[:4], "c1"])
    with pytest.raises(Refused, match="no labelled text"):
        score_classes(labels, probabilities[:0], [])
    with pytest.raises(ValueError, match="one column for each label"):
        score_classes(labels, probabilities[:, :1], truth)
