"""A small corpus and tiny settings: a run of some steps in under a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.settings import TrainSettings, load


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small lose by a second thread, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some documents of different lengths, so that rows hold boundaries; and a place for their tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text").mkdir()
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "then",
        "it",
        "ran",
        "after",
        "some",
        "other",
        "small",
        "grey",
        "mouse",
    ]
    for n in range(24):
        text = " ".join(words[(n * 7 + i * (1 + n % 5)) % len(words)] for i in range(8 + 5 * (n % 6)))
        (folder / "text" / f"{n:02}.txt").write_text(f"{text}.\n")
    return folder


def until(folder: Path, step: int, to: Path) -> Path:
    """A copy of a run as a kill after `step` would have left it."""
    shutil.copytree(folder, to)
    for path in (to / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return to


Tiny = Callable[..., TrainSettings]


@pytest.fixture
def tiny(corpus_folder: Path, tmp_path: Path) -> Tiny:
    """Settings of a tiny run; keywords are settings, `__` stands for the dot."""

    def make(**changes: Any) -> TrainSettings:
        values: dict[str, Any] = {
            "data.source": str(corpus_folder / "text"),
            "data.tokenizer": "bytes",
            "data.val_fraction": 0.2,
            "data.cache": str(corpus_folder / "tokens"),
            "model.dim": 32,
            "model.n_layers": 2,
            "model.head_dim": 16,
            "model.max_len": 32,
            "batch.tokens": 256,
            "batch.micro": 2,
            "out": str(tmp_path / "run"),
            "dtype": "float32",
            "device": "cpu",
            "save_every": 1000,
            "prompt": "the ",
        }
        given = {name.replace("__", "."): value for name, value in changes.items()}
        if not {"budget", "steps", "tokens", "epochs"} & given.keys():
            given["steps"] = 6
        return load(TrainSettings, {**values, **given})

    return make
