"""The perplexity of a real model on real text is that of `transformers`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import transom
from transom.model.losses import cross_entropy

WINDOW = 512


def perplexities(folder: Path, data: Path, dtype: str, n_tokens: int | None) -> tuple[float, float]:
    """Ours and that of `transformers`, over windows of 512."""
    transformers = pytest.importorskip("transformers")
    loaded = transom.load(folder, dtype=dtype)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    text = (data / "wikitext-2" / "valid.txt").read_text("utf-8")
    ids = loaded.tokenizer.backend.encode(text if n_tokens is None else text[: 8 * n_tokens]).ids
    ours = theirs = 0.0
    windows = [some for some in torch.tensor(ids)[:n_tokens].split(WINDOW) if len(some) > 1]
    with torch.inference_mode():
        for window in windows:
            read, wanted = window[None, :-1], window[1:]
            hidden = loaded.model.head(loaded.model(read)[0])
            ours += float(cross_entropy(hidden, loaded.model.output_weight, wanted))
            theirs += float(F.cross_entropy(peer(read).logits[0].float(), wanted, reduction="sum"))
    n = sum(len(window) - 1 for window in windows)
    return math.exp(ours / n), math.exp(theirs / n)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_perplexity_is_that_of_transformers(smollm2: Path, shared_data: Path, dtype: str) -> None:
    ours, theirs = perplexities(smollm2, shared_data, dtype, 512)
    assert 10 < ours < 40 and abs(ours / theirs - 1) < (1e-3 if dtype == "float32" else 3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_perplexity_of_the_whole_text_is_that_of_transformers(
    smollm2: Path, shared_data: Path, dtype: str
) -> None:
    ours, theirs = perplexities(smollm2, shared_data, dtype, None)
    assert abs(ours / theirs - 1) < 1e-3
