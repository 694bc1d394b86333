"""Models in bfloat16 whose rows tell their tokens apart, for tests of what a CPU makes of them."""

from __future__ import annotations

import pytest
import torch

from transom.inference.onednn_weights import packs
from transom.model.build import Model, build
from transom.model.config import ModelConfig

PLAIN_FEED_FORWARD = {
    "qkv_bias": True, "out_bias": True, "ffn_bias": True, "gated": False, "activation": "gelu_tanh",
    "position": "learned", "norm": "layer",
}  # fmt: skip


def in_bfloat16(config: ModelConfig) -> Model:
    """A model of this config; skips the test on a machine that does not multiply bfloat16."""
    model = build(config, 0).eval().to(torch.bfloat16)
    if not packs(model):
        pytest.skip("this machine does not multiply bfloat16")
    with torch.no_grad():
        model.embed.weight.mul_(20)
    return model
