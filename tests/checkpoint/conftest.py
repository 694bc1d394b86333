"""What the tests of this room share: a small model and folders that hold one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from transom.checkpoint.huggingface import save_model
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> ModelConfig:
    return ModelConfig(
        vocab_size=61, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, ffn_dim=24, max_len=32
    )


@pytest.fixture
def model(config: ModelConfig) -> Transformer:
    return Transformer(config).eval()


@pytest.fixture
def llama(tmp_path: Path, model: Transformer) -> Path:
    """A Llama folder as we write it, not committed: there is no manifest."""
    folder = tmp_path / "llama"
    folder.mkdir()
    save_model(folder, model)
    return folder


@pytest.fixture
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a Python program that finds this package; `before` goes in front of the command."""

    def run(*arguments: str | Path, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [*before, sys.executable, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run
