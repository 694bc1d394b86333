"""Rates of the layers of pretrained weights and of a new head: said, resumed exactly, refused elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transom.errors import Refused
from transom.training.forecast import plan
from transom.training.loop import train

from .conftest import Tiny, until

RATES = {"optim__layer_decay": 0.8, "optim__head_lr": 2e-3}


@pytest.fixture
def classes(tiny: Tiny, tmp_path: Path) -> Any:
    """Settings of a tiny classifier over a tiny pretrained encoder."""
    base = train(tiny(steps=1, task="mlm", model__kind="encoder", prompt=None, out=str(tmp_path / "base")))
    table = tmp_path / "classes.csv"
    rows = [f"{['the cat sat', 'a mouse ran'][n % 2]} {n},{['cat', 'mouse'][n % 2]}" for n in range(60)]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    shape = dict(model__dim=None, model__n_layers=None, model__head_dim=None, data__tokenizer="auto")
    asked = dict(task="classify", data__source=str(table), data__cache=None, prompt=None, steps=6,
                 model__weights=str(base.model_folder), model__dropout=0.1, **shape)  # fmt: skip
    return lambda **changes: tiny(**{**asked, **changes})


def test_they_are_said_kept_and_resumed_with_the_same_bits(classes: Any, tmp_path: Path) -> None:
    said = "5e-05; 0.8 times that for each layer further down, then the embeddings; the new head 0.002"
    foretold = str(plan(classes(**RATES), measure=False))
    assert f"rates       {said}" in foretold, foretold
    whole = train(classes(**RATES, save_every=1, keep=100))
    notes = [event["text"] for event in whole.metrics if event["event"] == "note"]
    assert f"rates: {said}" in notes
    settled = (whole.folder / "settings.toml").read_text()
    assert "layer_decay = 0.8" in settled and "head_lr = 0.002" in settled
    resumed = train(classes(out=str(until(whole.folder, 3, tmp_path / "killed")), resume=True, **RATES,
                            save_every=1, keep=100))  # fmt: skip
    assert resumed.weights_sha256 == whole.weights_sha256
    even = train(classes(out=str(tmp_path / "even")))
    assert even.weights_sha256 != whole.weights_sha256


def test_they_are_refused_where_there_is_nothing_to_move_so(classes: Any, tiny: Tiny) -> None:
    with pytest.raises(Refused, match=r"layer_decay is 0.8, .* none are given"):
        train(tiny(optim__layer_decay=0.8))
    with pytest.raises(Refused, match=r"head_lr is 0.002, .* this run has none"):
        train(tiny(optim__head_lr=2e-3))
    with pytest.raises(Refused, match="has none; --optim.lr is the rate of all"):
        plan(classes(task="mlm", data__source="stdlib", optim__head_lr=2e-3), measure=False)
