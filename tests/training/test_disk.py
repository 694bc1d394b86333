"""A full disk costs a save, never what was saved before, and never the run."""

from __future__ import annotations

import errno
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from transom.checkpoint.folder import NotSaved, verify
from transom.training.loop import train
from transom.training.report import Metrics

from .conftest import Tiny


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Writing more fails with EFBIG, as a full disk fails with ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_save_that_fails_is_tried_again_and_training_goes_on(tiny: Tiny) -> None:
    limits: list[Any] = []

    def fill_up(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 3:
            limits.append(no_file_larger_than(40_000))
            limits[0].__enter__()
        if event["event"] == "step" and event["step"] == 5:
            limits[0].__exit__(None, None, None)

    run = train(tiny(steps=8, save_every=2), on_event=fill_up)
    failed = [event for event in run.metrics if event["event"] == "save_failed"]
    assert [event["step"] for event in failed] == [4]
    assert "WARNING" in failed[0]["text"] and "was not saved" in failed[0]["text"]
    names = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert names == ["step-000005", "step-000008"], "the last before the rate fell, and the newest"
    assert run.step == 8 and not run.interrupted


def test_when_the_last_save_fails_the_run_fails_and_the_one_before_is_whole(
    tiny: Tiny, tmp_path: Path
) -> None:
    limits: list[Any] = []

    def fill_up(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            limits.append(no_file_larger_than(40_000))
            limits[0].__enter__()

    try:
        with pytest.raises(NotSaved, match="was not saved"):
            train(tiny(steps=6, save_every=4), on_event=fill_up)
    finally:
        limits[0].__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000004"]
    verify(tmp_path / "run/checkpoints/step-000004")
    resumed = train(tiny(steps=6, save_every=4, resume=True))
    assert resumed.step == 6


def test_metrics_that_cannot_be_written_do_not_end_a_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    metrics = Metrics(tmp_path, [], {})
    metrics.write({"event": "step", "step": 1})
    assert metrics.broken is not None and errno.errorcode[errno.ENOSPC]
    metrics.close()
