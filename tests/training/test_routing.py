"""What a run says about its experts: figures of a planted load, and real text over many steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.conftest import Tiny
from transom.errors import Refused
from transom.settings import TrainSettings, load
from transom.training.architecture import model_config
from transom.training.loop import train
from transom.training.routing import judge_load


def test_a_load_is_judged_by_its_figures() -> None:
    even = judge_load(torch.full((2, 4), 25.0))
    assert (even.max_violation, even.dead) == (0, 0) and even.entropy == pytest.approx(1)
    planted = judge_load(torch.tensor([[50.0, 25.0, 23.0, 2.0], [25.0, 25.0, 25.0, 25.0]]))
    assert planted.max_violation == pytest.approx(1)
    assert planted.dead == 1  # 2 of 100 is less than a tenth of 25; 23 is not
    assert planted.entropy < 1
    assert judge_load(torch.zeros(1, 4)).dead == 4


def test_how_fast_the_load_is_evened_is_a_setting() -> None:
    for given, rate in (({}, 1e-3), ({"model.balance_rate": 0.02}, 0.02)):
        settings = load(TrainSettings, {"model.experts": 4, **given})
        experts = model_config(settings.model, 100).experts
        assert experts is not None and experts.balance_rate == rate
    with pytest.raises(Refused, match="model.balance_rate is 0"):
        load(TrainSettings, {"model.balance_rate": 0})


@pytest.mark.slow
def test_no_expert_is_dead_after_500_steps(tiny: Tiny, shared_data: Path, tmp_path: Path) -> None:
    settings = tiny(
        data__source=str(shared_data / "tinyshakespeare" / "input.txt"), data__cache=str(tmp_path / "tokens"),
        model__dim=64, model__experts=8, batch__tokens=1024, batch__micro=32, steps=500,
    )  # fmt: skip
    run = train(settings)
    lines = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [event for event in map(json.loads, lines) if "load_lately" in event]
    assert steps[-1]["step"] == 500
    lately = steps[-1]["load_lately"]
    assert lately["dead_experts"] == 0 and lately["entropy"] > 0.9
