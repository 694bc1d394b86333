"""The cheap systems: that they learn, and what they cannot know."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from transom.errors import Refused
from transom.evaluation.baselines import TfidfLogistic, TranslationMemory, majority


def trec(shared_data: Path) -> tuple[list[str], list[str]]:
    lines = (shared_data / "trec" / "TREC.train.all").read_text(encoding="latin-1").splitlines()
    labels, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    order = np.random.default_rng(0).permutation(len(lines))[:1500]
    return [texts[i] for i in order], [labels[i] for i in order]


def test_it_beats_the_majority_on_real_questions(shared_data: Path) -> None:
    texts, labels = trec(shared_data)
    model = TfidfLogistic().fit(texts[:1200], labels[:1200])
    found = np.array(model.labels)[model.probabilities(texts[1200:]).argmax(axis=1)]
    accuracy = (found == np.array(labels[1200:])).mean()
    always = np.mean(np.array(labels[1200:]) == majority(labels[:1200]))
    assert always < 0.35 and accuracy > 0.70


def test_it_is_the_same_each_time() -> None:
    texts = [f"{'good' if i % 2 else 'bad'} film number {i % 7}" for i in range(40)]
    labels = ["yes" if i % 2 else "no" for i in range(40)]
    one, other = (TfidfLogistic().fit(texts, labels).probabilities(texts) for _ in range(2))
    assert (one == other).all() and (one.argmax(axis=1) == [i % 2 for i in range(40)]).all()


def test_columns_come_in_the_order_that_is_asked_for() -> None:
    texts, labels = ["a cat", "a dog", "the cat", "the dog"] * 3, ["cat", "dog"] * 6
    model = TfidfLogistic().fit(texts, labels)
    own = model.probabilities(texts)
    asked = model.probabilities(texts, ["dog", "bird", "cat"])
    assert (asked[:, 0] == own[:, 1]).all() and (asked[:, 2] == own[:, 0]).all() and not asked[:, 1].any()


def test_balanced_finds_the_rare_class_more_often() -> None:
    rng = np.random.default_rng(0)
    rare = rng.random(600) < 0.06
    words = [f"w{i}" for i in range(30)]
    texts = [" ".join([*rng.choice(words, 6), *(["signal"] if rng.random() < (0.5 if r else 0.08) else [])])
             for r in rare]  # fmt: skip
    labels = ["rare" if r else "common" for r in rare]
    found = {}
    for balanced in (False, True):
        model = TfidfLogistic(balanced=balanced).fit(texts[:400], labels[:400])
        said = np.array(model.labels)[model.probabilities(texts[400:]).argmax(axis=1)]
        found[balanced] = (said[rare[400:]] == "rare").mean()
    assert found[True] > found[False] + 0.2


@pytest.mark.parametrize("counts", [(5, 1), (1, 1), (2, 3)])
def test_classes_of_a_text_or_two_are_no_obstacle(counts: tuple[int, int]) -> None:
    labels = ["a"] * counts[0] + ["b"] * counts[1]
    model = TfidfLogistic().fit([f"{label} text {i}" for i, label in enumerate(labels)], labels)
    assert model.probabilities(["a text"]).shape == (1, 2)


def test_one_class_is_refused() -> None:
    with pytest.raises(Refused, match="all 2 training texts have one label"):
        TfidfLogistic().fit(["x y", "z w"], ["a", "a"])


def test_majority_of_equals_is_the_first_by_name() -> None:
    assert majority(["b", "a", "b", "a", "c"]) == "a"


def test_the_memory_finds_what_it_has_seen() -> None:
    sources = [f"the {animal} is {color}" for animal in ("dog", "cat", "horse") for color in ("red", "grey")]
    memory = TranslationMemory(sources, [text.upper() for text in sources])
    memory.rows = 4
    assert memory.translate(sources) == [text.upper() for text in sources]
    assert memory.translate(["a grey horse"]) == ["THE HORSE IS GREY"]
