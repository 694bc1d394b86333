"""What the parity tests share: random models of transformers as oracles, and comparing folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

TOLERANCE = 1e-5  # in float32; most cases agree to the last bit


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw every parameter anew, so that a bias or a norm left out would show in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if not weight.requires_grad:
                continue  # a table of sines
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = weight.ndim == 1 and name.endswith("weight")
            weight.copy_(1 + 0.3 * noise if is_norm else 0.2 * noise)
    return model.eval()


def some_tokens(vocab_size: int, batch: int = 2, length: int = 33, least: int = 0) -> torch.Tensor:
    """Random token ids (B, L)."""
    generator = torch.Generator().manual_seed(7)
    return torch.randint(least, vocab_size, (batch, length), generator=generator)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, shards and all."""
    return {name: w for file in folder.glob("*.safetensors") for name, w in load_file(file).items()}


def assert_equal_tensors(one: Path, other: Path, without: tuple[str, ...] = ()) -> None:
    """The same names, types, shapes and bits, but for names of `one` that hold a part of `without`."""
    first, second = tensors_of(one), tensors_of(other)
    first = {name: w for name, w in first.items() if not any(part in name for part in without)}
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert weight.dtype == second[name].dtype
        assert torch.equal(weight, second[name]), name


def read_by_transformers(folder: Path, auto: Any, allowed: tuple[str, ...] = ()) -> PreTrainedModel:
    """The model as anyone would load it, with nothing missing, left over or drawn anew but for `allowed`."""
    model, report = auto.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not [key for key in report[kind] if not any(part in str(key) for part in allowed)], report
    return model.eval()
