"""Signals: the first finishes the step and saves, the second ends at once; in every phase of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from transom.training import evaluate, loop, text_task
from transom.training.loop import train

from .conftest import Tiny


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_can_be_resumed(tiny: Tiny, tmp_path: Path, number: int) -> None:
    def at_step_3(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    run = train(tiny(steps=8, model__dropout=0.1), on_event=at_step_3)
    assert run.interrupted and run.step == 3
    assert run.resume_command in str(run)
    assert signal.getsignal(number) == before
    resumed = train(tiny(steps=8, model__dropout=0.1, resume=True))
    whole = train(tiny(steps=8, model__dropout=0.1, out=str(tmp_path / "whole")))
    assert resumed.weights_sha256 == whole.weights_sha256 and not resumed.interrupted


def test_a_signal_while_data_is_prepared_leaves_at_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(text_task, "prepare", slow)
    started = time.monotonic()
    run = train(tiny())
    assert run.interrupted and run.step == 0 and time.monotonic() - started < 5
    assert "nothing to keep" in str(run)


def test_a_signal_during_an_evaluation_cuts_it_short(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    score = evaluate.score

    def signalled(*args: Any, **kwargs: Any) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return score(*args, **kwargs)

    monkeypatch.setattr(evaluate, "score", signalled)
    run = train(tiny(steps=8, eval_every=2))
    assert run.interrupted and run.step == 2 and run.loss is None


def test_a_signal_during_a_save_lets_it_finish(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    save = loop.state.save

    def signalled(*args: Any, **kwargs: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(loop.state, "save", save)
        return save(*args, **kwargs)

    monkeypatch.setattr(loop.state, "save", signalled)
    run = train(tiny(steps=8, save_every=3))
    assert run.interrupted and run.step == 3
    assert (run.folder / "checkpoints/step-000003/manifest.json").exists()


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time\n"
        "from transom.training.signals import StopSignals\n"
        "with StopSignals() as stopping:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert stopping.requested\n"
        "    print('asked', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 128 + signal.SIGTERM and done.stdout == "asked\n"
    assert done.stderr.count("finishing this step, then saving") == 1
