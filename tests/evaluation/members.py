"""Small models of every kind as folders, drawn and not trained, whose answers are anything but even."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.model.build import build
from transom.model.config import Experts, ModelConfig

BYTES: Tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
ENCODED = train_tokenizer("bytes", iter(["any text"]), 260, frame="text")
MEMBERS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "gru": {"cell": "gru", "tie_embeddings": False},
    "experts": {"experts": Experts(4, 2, 24)},
}


def config(**changes: Any) -> ModelConfig:
    """A few thousand parameters."""
    shape: dict[str, Any] = dict(vocab_size=BYTES.vocab_size, dim=32, n_layers=2, n_heads=4, n_kv_heads=2,
                                 head_dim=8, ffn_dim=48, max_len=64, bos_id=BYTES.eos_id, eos_id=BYTES.eos_id,
                                 pad_id=BYTES.pad_id)  # fmt: skip
    return ModelConfig(**(shape | changes))


def write_model(folder: Path, seed: int = 0, tokenizer: Tokenizer = BYTES, **changes: Any) -> Path:
    """Write a model of such a config into a new folder."""
    model = build(config(**changes), seed).eval()
    with torch.no_grad():
        model.embed.weight.mul_(20)
    folder.mkdir()
    save_model(folder, model, tokenizer)
    return folder
