"""Numbers that are not numbers never reach a weight or a checkpoint, and can be looked into afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from transom.data.order import Batch
from transom.errors import Refused
from transom.training import state
from transom.training.loop import train
from transom.training.non_finite import Skips, replay
from transom.training.objectives import LanguageModelling

from .conftest import Tiny


def poison(monkeypatch: pytest.MonkeyPatch, bad: Any) -> list[torch.Tensor]:
    """Multiply the loss by NaN whenever `bad(calls, batch)` says so; returns what the batches were."""
    calls: list[torch.Tensor] = []
    forward = LanguageModelling.forward

    def poisoned(self: LanguageModelling, batch: Batch) -> torch.Tensor:
        if not self.training:
            return forward(self, batch)
        calls.append(batch.tokens)
        return forward(self, batch) * (float("nan") if bad(len(calls), batch) else 1.0)

    monkeypatch.setattr(LanguageModelling, "forward", poisoned)
    return calls


def test_a_fault_that_does_not_come_back_costs_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = train(tiny(steps=5))
    poison(monkeypatch, lambda call, batch: call == 7)
    run = train(tiny(steps=5, out=str(clean.folder) + "-2"))
    assert run.weights_sha256 == clean.weights_sha256
    notes = [e["text"] for e in run.metrics if e["event"] == "note"]
    assert any("run again it was: suspect the machine" in note for note in notes)


def test_a_step_that_stays_broken_is_skipped_and_said(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    # The trial of the micro-batch is one call, a step four: step 3 and its repetition are calls 10 to 17.
    weights: list[str] = []
    poison(monkeypatch, lambda call, batch: 10 <= call <= 17)

    save = state.save

    def watched(*args: Any, **kwargs: Any) -> Any:
        weights.append(state.fingerprint(args[1].model))
        return save(*args, **kwargs)

    monkeypatch.setattr(state, "save", watched)
    run = train(tiny(steps=5, save_every=1, optim__schedule="cosine"))
    skipped = [e for e in run.metrics if e["event"] == "skip"]
    assert [e["step"] for e in skipped] == [2] and "no weight was changed" in skipped[0]["text"]
    assert weights[1] == weights[2] != weights[3]
    assert [e["step"] for e in run.metrics if e["event"] == "step"] == [1, 2, 4, 5]
    assert state.load_position(run.folder / "checkpoints/step-000005").skipped == [2]


def test_too_many_skips_end_the_run_with_a_bundle_that_reproduces_it(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    take = LanguageModelling.forward

    def overflowing(self: LanguageModelling, batch: Batch) -> torch.Tensor:
        if self.training and getattr(self, "steps", 0) >= 2:
            with torch.no_grad():
                self.model.embed.weight[:] = float("inf")  # a weight gone wrong: visible in the bundle
        return take(self, batch)

    def count(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            LanguageModelling.steps = event["step"]  # type: ignore[attr-defined]

    monkeypatch.setattr(LanguageModelling, "steps", 0, raising=False)
    monkeypatch.setattr(LanguageModelling, "forward", overflowing)
    with pytest.raises(Refused, match="4 steps skipped: training has broken down") as caught:
        train(tiny(steps=20, save_every=1), on_event=count)
    bundle = next((tmp_path / "run/faults").iterdir())
    assert str(bundle) in str(caught.value)
    monkeypatch.setattr(LanguageModelling, "forward", take)
    again = replay(bundle)
    assert not abs(again["loss"]) < float("inf")
    newest = max((tmp_path / "run/checkpoints").iterdir())
    assert newest.name == "step-000002", "weights that are not finite were committed"


def test_weights_that_are_not_finite_are_never_written() -> None:
    with pytest.raises(Refused, match="weight b is not finite"):
        state.assert_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})


def test_how_many_skips_are_borne() -> None:
    skips = Skips()
    assert [skips.add(step) for step in (5, 6, 7, 8)] == [True, True, True, False]
    skips = Skips()
    assert all(skips.add(step) for step in range(0, 1000, 100))
    assert not skips.add(999)
