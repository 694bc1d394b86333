"""A decoder that writes a script, whatever it reads, so that an answer is known token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import Tokenizer
from transom.model.build import build
from transom.model.config import ModelConfig


def scripted(
    folder: Path, tokenizer: Tokenizer, n_prompt: int, ids: Sequence[int], max_len: int = 128
) -> Path:
    """A folder whose model, after n_prompt tokens, writes these and then its end token."""
    config = ModelConfig(
        tokenizer.vocab_size, max_len, 1, 4, 4, head_dim=8, ffn_dim=16, max_len=max_len, position="learned",
        norm="layer", norm_eps=1e-5, activation="gelu_tanh", gated=False, qkv_bias=True, out_bias=True,
        ffn_bias=True, tie_embeddings=False, eos_id=tokenizer.eos_id,
    )  # fmt: skip
    model = build(config, 0).eval()
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name or name.endswith("bias"):
                weight.zero_()
        model.position_embed.weight.copy_(torch.eye(max_len))  # type: ignore[union-attr]
        for place, token in enumerate([*ids, *ends]):
            model.head.weight[token, n_prompt - 1 + place] = 60.0  # type: ignore[index]
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model, tokenizer)
    return folder
