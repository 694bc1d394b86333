"""What is said of two models follows from the interval of their difference, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from transom.evaluation.paired import Comparison, Example, Measure, wins_and_losses, worst_first
from transom.intervals import Estimate


def measure(low: float, high: float, **changes: object) -> Measure:
    middle = Estimate((low + high) / 2, low, high)
    made = Measure("accuracy", "points", Estimate(80, 78, 82), Estimate(83, 81, 85), middle, 500, suffix="%")
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "more", "verdict"),
    [
        (1, 5, True, "better"),
        (-1, 5, True, "no measurable improvement"),
        (-5, -1, True, "harmed"),
        (1, 5, False, "harmed"),
        (-5, -1, False, "better"),
        (0, 0, True, "no measurable improvement"),
        (float("nan"), float("nan"), True, "no measurable improvement"),
    ],
)
def test_a_word_stands_for_where_the_interval_lies(low: float, high: float, more: bool, verdict: str) -> None:
    assert measure(low, high, more_is_better=more).verdict == verdict


def test_the_sentence_has_the_scores_the_interval_and_n() -> None:
    assert measure(1, 5).sentence == (
        "better: accuracy 83.0% beside 80.0%, +3.0 points (95% interval +1.0 to +5.0; n = 500 texts)"
    )
    assert measure(0, 0).sentence.endswith("exactly equal (n = 500 texts)")
    unknown = measure(float("nan"), float("nan"), n=8)
    assert unknown.sentence.endswith("n = 8 texts: too few that tell the two apart for an interval")


def compared(*measures: Measure) -> Comparison:
    examples = [
        Example(f"x:{i}", "asked", "wanted", "b", "a", gain) for i, gain in enumerate((1.0, -2.0, 0.0, -1.0))
    ]
    return Comparison("classify", "new", "old", "some texts", measures, worst_first(examples))


def test_what_is_better_and_what_is_harmed_are_both_said() -> None:
    better, same = measure(1, 5), measure(-1, 1, name="speed")
    harmed = measure(-3, -1, name="general text", elsewhere=True)
    both = compared(better, harmed)
    assert both.verdict == "better" and both.headline.endswith("; harmed: general text")
    assert [sentence.split(":")[0] for sentence in both.sentences] == ["better", "harmed"]
    assert compared(same, harmed).verdict == "harmed" == compared(harmed, better).verdict
    assert compared(same, harmed).headline.startswith("harmed: general text -2.0 points")
    assert compared(same, same).verdict == "no measurable improvement" == compared(same, better).verdict


def test_answers_that_are_worse_are_harm_though_the_loss_is_better() -> None:
    """As of answers cut in half: likelier, and no answers."""
    loss, answers = measure(1, 5, name="loss"), measure(-14, -4, name="chrF to the answer")
    forgotten = measure(-3, -1, name="general text", elsewhere=True)
    found = compared(loss, measure(1, 3, name="ends by itself"), forgotten, answers)
    assert found.verdict == "harmed" and found.lead is answers
    assert found.headline.startswith(
        "harmed: chrF to the answer -9.0 points (95% interval -14.0 to -4.0; n ="
    )
    assert found.headline.endswith("; better: loss; harmed: general text")
    assert [sentence.split(" 8")[0] for sentence in found.sentences] == [
        "harmed: chrF to the answer", "better: loss", "harmed: general text", "better: ends by itself",
    ]  # fmt: skip


def test_what_is_judged_and_what_repeats() -> None:
    same, harmed = measure(-1, 1, name="speed"), measure(-3, -1)
    costs = measure(-3, -1, name="tokens/s", judged=False)
    assert compared(same, costs).verdict == "no measurable improvement" and costs.word == "less"
    repeated = measure(-3, -1, repeats=True)
    assert len(compared(harmed, repeated).sentences) == 1


def test_examples_stand_worst_first_and_equal_ones_are_left_out() -> None:
    found = compared(measure(1, 5))
    assert [one.where for one in found.examples] == ["x:1", "x:3", "x:0"]
    text = str(found)
    assert text.index("x:1") < text.index("x:3") < text.index("verdict: better")
    assert wins_and_losses(np.array([1, -1, 0, 2.0])) == (2, 1)


def test_it_is_plain_values_too() -> None:
    told = json.loads(json.dumps(compared(measure(1, 5)).to_dict(), allow_nan=False))
    assert told["verdict"] == "better" and told["measures"][0]["n"] == 500
    assert told["measures"][0]["difference"] == {"value": 3.0, "low": 1, "high": 5}
    assert told["examples"][0]["gain"] == -2.0
