"""Comparisons: what is made equal is equal, the table says what the runs say, and mistakes come first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import Refused
from transom.lab.compare import at, compare, config_of, plan_members
from transom.lab.compare_figure import spread
from transom.lab.comparison import Comparison
from transom.lab.equal_size import TOLERANCE, count, equal_width
from transom.model.build import build
from transom.settings import TrainSettings, load
from transom.training.architecture import model_config
from transom.training.folder import RunFolder
from transom.training.parallelism import World
from transom.training.report import Report
from transom.training.tasks import prepare_task


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> dict[str, Any]:
    """Settings under which a member is trained in a second."""
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "after", "some", "mouse"]
    (tmp_path / "text").mkdir()
    for n in range(24):
        text = " ".join(words[(n * 7 + i * (1 + n % 5)) % len(words)] for i in range(10 + 5 * (n % 6)))
        (tmp_path / "text" / f"{n:02}.txt").write_text(f"{text}.\n")
    return {
        "data.source": str(tmp_path / "text"), "data.tokenizer": "bytes", "data.val_fraction": 0.2,
        "model.dim": 64, "model.n_layers": 2, "model.head_dim": 16, "model.max_len": 32,
        "batch.tokens": 256, "batch.micro": 8, "dtype": "float32", "device": "cpu", "prompt": "",
    }  # fmt: skip


@pytest.fixture
def small_model() -> Any:
    def config_at(kind: str, dim: int, **more: Any) -> Any:
        settings = at(load(TrainSettings, {"model.kind": kind, **more}), dim)
        task = "translate" if kind == "encoder-decoder" else "lm"
        return model_config(settings.model, 1000, task, pad_id=0, eos_id=1, start_id=0)

    return config_at


def test_counted_is_what_multiplies_a_tied_head_too(small_model: Any) -> None:
    for kind in ("decoder", "lstm", "encoder-decoder"):
        config = small_model(kind, 64)
        assert count(config) == build(config).n_parameters
        assert count(config.with_(tie_embeddings=False)) == count(config)
    learned = small_model("decoder", 64).with_(position="learned", qk_norm=False)
    assert count(learned) == build(learned).n_parameters - 64 * learned.max_len


def test_members_of_equal_size_have_equal_totals_whoever_is_first(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    names = ["rnn", "decoder", "lstm", "decoder+experts"]
    plans, _ = plan_members(names, {**tiny, "model.dim": 256}, "tokens", "2k", tmp_path / "out", "parameters")
    totals = [build(plan.config).n_parameters for plan in plans]
    assert max(totals) <= (1 + TOLERANCE) * totals[0] and min(totals) >= (1 - TOLERANCE) * totals[0]


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "encoder-decoder", "decoder"])
@pytest.mark.parametrize("target", [200_000, 1_770_000])
def test_widths_are_found_within_three_percent(kind: str, target: int, small_model: Any) -> None:
    width = equal_width(lambda dim: small_model(kind, dim), target, kind)
    assert abs(count(small_model(kind, width)) - target) <= TOLERANCE * target
    assert width % 2 == 0


def test_experts_match_by_all_or_by_active_parameters(small_model: Any) -> None:
    target = count(small_model("decoder", 192))

    def config(dim: int) -> Any:
        return small_model("decoder", dim, **{"model.experts": 8})

    whole, active = (
        equal_width(config, target, "decoder+experts", equal) for equal in ("parameters", "active")
    )
    assert whole < active
    assert abs(count(config(active), "active") - target) <= TOLERANCE * target
    assert abs(count(config(whole)) - target) <= TOLERANCE * target


def test_a_size_that_no_width_has_is_refused(small_model: Any) -> None:
    with pytest.raises(Refused, match="lstm: no width gives 20 parameters.*larger --model.dim"):
        equal_width(lambda dim: small_model("lstm", dim), 20, "lstm")


def test_members_are_trained_alike_and_stand_in_one_table(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = compare(
        ["decoder", "lstm", "decoder+experts"], tiny, by="tokens", budget="2k", out=out, equal="parameters",
        score=lambda folder: {"letters": float(len(folder.name))},
    )  # fmt: skip
    assert [outcome.name for outcome in found.outcomes] == ["decoder", "lstm", "decoder+experts"]
    sizes = [outcome.multiplied for outcome in found.outcomes]
    assert max(sizes) <= (1 + TOLERANCE) * sizes[0] and min(sizes) >= (1 - TOLERANCE) * sizes[0]
    assert {outcome.tokens for outcome in found.outcomes} == {2048}
    assert {outcome.steps for outcome in found.outcomes} == {8}
    experts = found.outcomes[2]
    assert experts.active_parameters < experts.parameters
    for outcome in found.outcomes:
        ledger = json.loads((Path(outcome.folder) / "ledger.json").read_text())
        assert outcome.parameters == ledger["model"]["parameters"]
        assert outcome.flops_per_token == ledger["model"]["flops_per_token"]
        # Scored anew on all held-out rows, which at this size the run did as well.
        assert outcome.loss == pytest.approx(ledger["result"]["loss"], rel=1e-5)
        assert outcome.curve[-1][2] == outcome.loss and outcome.tokens_per_second > 0
        assert outcome.scores == {"letters": len(outcome.name)}
    text = str(found)
    assert found.best is not None and f"{found.best.name} *" in text and "letters" in text
    assert found.verdict.startswith(f"{found.best.name} learned most")
    assert json.loads((out / "compare.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    assert "| decoder+experts" in (out / "compare.md").read_text()
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(Refused, match="holds a run already"):
        compare(["decoder", "lstm"], tiny, by="tokens", budget="2k", out=out)


def test_a_plan_shares_data_seed_and_steps(tiny: dict[str, Any], tmp_path: Path) -> None:
    del tiny["batch.tokens"]
    plans, _ = plan_members(["gru", "rnn"], {**tiny, "seed": 5}, "time", "1min", tmp_path / "out", None)
    for name in ("data.cache", "data.source", "seed", "budget", "batch.tokens", "task", "model.dim"):
        assert plans[0].settings[name] == plans[1].settings[name] is not None
    assert plans[0].settings["budget"] == 60 and plans[0].settings["seed"] == 5
    assert [plan.config.cell for plan in plans] == ["gru", "rnn"]
    feeds = [prepare_task(plan.settings, RunFolder(tmp_path / plan.name), World(), Report(False)).feed
             for plan in plans]  # fmt: skip
    for step in (0, 7):
        assert torch.equal(feeds[0].batch(step).tokens, feeds[1].batch(step).tokens)
    again = config_of(plans[0].settings, plans[1].config)
    assert again == plans[0].config


@pytest.mark.parametrize(
    ("members", "change", "words"),
    [
        (["decoder"], {}, "name two or more"),
        (["decoder", "lstmm"], {}, "did you mean 'lstm'"),
        (["decoder", "lstm+expert"], {}, "did you mean 'experts'"),
        (["decoder", "decoder"], {}, "named twice"),
        (["decoder", "lstm+experts"], {}, "no feed-forward that experts could replace"),
        (["decoder", "encoder"], {}, "their losses cannot be compared"),
        (["decoder", "lstm"], {"budget": "5x"}, "budget:"),
        (["decoder", "lstm"], {"model.n_heds": 3}, "did you mean 'model.n_heads'"),
    ],
)
def test_mistakes_are_met_before_anything_is_trained(
    members: list[str], change: dict[str, Any], words: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    budget = change.pop("budget", "1min")
    with pytest.raises(Refused) as refused:
        compare(members, {**tiny, **change}, by="time", budget=budget, out=tmp_path / "out")
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert not list((tmp_path / "out").glob("*/checkpoints"))


@given(st.lists(st.floats(0, 300), min_size=1, max_size=9).map(sorted), st.floats(1, 20))
def test_names_in_the_figure_keep_their_order_and_distance(places: list[float], gap: float) -> None:
    moved = spread(places, gap)
    assert len(moved) == len(places)
    assert all(b - a >= gap - 1e-6 for a, b in zip(moved, moved[1:], strict=False))
    if all(b - a >= gap for a, b in zip(places, places[1:], strict=False)):
        assert moved == pytest.approx(places)


def test_a_comparison_that_was_stopped_says_what_is_missing(tmp_path: Path) -> None:
    comparison = Comparison("1min for each member", "token", (), ("lstm",))
    comparison.save(tmp_path)
    assert comparison.verdict == "nothing to compare yet; not trained: lstm"
    assert "not trained: lstm" in (tmp_path / "compare.md").read_text()
