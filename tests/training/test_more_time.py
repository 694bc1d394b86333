"""A run that is given another limit ends as one that was begun with it, as far as its schedule allows."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from transom.errors import Refused
from transom.training.loop import train

from .conftest import Tiny, until


def rates(run: Any) -> list[float]:
    return [event["lr"] for event in run.metrics if event["event"] == "step"]


SHORT = {"eval_every": 1000, "optim__warmup_steps": 1, "model__dropout": 0.1, "optim__weight_decay": 0.1}
"""Ten steps, of which one is a warm-up and the last four a cool-down."""


@pytest.mark.parametrize(("times", "optim", "warmup_steps"), [(2, "muon", 1), (3, "adamw", 0)])
def test_more_steps_give_the_bits_of_a_run_of_so_many_steps(
    tiny: Tiny, tmp_path: Path, times: int, optim: str, warmup_steps: int
) -> None:
    common = {**SHORT, "optim__name": optim, "optim__warmup": 0, "optim__warmup_steps": warmup_steps}
    first = train(tiny(steps=10, **common))
    before = rates(first)
    more = train(tiny(steps=10 * times, resume=True, **common))
    whole = train(tiny(steps=10 * times, out=str(tmp_path / "whole"), **common))
    assert more.weights_sha256 == whole.weights_sha256 != first.weights_sha256
    assert rates(more) == rates(whole) and more.loss == whole.loss and more.step == 10 * times
    assert before[:6] == rates(more)[:6] and before[6] < rates(more)[6]
    names = sorted(path.name for path in (more.folder / "checkpoints").iterdir())
    assert names == [f"step-{6 * times:06d}", f"step-{10 * times:06d}"], "no more than any run keeps"


def test_a_finished_run_says_how_it_could_go_on(tiny: Tiny) -> None:
    first = train(tiny(steps=10, **SHORT))
    before = sorted((path, path.stat().st_mtime_ns) for path in first.folder.rglob("*"))
    heard: list[dict[str, Any]] = []
    again = train(tiny(steps=10, resume=True, **SHORT), on_event=heard.append)
    assert again == first, "the same run, with nothing done"
    assert before == sorted((path, path.stat().st_mtime_ns) for path in first.folder.rglob("*"))
    (text,) = (event["text"] for event in heard)
    assert text.startswith("nothing is left to do") and text.endswith(
        f"--out {first.folder} --resume --steps 20"
    )


@pytest.mark.alone
def test_a_finished_run_of_time_learns_for_longer(tiny: Tiny) -> None:
    common = {**SHORT, "optim__cooldown": 0.5, "save_every": 1000}
    first = train(tiny(budget=3, **common))
    heard: list[dict[str, Any]] = []
    more = train(tiny(budget=6, resume=True, **common), on_event=heard.append)
    start = next(event["step"] for event in heard if event["event"] == "resume")
    assert start < first.step < more.step and more.seconds == pytest.approx(6, abs=1)
    learned = [event for event in more.metrics if event["event"] == "step"]
    assert [event["step"] for event in learned] == list(range(1, more.step + 1))
    highest = max(rates(more))
    risen = learned[rates(more).index(highest) :]
    fell = [event["step"] for event in risen if event["lr"] < highest]
    assert start < fell[0] and learned[fell[0] - 1]["position"] > 0.45, (
        "its rate falls in the second half again"
    )
    assert learned[-1]["lr"] < 0.2 * max(rates(more))


def test_another_kind_of_limit_may_be_given(tiny: Tiny) -> None:
    first = train(tiny(tokens=10 * 256, **SHORT))
    more = train(tiny(epochs=2, resume=True, **SHORT))
    assert first.step == 10 and more.step == 14, "twice through 55 windows, 8 a step"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 9}, r"steps is 9, but 10 steps are done already; give it more, or start a new run"),
        ({"tokens": 2000}, r"tokens is 2000, but 2,560 tokens are learned already"),
        ({"epochs": 1}, r"epochs is 1.0, but 10 steps are done already"),
        ({"budget": 0.1}, r"budget is 0.1s, but the run has taken 0:\d\d already"),
        ({"steps": 20, "optim__lr": 0.5}, r"optim.lr is 0.5"),
    ],
)
def test_less_than_is_done_is_refused(tiny: Tiny, change: dict[str, Any], says: str) -> None:
    first = train(tiny(steps=10, **SHORT))
    heard: list[dict[str, Any]] = []
    with pytest.raises(Refused, match=says):
        train(tiny(resume=True, **{**SHORT, **change}), on_event=heard.append)
    assert {"optim__lr", "epochs"} & change.keys() or not heard, "before the data is looked at"
    assert train(tiny(steps=10, resume=True, **SHORT)) == first, "and nothing was touched"


def test_a_run_that_cannot_go_on_names_another_way(tiny: Tiny) -> None:
    cosine = train(tiny(steps=4, optim__schedule="cosine", **SHORT))
    another = f"--model.weights {cosine.model_folder} --out {cosine.folder}-more"
    with pytest.raises(
        Refused, match=rf"falls from the start \(optim.schedule\); start a new one .*{another}"
    ):
        train(tiny(steps=8, optim__schedule="cosine", resume=True, **SHORT))


def test_a_run_without_its_last_checkpoint_at_the_full_rate_names_another_way(tiny: Tiny) -> None:
    first = train(tiny(steps=10, **SHORT))
    shutil.rmtree(first.folder / "checkpoints/step-000006")
    with pytest.raises(Refused, match="no checkpoint is left from before its rate fell; start a new one"):
        train(tiny(steps=20, resume=True, **SHORT))


def test_a_stopped_run_can_end_soon_with_its_rate_falling(tiny: Tiny) -> None:
    """The end of its output names the limit; under it the rate falls from where it stood to nothing."""

    def at_step_20(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 20:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = train(tiny(steps=100, **SHORT), on_event=at_step_20)
    assert stopped.interrupted and f"{stopped.resume_command} --steps 22" in str(stopped)
    soon = train(tiny(steps=22, resume=True, **SHORT))
    peak = max(rates(soon))
    assert rates(soon)[19:] == pytest.approx([peak, peak, peak / 3])
    assert not soon.interrupted and soon.step == 22


def test_a_longer_run_that_is_killed_goes_on_as_the_longer_run(tiny: Tiny, tmp_path: Path) -> None:
    common = {**SHORT, "save_every": 3, "keep": 100}
    train(tiny(steps=10, **common))
    more = train(tiny(steps=20, resume=True, **common))
    killed = until(more.folder, 9, tmp_path / "killed")
    assert train(tiny(steps=20, resume=True, **common, out=str(killed))).weights_sha256 == more.weights_sha256
