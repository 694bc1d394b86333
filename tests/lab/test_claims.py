"""The frame of the claims: verdicts from intervals, runs that go on, seeds as one program, the page."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.__main__ import run
from transom.errors import Refused
from transom.insight.html import Markup
from transom.intervals import Estimate, share
from transom.lab import CLAIMS, bias, experts, longer, parallel, power_law, recall, retrieval, state, transfer
from transom.lab.claim import (
    Claim,
    Control,
    Outcome,
    Plant,
    Points,
    Prediction,
    Verdict,
    judge,
    mean,
    mean_share,
    share_gap,
    share_sum,
    solved,
)
from transom.lab.claim_run import run_claim
from transom.lab.claims import claim, glass_box
from transom.lab.plot import Series, figure, grid, lines, stacks
from transom.lab.report import MEANT, write_report
from transom.lab.tiny import Net, Rows, Seeds, clip_each, rows_of, shape
from transom.usage import GLOSSARY


@pytest.mark.parametrize(
    "side, low, high, outcome",
    [("above", 0.2, 0.3, "holds"), ("above", 0.0, 0.05, "refuted"), ("above", 0.0, 0.2, "undecided"),
     ("below", 0.0, 0.05, "holds"), ("below", 0.2, 0.3, "refuted"), ("below", 0.0, 0.2, "undecided"),
     ("within", -0.05, 0.05, "holds"), ("within", 0.2, 0.3, "refuted"), ("within", -0.3, -0.2, "refuted"),
     ("within", -0.2, 0.05, "undecided"), ("above", float("nan"), float("nan"), "undecided")],
)  # fmt: skip
def test_an_outcome_follows_from_the_interval(side: Any, low: float, high: float, outcome: Outcome) -> None:
    one = Prediction("it does", "x", side, 0.1)
    assert one.outcome({"x": Estimate((low + high) / 2, low, high)}) == outcome


@pytest.mark.parametrize(
    "outcomes, word",
    [(("holds", "holds"), "holds"), (("holds", "undecided"), "undecided"), (("refuted",), "refuted"),
     (("refuted", "undecided"), "refuted"), (("holds", "refuted", "undecided"), "holds in part")],
)  # fmt: skip
def test_a_verdict_follows_from_the_outcomes(outcomes: tuple[Outcome, ...], word: str) -> None:
    assert Verdict(outcomes, ()).word == word
    assert Verdict(outcomes, ("enough",)).word == "inconclusive: undertrained"


def planned(measure: Callable[..., Any], height: float = 1.0) -> Claim:
    """A claim about a height that `measure` finds."""
    return Claim(
        name="height", number=99, statement="It is high.", textbook="t", expected="e", protocol="p",
        not_shown="n", predictions=(Prediction("it is high", "height", "above", 0.5),),
        controls=(Control("it was measured", "seen", 1.0),),
        arms=lambda quick: {"one": {"height": height}, "two": {"height": height}}, measure=measure,
        read=lambda points: {"height": mean(points["one"], "height"),
                             "seen": solved(points["two"], "seen", 1)},
        draw=lambda points: Markup("<svg></svg>"), 
        plant=Plant({"height": 0.0}, ("one",)), planted="made low",
    )  # fmt: skip


def by_height(arm: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    return [{"height": arm["height"] + seed / 100, "seen": 1} for seed in seeds]


def test_seeds_that_agree_by_chance_are_not_surer_than_their_questions() -> None:
    same, fewer = np.full(3, 0.01), np.full(3, 0.005)
    found, less = mean_share(same, 100), share_gap(fewer, same, 100)
    assert (found.low, found.high) == (share(3, 300).low, share(3, 300).high)
    assert less.value == -0.005 and less.low < 0 < less.high  # 1 and 2 in 200 tell nothing apart
    assert not mean_share(np.array([0.2]), 100).known  # one seed has no interval
    half = mean_share(np.full(3, 0.5), 100)  # many right and many wrong: one standard error, not two
    assert 0.5 - half.low == pytest.approx(half.high - 0.5) == pytest.approx((0.25 / 300) ** 0.5, rel=0.05)


def test_no_share_passes_what_it_can_be() -> None:
    wild = np.array([[1.0, 0.0], [0.2, 0.9], [1.0, 0.3]])
    assert mean_share(wild[:, 0], 50).high == 1.0 and mean_share(wild[:, 1], 50).low == 0.0
    assert share_gap(wild[:, 0], wild[:, 1], 50).high == 1.0
    assert share_sum(wild, [0.5, -0.25], [50, 50]).high == 0.5  # all of the first, none of the second


@pytest.mark.parametrize("apart", [0.0, 0.02])
@pytest.mark.parametrize(
    "truth, weights",
    [((0.05,), [1.0]), ((0.5,), [1.0]), ((0.9, 0.5), [1.0, -1.0]), ((0.95, 0.7, 0.3), [0.25, 0.0, -0.25]),
     ((1.0, 0.95, 0.6, 0.35), [0.26, 0.03, -0.09, -0.2])],
)  # fmt: skip
def test_intervals_of_shares_over_seeds_hold_the_truth_95_times_of_100(
    apart: float, truth: tuple[float, ...], weights: list[float]
) -> None:
    """2,000 runs of 4 seeds, 300 questions each: seeds that differ, and seeds that do not."""
    rng, n, due = np.random.default_rng(5), 300, float(np.array(truth) @ weights)
    each = np.where(np.array(truth) < 1, truth + apart * rng.standard_normal((2000, 4, len(truth))), 1.0)
    runs = rng.binomial(n, np.clip(each, 0, 1)) / n
    found = [share_sum(run, weights, [n] * len(truth)) for run in runs]
    assert 0.93 <= np.mean([one.low <= due <= one.high for one in found]) <= 0.97
    assert min(one.high - one.low for one in found) > 0


def test_shares_near_their_end_are_covered_too() -> None:
    """2,000 runs of 3 seeds of which most make no mistake, where Student's interval has mostly no width."""
    rng, n = np.random.default_rng(6), 250
    for truth in (0.99, 0.997, 0.9995):
        runs = rng.binomial(n, truth, (2000, 3)) / n
        found = [mean_share(run, n) for run in runs]
        assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.93


def test_the_falsifier_stands_before_the_numbers_and_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[tuple[float, int]] = []
    file = tmp_path / "height" / "quick" / "result.json"

    def measure(arm: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
        before = json.loads(file.read_text(encoding="utf-8"))
        assert before["verdict"] == "not yet measured" and "below 0.5" in before["falsifier"][0]["refuted_if"]
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.extend((arm["height"], seed) for seed in seeds)
        return by_height(arm, seeds)

    with pytest.raises(KeyboardInterrupt):
        run_claim(planned(measure), tmp_path, quick=True)
    kept = {path.name for path in (file.parent / "points").iterdir()}
    assert kept == {"one-0.json", "one-1.json", "one-2.json"}
    result = run_claim(planned(by_height), tmp_path, quick=True)
    assert [p["height"] for p in result.record["points"]["one"]] == [1.0, 1.01, 1.02]
    assert result.record["verdict"] == "holds" and "Consistent with: it is high" in str(result)
    asked.clear()
    run_claim(planned(measure), tmp_path, quick=True, seeds=4)
    assert asked == [(1.0, 3), (1.0, 3)]  # of a fourth seed only what is missing
    asked.clear()
    low = run_claim(planned(measure, height=0.1), tmp_path, quick=True, seeds=2)
    assert asked == [(0.1, 0), (0.1, 1)] * 2  # other settings are other points
    assert low.record["verdict"] == "refuted" and "Not consistent with" in low.record["sentence"]


def test_a_planted_cause_flips_the_verdict_and_lies_apart(tmp_path: Path) -> None:
    run_claim(planned(by_height), tmp_path, quick=False)
    planted = run_claim(planned(by_height), tmp_path, quick=False, planted=True)
    assert planted.record["verdict"] == "refuted" and planted.record["planted"] == "made low"
    assert json.loads((tmp_path / "height/full/result.json").read_text())["verdict"] == "holds"
    with pytest.raises(Refused, match="no single cause"):
        run_claim(dataclasses.replace(planned(by_height), plant=None), tmp_path, quick=True, planted=True)
    with pytest.raises(Refused, match="at least 2"):
        run_claim(planned(by_height), tmp_path, quick=True, seeds=1)


@pytest.mark.parametrize("changes", [{}, {"kind": "encoder", "position": "learned"}, {"cell": "lstm"}])
def test_seeds_as_one_program_are_the_same_as_each_alone(changes: dict[str, Any]) -> None:
    config = shape(11, 8, **changes)

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(11, (4, 8), generator=generator)
        return tokens, tokens.flip(1)

    both, alone = Seeds(lambda s: Net(config, s), (0, 5)), Seeds(lambda s: Net(config, s), (5,))
    rows = rows_of(draw, (0, 5), salt=3)
    together, single = both.train(draw, 4, 0.01), alone.train(draw, 4, 0.01)
    assert together[1] == pytest.approx(single[0], rel=1e-4) and together[0] != together[1]
    last = [net(rows.tokens[i]) for i, net in enumerate(both.nets())]
    torch.testing.assert_close(both(rows.tokens), torch.stack(last), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(last[1], next(alone.nets())(rows.tokens[1]), rtol=1e-3, atol=1e-3)


def test_gradients_are_clipped_seed_by_seed() -> None:
    weight, bias = torch.zeros(2, 3), torch.zeros(2)
    weight.grad, bias.grad = torch.tensor([[3.0, 0, 0], [0.3, 0, 0]]), torch.tensor([4.0, 0.4])
    clip_each([weight, bias])
    torch.testing.assert_close(weight.grad[:, 0], torch.tensor([0.6, 0.3]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad, torch.tensor([0.8, 0.4]), rtol=1e-5, atol=1e-5)


def small(name: str, **changes: Any) -> Claim:
    """A claim with some numbers of its arms changed, where they have them."""
    whole = claim(name)

    def arms(quick: bool) -> dict[str, dict[str, Any]]:
        return {
            arm: {**settings, **{k: v for k, v in changes.items() if k in settings}}
            for arm, settings in whole.arms(quick).items()
        }

    return dataclasses.replace(whole, arms=arms)


def outcomes(one: Claim, planted: bool, arms: Sequence[str] | None = None) -> dict[str, Outcome]:
    """What the tests of a claim say, whatever its controls do."""
    points: Points = {
        name: one.measure(settings, [0, 1, 2]) for name, settings in one.settings(True, planted).items()
    }
    return dict(zip([p.reading for p in one.predictions], judge(one, one.read(points)).outcomes, strict=True))


def test_without_its_residual_path_the_deep_transformer_loses_the_gradient() -> None:
    one = small("gradient", length=48)
    depth = "decades that near tokens lose from 2 to 8 layers"
    whole, planted = outcomes(one, False), outcomes(one, True)
    assert whole[depth] == "holds" and planted[depth] == "refuted"
    assert whole["decades per token, RNN"] == "holds"
    words = [Verdict(tuple(found.values()), ()).word for found in (whole, planted)]
    assert words[1] == "holds in part" and words[0] != words[1]


def test_without_the_root_rows_die_in_every_arm() -> None:
    one = small("scale", steps=1, rows=200, length=16)
    rows = "dead rows, d_k 1024, divided"
    planted = outcomes(one, True)
    assert outcomes(one, False)[rows] == "holds" and planted[rows] == "refuted"
    assert planted["loss, d_k 256, not divided less divided"] == "refuted"  # the two arms are then the same


def test_an_encoder_that_is_given_positions_knows_the_order() -> None:
    one = small("order", length=6, rows=32, steps=100, shuffles=2, asked=2000)
    few = {name: {**settings, "steps": settings["steps"] if name == "encoder, none" else 1}
           for name, settings in one.arms(True).items()}  # fmt: skip
    one = dataclasses.replace(one, arms=lambda quick: few)
    coin, moved = "accuracy beyond chance, encoder, none", "largest change under shuffling, encoder, none"
    whole, planted = outcomes(one, False), outcomes(one, True)
    assert whole[coin] == whole[moved] == "holds" and planted[coin] == planted[moved] == "refuted"


class IdealReader:
    """Says what a document says of the very thing asked, that it does not know where none does, and without
    documents what it learned, which is nothing of things never met.
    """

    def __init__(self, make: Callable[[int], Any], seeds: Sequence[int]) -> None:
        self.worlds = [retrieval.world(seed, False) for seed in seeds]

    def train(self, *_: Any) -> list[list[float]]:
        return [[1.0, 0.5] for _ in self.worlds]

    def ask(self, rows: Rows) -> torch.Tensor:
        logits = torch.zeros(*rows.targets.shape[:2], retrieval.VOCABULARY)
        for seed, of in enumerate(self.worlds):
            by_name = {tuple(name): thing for thing, name in enumerate(of.names[: retrieval.MET].tolist())}
            for row, (*documents, question) in enumerate(rows.tokens[seed].tolist()):
                said = [document[3] for document in documents if document[:3] == question[:3]]
                if not said and all(document[0] == retrieval.NOTHING for document in documents):
                    thing = by_name.get(tuple(question[:2]))
                    known = thing is not None and int(of.facts[thing, question[2] - retrieval.RELATION])
                    said = [known or retrieval.VALUE]
                logits[seed, row, said[0] if said else retrieval.UNKNOWN] = 1
        return logits


def test_false_documents_flip_what_retrieval_is_good_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "Seeds", IdealReader)
    one = small("retrieval", asked=200)
    less, right, left = (p.reading for p in one.predictions)
    whole, planted = outcomes(one, False), outcomes(one, True)
    assert (whole[less], whole[right], whole[left]) == ("holds", "holds", "holds")  # it abstains or is right
    assert (planted[less], planted[right], planted[left]) == ("refuted", "refuted", "refuted")
    points = {"reader": one.measure(one.arms(True)["reader"], [0, 1])}
    readings = one.read(points)
    assert readings["retrieval finds the document"].value == pytest.approx(1 - retrieval.MISSING, abs=0.04)
    assert readings["right, never met, the right document"].value == 1.0
    _, silent, made_up = points["reader"][0]["never met, another's document"]
    assert made_up == 0 and silent > 0.95  # another's may by chance be the right one
    right, _, made_up = points["reader"][0]["never met, two that contradict"]
    assert right == pytest.approx(0.5, abs=0.15) and right + made_up == 1  # whoever believes the first
    assert "made up" in one.draw(points)


def test_a_lesson_of_the_invented_world_is_what_it_says() -> None:
    of = retrieval.world(3, False)
    tokens, targets = retrieval.lesson(of, 400)(torch.Generator().manual_seed(0))
    by_heart = (tokens[:, :3] == retrieval.NOTHING).all(2).all(1)
    matches = (tokens[:, :3, :3] == tokens[:, 3:, :3]).all(2)
    told = matches.any(1)
    unknown = targets[:, -1] == retrieval.UNKNOWN
    assert (told ^ unknown ^ by_heart).all() and not (told & unknown).any()
    assert (tokens[:, :3, 3][matches] == targets[told, -1]).all() and matches.sum(1).max() == 1
    world_names = {tuple(name) for name in of.names[: retrieval.WORLD].tolist()}
    asked = [tuple(name) for name in tokens[:, 3, :2].tolist()]
    assert all((name in world_names) == bool(heart) for name, heart in zip(asked, by_heart, strict=True))


def test_recall_asks_for_what_was_paired() -> None:
    tokens, targets = recall.task(20, [3], [5])(torch.Generator().manual_seed(0))
    for row, asked in zip(tokens.tolist(), targets.tolist(), strict=True):
        pairs = dict(row[:3])
        assert len(pairs) == 3 and all(key >= recall.FILLER for key, _ in row[3:8])
        assert [pairs[key] for key, mark in row[8:] if mark == recall.ASK] == [v for v in asked if v >= 0]
    points = [{"1 at 4": 1.0, "1 at 16": 0.8, "1 at 64": 0.6}] * 3
    lost = recall.per_doubling(points, [(1, 4), (1, 16), (1, 64)], [4, 16, 64])
    assert lost.value == pytest.approx(0.1) and 0.08 < lost.low < 0.1 < lost.high < 0.12


def test_recall_is_measured_by_cells() -> None:
    one = small("recall", steps=1, rows=2, asked=3)
    two = {name: settings for name, settings in one.arms(True).items() if name != "GRU" and name != "LSTM"}
    points = {name: one.measure(settings, [0, 1]) for name, settings in two.items()}
    assert len(points["LSTM, chrono"][0]) == 1 + len(recall.FACTS) * len(recall.AWAY)
    assert judge(one, one.read(points)).word == "inconclusive: undertrained"
    assert "16 facts" in one.draw(points)


def test_a_recall_that_never_fails_is_level_within_what_its_questions_can_tell() -> None:
    """The points as a run keeps them; all seeds agree, and no interval is without width or passes 1."""
    point = {f"{n} at {far}": 1.0 for n in recall.FACTS for far in recall.AWAY}
    found = recall.read({"Transformer": [point] * 3})
    at_twice = found["accuracy at twice the learned distance, Transformer"]
    assert 0.99 < at_twice.low < at_twice.high == 1.0
    lost = found["accuracy lost per doubling of distance, Transformer"]
    assert lost.value == pytest.approx(0) and -0.01 < lost.low < 0 < lost.high < 0.01


def test_without_a_skew_in_the_data_there_is_none_in_the_model() -> None:
    one = small("bias", steps=300, rows=64)
    few = {name: {**settings, "steps": 1 if settings["swapped"] else settings["steps"]}
           for name, settings in one.arms(True).items()}  # fmt: skip
    one = dataclasses.replace(one, arms=lambda quick: few)
    slope = one.predictions[0].reading
    point = {"data": [0.05, 0.2, 0.8, 0.95, 0.5], "model": [0.1, 0.6, 0.9, 0.7, 0.9]}
    more = bias.likelier([point] * 3)
    assert more.value == pytest.approx(0.5) and more.low < 0.5 < more.high <= 1
    assert outcomes(one, False)[slope] == "holds" and outcomes(one, True)[slope] == "refuted"


def test_time_is_told_by_doublings() -> None:
    one = claim("parallel")
    point = {f"{name}, {n}": 1.0 for name in parallel.MEMBERS for n in parallel.LENGTHS}
    point |= {f"{name} writes, {n}": 1.0 for name in parallel.MEMBERS for n in parallel.WRITTEN}
    slow = point | {"LSTM, 512": 8.0, "Transformer writes, 480": 2.0}
    found = one.read({"in turns": [slow, slow, slow]})
    assert found["that of an LSTM less that of a Transformer"].value == pytest.approx(3.0)
    assert judge(one, found).outcomes == ("holds", "holds", "refuted")
    level = {"in turns": [point, point, point]}
    assert judge(one, one.read(level)).outcomes == ("undecided", "undecided", "holds")
    measured = one.measure({"tokens": 512, "dim": 16, "repeats": 1}, [0])[0]
    assert set(measured) == set(point) and min(measured.values()) > 0
    assert "ms per token" in one.draw({"in turns": [measured]})


def test_experts_meet_as_many_weights_as_the_dense_model_of_equal_compute() -> None:
    one = small("experts", steps=2, rows=2)
    points = {name: one.measure(settings, [0, 1]) for name, settings in one.arms(True).items()}
    mixed, dense, whole = (points[name][0] for name in (experts.MIXED, experts.ACTIVE, experts.WHOLE))
    routers = 2 * 4 * 48  # layers, experts, width
    assert mixed["active"] - routers == dense["weights"] and mixed["weights"] - routers == whole["weights"]
    assert judge(one, one.read(points)).word == "inconclusive: undertrained"
    planted = one.measure(one.settings(True, planted=True)[experts.MIXED], [0])[0]
    assert planted["weights"] == planted["active"] == dense["weights"] + routers // 2
    assert "nats per byte" in one.draw(points)


def test_a_planted_power_law_is_found_and_told_from_one_without_size() -> None:
    one = claim("power-law")

    def points(floor: float, scale: float) -> Points:
        found: dict[str, list[dict[str, Any]]] = {}
        for size in (1e4, 3e4, 1e5, 3e5):
            data = [1e5, 2e5, 5e5, 1e6]
            losses = [floor + scale * size**-0.35 + 40 * d**-0.3 for d in data]
            found[f"size {size}"] = [{"weights": size, "bytes": data, "losses": losses}] * 2
        level = [{"weights": 1e4, "bytes": [1e5], "losses": [3.0]}] * 2
        return {**found, "a, shuffled": level, "b, shuffled": level}

    law = points(1.0, 30.0)
    found = one.read(law)
    assert judge(one, found).outcomes == ("holds", "holds", "holds") and judge(one, found).word == "holds"
    assert found["exponent of size"].value == pytest.approx(0.35, abs=0.1)
    assert judge(one, one.read(points(2.0, 0.0))).outcomes[0] == "refuted"
    assert "foretold" in one.draw(law)
    assert [power_law.name(size) for size in ((1, 16), (2, 24))] == ["1 layer of 16", "2 layers of 24"]


def test_steps_saved_are_counted_from_the_best_of_scratch() -> None:
    one = claim("transfer")
    steps, amounts = [0, 10, 20, 40, 80], [f"{n}" for n in transfer.BYTES]
    slow = {"steps": steps, "blind": 3.0, "before": 700, **dict.fromkeys(amounts, [3.0, 2.9, 2.8, 2.6, 2.5])}
    fast = {**slow, **dict.fromkeys(amounts, [2.9, 2.5, 2.4, 2.3, 2.2])}
    points = {transfer.SCRATCH: [{**slow, "before": 0}] * 3, transfer.TUNED: [fast] * 3,
              transfer.SHUFFLED: [slow] * 3}  # fmt: skip
    found = one.read(points)
    assert found["doublings of steps saved, fine-tuned from code, 3,000 bytes"].value == pytest.approx(3.0)
    assert found["doublings of steps saved, fine-tuned from shuffled code, 3,000 bytes"].value == 0.0
    assert found["tasks of 30,000 bytes after which learning code has paid"].value == pytest.approx(10.0)
    assert judge(one, found).word == "holds"
    assert judge(one, one.read({**points, transfer.TUNED: [slow] * 3})).word == "refuted"
    assert [transfer.steps_to(slow, 3000, loss) for loss in (3.1, 2.9, 2.7, 2.0)] == pytest.approx(
        [1, 10, 30, 80]
    )


@pytest.mark.parametrize("name", ["power-law", "transfer"])
def test_what_learns_bytes_is_measured_and_drawn(name: str) -> None:
    one = small(name, steps=5, rows=2, before=2)
    points = {arm: one.measure(settings, [0, 1]) for arm, settings in one.arms(True).items()}
    assert judge(one, one.read(points)).word and one.draw(points).startswith("<svg")
    first = next(iter(points.values()))
    assert first[0] != first[1]


class LastTwo:
    """Knows whether one of the last two bits is set and not the other, and nothing of those before."""

    def __init__(self, make: Callable[[int], Any], seeds: Sequence[int]) -> None:
        self.seeds = seeds

    def train(self, *_: Any) -> list[list[float]]:
        return [[0.7, 0.1] for _ in self.seeds]

    def right(self, rows: Rows) -> torch.Tensor:
        return (rows.tokens[..., -2:].sum(-1) % 2 == rows.targets[..., -1]).float()


def test_who_follows_no_state_tells_parity_only_where_there_is_none_to_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bits, odd = state.parity(6, 40, back=40)(torch.Generator().manual_seed(0))
    assert (odd == bits.cumsum(1) % 2).all()
    bits, last = state.parity(6, 40, back=2, every=False)(torch.Generator().manual_seed(0))
    assert (last[:, -1] == bits[:, -2] ^ bits[:, -1]).all() and (last[:, :-1] == -100).all()
    monkeypatch.setattr(state, "Seeds", LastTwo)
    one = claim("state")
    assert set(outcomes(one, False).values()) == {"refuted"} and set(outcomes(one, True).values()) == {
        "holds"
    }


def test_state_is_measured_and_drawn() -> None:
    one = small("state", steps=1, rows=2, asked=5)
    points = {name: one.measure(settings, [0, 1]) for name, settings in one.arms(True).items()}
    assert judge(one, one.read(points)).word == "inconclusive: undertrained"
    assert "An odd number of ones?" in one.draw(points)


def test_the_same_bytes_are_judged_after_texts_of_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[torch.Tensor] = []

    class Longest(Seeds):
        def loss(self, rows: Rows) -> list[float]:
            judged.append(rows.targets[rows.targets >= 0])
            n = rows.tokens.shape[-1]
            return [1.0 + 0.5 * (n > longer.LEARNED)] * len(rows.tokens)

    monkeypatch.setattr(longer, "Seeds", Longest)
    one = small("longer", steps=1, rows=4, asked=2)
    whole = {name: one.measure(settings, [0, 1]) for name, settings in one.arms(True).items()}
    assert all((found == judged[0]).all() and len(found) == 2 * 2 * longer.JUDGED for found in judged)
    assert judge(one, one.read(whole)).outcomes == ("refuted", "refuted", "holds")
    level = {name: [{**point, "lost": -0.01 - i / 1e3} for i, point in enumerate(of)]
             for name, of in whole.items()}  # fmt: skip
    assert judge(one, one.read(level)).outcomes == ("holds", "holds", "refuted")
    assert "at the end of longer texts" in one.draw(whole)


def test_every_claim_is_a_verb_and_says_what_it_is() -> None:
    for name in CLAIMS:
        one = claim(name)
        assert (
            one.name == name and f"Claim {one.number}:" in CLAIMS[name] and one.predictions and one.not_shown
        )
        named = set(one.plant.arms or ()) if one.plant else set()
        assert named <= set(one.arms(True)) & set(one.arms(False))


def test_figures_hold_their_points_and_nothing_from_outside() -> None:
    curve = lines([Series("a<b", [1, 10], [[1e-3, 2e-3], [float("nan"), 1.0]])],
                  title="t", across="x", up="y", log_x=True, log_y=True)  # fmt: skip
    shares = stacks([("closed book", [0.25, 0.75])], ["right", "made up"], title="s")
    svg = figure(curve, shares, grid([[0.5, 1.0]], ["row"], ["c", "d"], title="g", across="z"), label="all")
    assert svg.count("<circle") == 3 and "a&lt;b" in svg and "75%" in svg and ">.50<" in svg
    assert "nan" not in svg and "prefers-color-scheme:dark" in svg
    assert not re.search(r"<script|href|url\(", svg)
    dots = lines([Series(name, [x], [[2.0]]) for name, x in (("a", 80.0), ("b", 110.0))],
                 title="t", across="x", up="y")  # fmt: skip
    places = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', str(figure(dots, label="dots")))]
    assert len(places) == 4 and 44 < places[0] < places[1] < 342  # clear of the frame, and two of the key
    many = lines([Series("a", [i / 30 for i in range(1, 31)], [[1.0]] * 30)], title="t", across="x", up="y")
    assert re.findall(r'class="mid"[^>]*>([^<]+)<', str(figure(many, label="l"))) == ["0.5", "1"]
    alone = svg.alone()  # a notebook's image: its own width, paper and ink
    assert 'width="384"' in alone and "a&lt;b" in alone and 'fill="#fff"' in alone
    assert "prefers-color-scheme" not in alone and "width:100%" not in alone.replace("max-width:100%", "")


def test_the_page_has_what_was_claimed_and_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Refused, match="no result of a claim"):
        write_report(tmp_path, tmp_path / "lab.html")
    glass_box(tmp_path)
    out = ["--out", str(tmp_path)]
    assert run(["lab", "gradient", "--quick", "--seeds", "2", *out]) == 0
    assert run(["lab", "gradient", "--quick", "--seeds", "2", "--planted", "--json", *out]) == 0
    record = json.loads((tmp_path / "gradient/quick/result.json").read_text(encoding="utf-8"))
    assert record["cpu"] and record["versions"]["torch"] == torch.__version__ and len(record["seeds"]) == 2
    assert run(["lab", "report", str(tmp_path)]) == 0
    page = (tmp_path / "lab.html").read_text(encoding="utf-8")
    for said in (record["claim"], record["textbook"], record["expected"], record["not_shown"],
                 "transom lab gradient --quick", "With its cause taken away", "chain rule",
                 "Words on this page", "planted: the same test without"):  # fmt: skip
        assert said.replace("'", "&#x27;") in page
    assert "expert" in MEANT and "<dt>expert</dt>" not in page  # of words those that it uses
    assert page.count('class="lab"') == 1 and "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")


def test_wrong_words_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "ordre"]) == 2
    assert "did you mean 'order'?" in capsys.readouterr().err
    assert run(["lab", "order", "--help"]) == 0
    assert capsys.readouterr().out.rstrip().endswith(GLOSSARY)
    (tmp_path / "file").write_text("")
    assert run(["lab", "order", "--quick", "--out", str(tmp_path / "file")]) == 2
    assert "--out names a folder" in capsys.readouterr().err
    assert run(["lab", "report", str(tmp_path / "none")]) == 2
    assert "transom lab all --quick" in capsys.readouterr().err
