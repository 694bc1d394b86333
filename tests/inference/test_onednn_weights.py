"""Packed weights: every member that writes computes from them what it computes from its own."""

from __future__ import annotations

import pytest
import torch

from tests.inference.bfloat16 import PLAIN_FEED_FORWARD, in_bfloat16
from transom.inference.onednn_weights import PackedLinear, packed, packs
from transom.inference.runner import Chunk, TorchRunner
from transom.model.build import Model, build
from transom.model.config import Experts, ModelConfig

CONFIG = ModelConfig(96, 64, 2, 4, 2, head_dim=16, ffn_dim=96, max_len=64)
TWO = {"kind": "encoder-decoder", "n_encoder_layers": 2, "n_kv_heads": 4}
MEMBERS = {
    "decoder": {},
    "biases, plain feed-forward": PLAIN_FEED_FORWARD,
    "squared relu, soft-cap, own head": {
        "activation": "relu2", "gated": False, "logit_softcap": 9.0, "tie_embeddings": False,
    },
    "normed queries": {"qk_norm": True, "activation": "gelu"},
    "experts": {"experts": Experts(4, 2, 32, n_shared=1)},
    "encoder-decoder": TWO,
    "lstm": {"cell": "lstm"},
    "lstm encoder-decoder": {"kind": "encoder-decoder", "n_encoder_layers": 1, "cell": "lstm"},
}  # fmt: skip


@pytest.fixture(params=MEMBERS)
def model(request: pytest.FixtureRequest) -> Model:
    return in_bfloat16(CONFIG.with_(**MEMBERS[request.param]))


def test_a_packed_model_computes_the_same(model: Model):
    twin = packed(model)
    assert any(isinstance(part, PackedLinear) for part in twin.modules()) or model.config.cell is not None
    tokens, source = torch.arange(48).view(2, 24), torch.arange(14).view(2, 7)
    with torch.inference_mode():
        ours, theirs = (
            one.logits(one(tokens, memory=one.encode(source) if model.config.kind != "decoder" else None))
            for one in (twin, model)
        )
    assert theirs.std() > 0.1 and ours.dtype == torch.float32
    # A few units in the last of bfloat16's 8 bits, of the largest logits.
    assert float((ours - theirs).abs().max()) < 0.03 * float(theirs.abs().max())


def test_a_runner_packs_and_writes_what_the_model_says(model: Model):
    runner = TorchRunner(model, n_tokens=128)
    assert runner._model is not model
    two = model.config.kind == "encoder-decoder"
    tokens, source = [*range(3, 40)], [5, 6, 7] if two else None
    row = runner.open(tokens, source)
    made = [runner.run([Chunk(row, 30, 30)]), *(runner.run([Chunk(row, 1)]) for _ in range(7))]
    wide = model.float()  # nearer to the truth than bfloat16 in any order
    with torch.inference_mode():
        memory = None if source is None else wide.encode(torch.tensor([source]))
        expected = wide.logits(wide(torch.tensor([tokens]), memory=memory))[0]
    error = (torch.cat(made) - expected).norm() / expected.norm()
    assert float(error) < 0.03


def test_weights_of_a_runner_that_change_are_packed_anew():
    model = build(CONFIG, 0).eval().to(torch.bfloat16)
    if not packs(model):
        pytest.skip("this machine does not multiply bfloat16")
    runner = TorchRunner(model, n_tokens=64)
    runner.run([Chunk(row := runner.open([1, 2, 3]), 3)])
    runner.close(row)
    with torch.no_grad():
        model.layers[0].ffn.down_proj.weight.mul_(-40)
    changed = runner.run([Chunk(runner.open([1, 2, 3]), 3)])
    fresh = TorchRunner(model, n_tokens=64)
    torch.testing.assert_close(changed, fresh.run([Chunk(fresh.open([1, 2, 3]), 3)]))
