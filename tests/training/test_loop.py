"""A whole run: what it leaves on disk, how it ends, where it goes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.checkpoint.folder import verify
from transom.checkpoint.huggingface import load_model
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.inference.generator import Generator
from transom.training import folder as run_folder
from transom.training import lock, loop, recorder
from transom.training.loop import train
from transom.training.state import fingerprint

from .conftest import Tiny


@pytest.mark.drawn
def test_a_run_leaves_what_the_design_says(tiny: Tiny) -> None:
    heard: list[dict[str, Any]] = []
    run = train(tiny(steps=12, save_every=4), on_event=heard.append)
    assert {path.name for path in run.folder.iterdir()} == {
        "settings.toml", "ledger.json", "metrics.jsonl", "loss.png", "checkpoints", "model",
    }  # fmt: skip
    verify(run.model_folder)
    assert [path.name for path in sorted((run.folder / "checkpoints").iterdir())] == [
        "step-000007",
        "step-000012",
    ]
    model, tokenizer = load_model(run.model_folder), Tokenizer.load(run.model_folder)
    assert fingerprint(dict(model.state_dict())) == run.weights_sha256
    assert isinstance(run.model, Generator) and run.model.model.n_parameters == model.n_parameters
    assert tokenizer.pad_id is not None and model.config.eos_id == tokenizer.eos_id
    assert (run.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [e["event"] for e in heard] == [e["event"] for e in run.metrics]
    assert "held-out" in str(run) and str(run.model_folder) in str(run)
    assert json.loads(json.dumps(run.to_dict()))["interrupted"] is False


def test_the_ledger_accounts_for_the_run_and_grades_the_forecast(tiny: Tiny) -> None:
    ledger = train(tiny(steps=5)).ledger
    assert ledger["cost"]["tokens"] == 5 * 256 and ledger["cost"]["steps"] == 5
    assert ledger["cost"]["watt_hours"] > 0 and ledger["cost"]["energy_method"]
    assert ledger["cost"]["flops"] > 0 and ledger["cost"]["peak_memory_bytes"] > 1e7
    assert len(ledger["data"]["hash"]) == 64 and ledger["versions"]["torch"] == torch.__version__
    assert ledger["forecast"]["tokens"] == {"forecast": 1280, "actual": 1280, "ratio": 1.0}
    assert set(ledger["result"]["references"]) == {"uniform", "unigram", "bigram"}


def test_it_learns(tiny: Tiny) -> None:
    run = train(tiny(steps=120, optim__lr=0.01, optim__matrix_lr=0.01))
    assert run.loss is not None and run.loss < run.references["unigram"]
    assert any(words in run.sentence for words in ("below the unigram", "below the bigram", "memorises"))
    first, *_, last = [e for e in run.metrics if e["event"] == "step"]
    assert last["loss"] < 0.6 * first["loss"] and last["lr"] < 0.03 * 0.01


def test_equal_settings_give_equal_bits_and_the_micro_batch_only_rounds(tiny: Tiny, tmp_path: Path) -> None:
    first, second = (train(tiny(out=str(tmp_path / name))) for name in "ab")
    assert first.weights_sha256 == second.weights_sha256
    other = train(tiny(out=str(tmp_path / "c"), batch__micro=8))
    losses = [[e["loss"] for e in run.metrics if e["event"] == "step"] for run in (first, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_time_budget_ends_in_time_and_at_zero(tiny: Tiny) -> None:
    run = train(tiny(budget="4s", batch__micro=None, save_every="1s"))
    steps = [e for e in run.metrics if e["event"] == "step"]
    peak = max(e["lr"] for e in steps)
    assert run.seconds < 6 and steps[-1]["lr"] < 0.1 * peak
    assert run.step == len(steps) > 3


def test_out_of_memory_halves_the_micro_batch_and_says_so(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, sizes = loop.take_gradient, []

    def small_device(objective: Any, parts: list[Any], *rest: Any) -> Any:
        sizes.append(len(parts[0].tokens))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return take(objective, parts, *rest)

    monkeypatch.setattr(loop, "take_gradient", small_device)
    run = train(tiny(steps=3, batch__micro=8))
    assert sizes == [8, 4, 2, 2, 2] and run.step == 3
    notes = [e["text"] for e in run.metrics if e["event"] == "note"]
    assert "out of memory: 4 windows at a time instead of 8; the step is the same" in notes


def test_deterministic_is_put_back_afterwards(tiny: Tiny) -> None:
    train(tiny(steps=1, deterministic=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_named_folder_is_never_written_into_twice(tiny: Tiny) -> None:
    train(tiny(steps=1))
    with pytest.raises(Refused, match="holds a run already; go on with it by --resume"):
        train(tiny(steps=1))


def test_a_run_without_a_name_takes_the_next_free_one(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [train(tiny(steps=1, out=None)).folder for _ in range(3)]
    assert [str(name) for name in names] == ["runs/text", "runs/text-2", "runs/text-3"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("stdlib", "stdlib"),
        ("notes/", "notes"),
        ("a/b c.txt", "b-c"),
        ("hf:x/y", "y"),
        ("-", "stdin"),
        ("x" * 300, "x" * 60),
    ],
)
def test_a_run_is_named_after_its_data(source: str, name: str) -> None:
    assert run_folder.name_of(source) == name


def test_resume_without_a_run_is_refused(tiny: Tiny) -> None:
    with pytest.raises(Refused, match="holds no run to resume"):
        train(tiny(resume=True))
    with pytest.raises(Refused, match="add --out"):
        train(tiny(resume=True, out=None))


def test_a_refused_run_leaves_nothing_behind(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    for name in ("absent", "latin.txt"):
        with pytest.raises(Refused):
            train(tiny(data__source=str(tmp_path / name), data__cache=None, out=str(tmp_path / "x")))
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch__tokens": 16}, "less than one window of 32 tokens"),
        ({"model__head_dim": 5}, "head_dim 5 is odd"),
        ({"parallel": "ddp"}, "but this is one process"),
        ({"log": ["wandb"]}, r"not installed: pip install 'transom\[wandb\]'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(
    tiny: Tiny, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transom.training.report.find_spec", lambda name: None)  # wherever wandb is
    with pytest.raises(Refused, match=message) as caught:
        train(tiny(**change))
    assert "\n" not in str(caught.value)


def test_two_runs_in_one_folder_and_a_stale_lock(tiny: Tiny, tmp_path: Path) -> None:
    with lock.Lock(tmp_path / "run"):
        owner = lock.read(tmp_path / "run")
        with pytest.raises(Refused, match=f"process {os.getpid()} on .* is training in this folder"):
            train(tiny(steps=1))
        assert lock.is_held(tmp_path / "run")
    # The process is gone, and its id may have been used again: the record is nobody's.
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lock.json").write_text(json.dumps(owner))
    assert not lock.is_held(tmp_path / "run")
    train(tiny(steps=1))
    assert not (tmp_path / "run/lock.json").exists() and not (tmp_path / "run/.lock").exists()


def test_a_lock_of_another_host(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    with lock.Lock(tmp_path):
        me = lock.read(tmp_path)
    mine = {**me, "host": "a-container-that-is-gone"}
    tmp_path.mkdir(exist_ok=True)
    path.write_text(json.dumps({**mine, "kernel": "another"}))
    with pytest.raises(Refused) as refused:
        lock.Lock(tmp_path).__enter__()
    assert f"choose another --out, or remove {path} if that machine is gone" in str(refused.value)
    path.unlink()  # what it says works
    with lock.Lock(tmp_path):
        # The same kernel, and the file is held: whatever the host is called, somebody trains here.
        path.write_text(json.dumps(mine))
        with pytest.raises(Refused, match="training in this folder; wait for it, choose another --out$"):
            lock.Lock(tmp_path).__enter__()
    # The same kernel, and nobody holds the file: the container was killed and started again.
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(mine))
    with lock.Lock(tmp_path):
        assert lock.read(tmp_path)["host"] == me["host"]


@pytest.mark.slow
def test_memory_does_not_grow(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "DRAW_SECONDS", math.inf)  # the first drawing loads matplotlib, once
    run = train(tiny(steps=5000, save_every=1000))
    points = [(e["step"], e["resident"]) for e in run.metrics if e["event"] == "step" and e["step"] > 1500]
    n = len(points)
    mean_step, mean_size = sum(s for s, _ in points) / n, sum(r for _, r in points) / n
    slope = sum((s - mean_step) * (r - mean_size) for s, r in points) / sum(
        (s - mean_step) ** 2 for s, _ in points
    )
    print(f"{slope:.0f} bytes a step")
    assert slope < 1024


def test_a_run_of_time_begins_at_a_small_rate_and_reaches_its_peak(tiny: Tiny) -> None:
    run = train(tiny(budget="3s", sample_every="1h", eval_every="1h"))
    rates = [event["lr"] for event in run.metrics if event["event"] == "step"]
    assert 0 < rates[0] < 0.25 * max(rates) and rates[-1] < 0.25 * max(rates)
    assert 2 <= rates.index(max(rates)) <= 0.7 * len(rates)


def test_the_last_step_is_measured_and_shown_once(tiny: Tiny) -> None:
    run = train(tiny(steps=3, eval_every=1, prompt="the cat"))
    for event in ("held_out", "sample"):
        assert [e["step"] for e in run.metrics if e["event"] == event] == [1, 2, 3]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_quiet_run_shows_nothing_and_writes_the_same_events(
    quiet: bool, tiny: Tiny, capfd: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny(steps=2, quiet=quiet))
    shown = "".join(capfd.readouterr())
    assert (shown == "") is quiet
    assert {"start", "step", "held_out", "sample", "end"} <= {event["event"] for event in run.metrics}


def test_a_sample_is_as_long_as_asked(tiny: Tiny, tmp_path: Path) -> None:
    written = [train(tiny(steps=1, out=str(tmp_path / f"{n}"), sample_tokens=n)).sample for n in (3, 40)]
    assert len(written[0]) <= 3 < len(written[1])
