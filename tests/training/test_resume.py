"""A run that was stopped after any step and resumed ends with the same bits as one that never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from transom.errors import Refused
from transom.training.loop import train

from .conftest import Tiny, until

STEPS = 9
HARD = {"steps": STEPS, "model__dropout": 0.1, "save_every": 1, "keep": 100, "eval_every": 4}
"""Accumulation (8 windows by 2), packed rows, dropout, and an epoch that ends within the run."""


@pytest.mark.parametrize(("optim", "dtype"), [
    ("muon", "float32"), pytest.param("adamw", "bfloat16", marks=pytest.mark.heavy),
])  # fmt: skip
def test_resume_from_every_step_gives_the_same_bits(
    tiny: Tiny, tmp_path: Path, optim: str, dtype: str
) -> None:
    whole = train(tiny(**HARD, optim__name=optim, dtype=dtype))
    ledger = whole.ledger
    assert ledger["cost"]["epochs"] > 1, "the run must cross the end of an epoch"
    for step in range(1, STEPS):
        folder = until(whole.folder, step, tmp_path / f"killed-{step}")
        resumed = train(tiny(**HARD, optim__name=optim, dtype=dtype, out=str(folder), resume=True))
        assert resumed.weights_sha256 == whole.weights_sha256, f"resumed after step {step}"
        losses = [e["loss"] for e in resumed.metrics if e["event"] == "step"]
        assert losses == [e["loss"] for e in whole.metrics if e["event"] == "step"]


def test_resume_in_a_new_process_and_another_hash_seed(tiny: Tiny, tmp_path: Path) -> None:
    whole = train(tiny(**HARD))
    folder = until(whole.folder, 5, tmp_path / "killed")
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from transom.settings import TrainSettings, load\n"
        "from transom.training.loop import train\n"
        "print(train(load(TrainSettings, {'out': sys.argv[1], 'resume': True})).weights_sha256)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert said.stdout.strip() == whole.weights_sha256


def test_settings_need_not_be_said_again(tiny: Tiny, tmp_path: Path) -> None:
    whole = train(tiny(**HARD, optim__lr=0.002, seed=3))
    folder = until(whole.folder, 4, tmp_path / "killed")
    resumed = train(tiny(steps=STEPS, out=str(folder), resume=True, model__dropout=0.1, seed=3))
    assert resumed.weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"optim__lr": 0.5}, "optim.lr is 0.5"),
        ({"seed": 5}, "seed is 5"),
        ({"model__n_layers": 3}, "model.n_layers is 3"),
        ({"batch__micro": 4}, "batch.micro is 4"),
        ({"data__tokenizer": "chars"}, "tokenizer is not the one"),
    ],
)
def test_resume_refuses_another_run_by_name(tiny: Tiny, change: dict[str, object], named: str) -> None:
    train(tiny(steps=2))
    with pytest.raises(Refused, match=named):
        train(tiny(**{"steps": 2, "resume": True, **change}))


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])  # bpe is another one for other data
def test_resume_refuses_changed_data(tiny: Tiny, tmp_path: Path, tokenizer: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one fish two fish red fish blue fish\n" * 40)
    train(tiny(steps=2, data__source=str(text), data__tokenizer=tokenizer))
    with open(text, "a") as file:
        file.write("and one more line\n")
    with pytest.raises(Refused, match="the data changed since this run began"):
        train(tiny(steps=4, data__source=str(text), data__tokenizer=tokenizer, resume=True))


def test_a_broken_checkpoint_is_passed_over_and_said(tiny: Tiny, tmp_path: Path) -> None:
    whole = train(tiny(**HARD))
    folder = until(whole.folder, 6, tmp_path / "killed")
    broken = folder / "checkpoints/step-000006/weights.safetensors"
    data = bytearray(broken.read_bytes())
    data[-3] ^= 1
    broken.write_bytes(data)
    heard: list[dict[str, object]] = []
    resumed = train(tiny(**HARD, out=str(folder), resume=True), on_event=heard.append)
    assert resumed.weights_sha256 == whole.weights_sha256
    notes = " ".join(str(event.get("text")) for event in heard)
    assert "step-000006 is not whole and was passed over" in notes
    assert "resuming after step 5" in notes


def test_a_run_killed_before_its_first_save_starts_again(tiny: Tiny, tmp_path: Path) -> None:
    whole = train(tiny(**HARD))
    folder = until(whole.folder, 0, tmp_path / "killed")
    assert train(tiny(**HARD, out=str(folder), resume=True)).weights_sha256 == whole.weights_sha256


def test_metrics_of_a_killed_run_are_mended(tiny: Tiny, tmp_path: Path) -> None:
    whole = train(tiny(**HARD))
    folder = until(whole.folder, 3, tmp_path / "killed")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"event": "step", "st')
    resumed = train(tiny(**HARD, out=str(folder), resume=True))
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    assert [e["step"] for e in resumed.metrics if e["event"] == "step"] == list(range(1, STEPS + 1))
