"""What a run notes of its inside: figures that disturb nothing, and that `look_at_run` draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import transom.training.recorder as recorder
from transom.__main__ import run as command
from transom.errors import Refused
from transom.settings import TrainSettings, load
from transom.training.loop import train
from transom.training.probes import look_at_run
from transom.training.report import history

SMALL = {"n_layers": 2, "dim": 32, "n_heads": 2, "max_len": 32}


def trained(out: Path, **more: object) -> Path:
    notes = out.parent / "notes.txt"
    notes.write_text("The crow sat on a branch with a piece of cheese. The fox saw it.\n" * 200)
    model = {**SMALL, **more.pop("model", {})}  # type: ignore[dict-item]
    data = {"source": str(notes), "vocab_size": 300}
    settings = {"data": data, "model": model, "out": str(out), "steps": 12,
                "batch": {"tokens": 256}, "dtype": "float32", **more}  # fmt: skip
    train(load(TrainSettings, settings))
    return out


def noted(out: Path) -> list[dict]:
    return [event for event in history(out / "metrics.jsonl") if event["event"] == "inside"]


def test_a_run_notes_its_inside_from_the_first_step_on(tmp_path: Path):
    events = noted(trained(tmp_path / "run"))
    assert events[0]["step"] == 1 and events[-1]["step"] == 12 and len(events) >= 5
    for event in events:
        for name in ("attention_entropy", "grad_norm", "dead_units"):
            assert set(event[name]) == {"0", "1"}
        assert all(0 < value < 5 for value in event["attention_entropy"].values())
        assert all(value > 0 for value in event["grad_norm"].values())


def test_looking_moves_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    looked = trained(tmp_path / "looked", model={"dropout": 0.1})
    monkeypatch.setattr(recorder.Recorder, "_look", lambda self: None)
    plain = trained(tmp_path / "plain", model={"dropout": 0.1})
    ends = [history(out / "metrics.jsonl")[-1]["weights_sha256"] for out in (looked, plain)]
    assert ends[0] == ends[1]
    assert noted(looked) and not noted(plain)


@pytest.mark.parametrize("kind", ["lstm", "experts"])
def test_other_members_note_what_they_have(tmp_path: Path, kind: str):
    model = {"kind": "lstm", "n_heads": None} if kind == "lstm" else {"experts": 4}
    event = noted(trained(tmp_path / "run", model=model))[-1]
    if kind == "lstm":
        assert "attention_entropy" not in event and "grad_norm" in event
    else:
        assert all(0 < share <= 1 for share in event["router_load"].values())


def test_what_cannot_be_seen_costs_a_note_and_never_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> None:
        raise Refused("the maps do not fit")

    monkeypatch.setattr(recorder.probes, "figures_of", fails)
    out = trained(tmp_path / "run")
    notes = [e["text"] for e in history(out / "metrics.jsonl") if e["event"] == "note"]
    assert "not looked inside: the maps do not fit" in notes and (out / "model").is_dir()


def test_look_at_a_run_draws_how_the_figures_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = trained(tmp_path / "run")
    page = tmp_path / "look.html"
    capsys.readouterr()
    assert command(["look", str(out), "--out", str(page)]) == 0
    said = capsys.readouterr().out
    assert "Entropy of attention" in said and "layer 1" in said and str(page) in said
    text = page.read_text()
    assert text.count("<polyline") == 6 and "<script" not in text
    assert command(["look", str(out), "--out", str(page), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["views"]) == len(noted(out))

    assert command(["look", str(out), "The crow", "--out", str(page)]) == 0
    assert "How likely each token was" in capsys.readouterr().out
    assert command(["look", str(out / "model"), "--out", str(page)]) == 2
    assert "no metrics.jsonl here" in capsys.readouterr().err
    (out / "metrics.jsonl").write_text('{"event": "start", "step": 0}\n')
    with pytest.raises(Refused, match="nothing was noted"):
        look_at_run(out)
    assert torch.is_grad_enabled()
