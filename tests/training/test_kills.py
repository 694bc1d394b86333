"""kill -9 at random moments: what was saved verifies, and the run still ends with the bits of one never
killed."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from transom.checkpoint.folder import latest, verify
from transom.settings import TrainSettings
from transom.training.loop import train

from .conftest import Tiny

pytestmark = pytest.mark.alone

STEPS = 40


def train_in_a_child(settings: TrainSettings, kill_after: float | None) -> bool:
    """Train in a forked process, killed after so many seconds; whether it came to its end."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as silence:
            os.dup2(silence.fileno(), 2)
        try:
            train(settings)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.__stdout__, flush=True)
            os._exit(3)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


@pytest.mark.parametrize("kills", [5, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_at_random_moments(tiny: Tiny, tmp_path: Path, kills: int) -> None:
    settings = {"steps": STEPS, "save_every": 1, "keep": 3, "model__dropout": 0.1, "eval_every": 1000}
    started = time.monotonic()
    whole = train(tiny(**settings, out=str(tmp_path / "whole")))
    length = time.monotonic() - started
    chance, reached, killed, rounds = random.Random(0), 0, 0, 0
    while killed < kills:
        folder = tmp_path / f"killed-{rounds}"
        rounds, done = rounds + 1, False
        while not done and killed < kills:
            resume = folder.exists() and any(folder.iterdir()) and (folder / "metrics.jsonl").exists()
            done = train_in_a_child(tiny(**settings, out=str(folder), resume=resume),
                                    chance.uniform(0, length / 2))  # fmt: skip
            killed += not done
            newest, refused = latest(folder / "checkpoints")
            assert not refused, refused
            step = int(newest.name.removeprefix("step-")) if newest else 0
            acknowledged = [line for line in (folder / "metrics.jsonl").read_text().splitlines()
                            if '"event": "save"' in line and "checkpoints" in line
                            ] if (folder / "metrics.jsonl").exists() else []  # fmt: skip
            assert step >= len(
                {line.split('"step": ')[1].split(",")[0] for line in acknowledged if line[-1] == "}"}
            )
            if (folder / "model").exists():
                verify(folder / "model")
            reached = max(reached, step)
        resume = (folder / "metrics.jsonl").exists()
        assert train_in_a_child(tiny(**settings, out=str(folder), resume=resume), None)
        last = train(tiny(**settings, out=str(folder), resume=True))
        assert last.weights_sha256 == whole.weights_sha256
    assert reached > 0
