"""A promise about errors holds as often as it says, and who asks for too much is told what it takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from transom.errors import Refused
from transom.retrieval.ask import ask
from transom.retrieval.calibrate import CONFIDENCE, bound, calibrate, choose, plain
from transom.retrieval.indexing import index
from transom.retrieval.questions import read_labelled
from transom.retrieval.search import KnowledgeBase


def drawn(rng: np.random.Generator, n: int, floor: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of which the truth is known: an answer of confidence s is right with probability s (1 -
    floor).
    """
    scores = rng.beta(2, 1, n) ** 0.3
    return scores, rng.random(n) < scores * (1 - floor)


def test_the_promise_holds_in_95_of_100_calibrations() -> None:
    rng, allowed, broken, made = np.random.default_rng(0), 0.1, 0, 0
    truth_scores, _ = drawn(rng, 400_000)
    order = np.sort(truth_scores)
    wrong_above = np.cumsum((1 - order)[::-1])[::-1]  # expected, over all that are as sure
    for _ in range(1500):
        scores, right = drawn(rng, 250)
        _, kept, _, _ = choose(scores, right, allowed)
        if kept is not None:
            made += 1
            at = np.searchsorted(order, kept.threshold)
            broken += wrong_above[at] / (len(order) - at) > allowed
    assert made > 500  # it promises something
    assert broken / 1500 <= 1 - CONFIDENCE + 3 * np.sqrt(0.05 * 0.95 / 1500)


def test_answers_are_compared_by_words_or_characters() -> None:
    for said, answer, holds in (
        ("Employees get 25 days.", "25 days", True),
        ("Employees get 255 days.", "25", False),
        ("员工每年有25天假期。", "25天", True),
        ("员工每年有25天假期。", "30天", False),
        ("ボイラーは田中さんが点検します。", "田中さん", True),
    ):
        assert (f" {plain(answer)} " in f" {plain(said)} ") == holds


def test_what_cannot_be_promised_is_said() -> None:
    rng = np.random.default_rng(1)
    _, kept, strictest, needed = choose(*drawn(rng, 40), 0.02)
    assert kept is None and strictest.bound > 0.02
    _, none, _, more = choose(*drawn(rng, 600, floor=0.3), 0.05)
    assert none is None and more is None  # three of ten are wrong however sure it is
    assert needed is None or needed > 100
    assert bound(0, 59) < 0.05 < bound(0, 58) and bound(3, 3) == 1.0


@pytest.fixture
def kb(tmp_path: Path) -> Path:
    """An index of forty rooms and who has the key of each."""
    rows = [
        {"text": f"Room {i} is called Alpha{i}. The key of Alpha{i} hangs at desk {i * 7}."}
        for i in range(40)
    ]
    (tmp_path / "rooms.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index([tmp_path / "rooms.jsonl"], tmp_path / "kb", embedder="none")
    return tmp_path / "kb"


def test_a_threshold_is_kept_with_the_index(kb: Path, tmp_path: Path) -> None:
    known = [
        {"question": f"Where does the key of Alpha{i} hang?", "answer": f"desk {i * 7}"} for i in range(40)
    ]
    unknown = [
        {"question": f"Which colour has the door of Alpha{i} in winter?", "answer": None} for i in range(40)
    ]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in known + unknown))
    found = calibrate(kb, labelled, max_error=0.2)
    assert found.kept is not None and found.kept.answered >= 20, found
    answer = ask(KnowledgeBase.open(kb), known[3]["question"])
    assert answer.text == "The key of Alpha3 hangs at desk 21." and "at most 20.0%" in answer.promise
    assert answer.threshold == found.kept.threshold
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in known[:10]))
    short = calibrate(kb, few, max_error=0.05)
    assert short.kept is None and short.needed and "labelled questions more" in str(short)
    assert (
        ask(KnowledgeBase.open(kb), known[3]["question"]).threshold == found.kept.threshold
    )  # left as it was


def test_wrong_lines_are_named(tmp_path: Path) -> None:
    file = tmp_path / "labelled.jsonl"
    for line, says in (
        ('{"question": "a", "answr": "b"}', "1: 'answr' is not a key here; did you mean 'answer'"),
        ('{"question": "a"}', "1: there is no 'answer'"),
        ('{"question": 3, "answer": null}', "'question' is int, not text"),
        ('{"question": " ", "answer": null}', "1: the question is empty"),
        ('{"question": "a", "answer": null}', "1 labelled questions; calibrating takes hundreds"),
    ):
        file.write_text(line + "\n")
        with pytest.raises(Refused, match=says):
            read_labelled(file)
    with pytest.raises(Refused, match="--max-error is 5"):
        calibrate(tmp_path / "kb", file, max_error=5)
