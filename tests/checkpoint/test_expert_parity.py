"""Parity of decoders with experts with `transformers`, both ways: Mixtral, OLMoE, Qwen3-MoE, dots1."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Dots1Config,
    Dots1ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.checkpoint.oracle import (
    TOLERANCE,
    assert_equal_tensors,
    randomize,
    read_by_transformers,
    some_tokens,
)
from transom.checkpoint.families import family_for
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.errors import Refused
from transom.model.build import build
from transom.model.config import Experts, ModelConfig

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIX = {"num_experts": 6, "norm_topk_prob": True}
DOTS1 = {"n_routed_experts": 6, "moe_intermediate_size": 24, "n_shared_experts": 2, "norm_topk_prob": True}
DOTS1 |= {"num_experts_per_tok": 3, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5}
CASES = {
    "mixtral": (MixtralForCausalLM, MixtralConfig, {"num_local_experts": 5}),
    "mixtral-window": (
        MixtralForCausalLM,
        MixtralConfig,
        {"num_local_experts": 4, "sliding_window": 5, "head_dim": 12, "router_aux_loss_coef": 0.0},
    ),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, SIX),
    "olmoe-raw-weights": (
        OlmoeForCausalLM,
        OlmoeConfig,
        SIX | {"norm_topk_prob": False, "num_key_value_heads": 4, "attention_bias": True},
    ),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, SIX | {"moe_intermediate_size": 24, "head_dim": 16}),
    "qwen3-moe-window": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig,
        SIX | {"use_sliding_window": True, "sliding_window": 7, "norm_topk_prob": False, "head_dim": 8},
    ),
    "dots1": (Dots1ForCausalLM, Dots1Config, DOTS1),
    "dots1-window": (
        Dots1ForCausalLM,
        Dots1Config,
        DOTS1
        | {"sliding_window": 6, "max_window_layers": 1, "first_k_dense_replace": 0, "norm_topk_prob": False},
    ),
}


def make(name: str):
    model, config, changes = CASES[name]
    theirs = randomize(model(config(**(SMALL | changes))))
    generator = torch.Generator().manual_seed(5)
    for key, buffer in theirs.named_buffers():
        if key.endswith("e_score_correction_bias"):  # large enough to change what is chosen
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.2)
    return theirs


def their_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(some_tokens(97)).logits


def our_logits(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model.logits(model(some_tokens(97)))


@pytest.mark.parametrize("name", CASES)
def test_in_and_out(name, tmp_path):
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    ours = load_model(tmp_path / "theirs")
    expected = their_logits(theirs)
    torch.testing.assert_close(our_logits(ours), expected, rtol=0, atol=TOLERANCE)

    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours)
    back = read_by_transformers(tmp_path / "ours", AutoModelForCausalLM)
    assert type(back) is type(theirs)
    torch.testing.assert_close(their_logits(back), expected, rtol=0, atol=TOLERANCE)
    assert_equal_tensors(tmp_path / "theirs", tmp_path / "ours")
    assert load_config(tmp_path / "theirs")[0] == load_config(tmp_path / "ours")[0] == ours.config


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mixtral", {"num_experts_per_tok": 1}),
        ("olmoe", {"norm_topk_prob": False}),
        ("qwen3-moe", {"num_experts_per_tok": 3}),
        ("dots1", {"routed_scaling_factor": 1.0}),
        ("dots1", {"norm_topk_prob": False}),
    ],
)
def test_the_oracle_would_notice(name, changes, tmp_path):
    theirs = make(name)
    theirs.save_pretrained(tmp_path)
    before = their_logits(theirs)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    after = our_logits(load_model(tmp_path))
    assert (after - before).abs().max() > 100 * TOLERANCE
    expected = their_logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    torch.testing.assert_close(after, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3-moe", "dots1"])
def test_all_experts_in_one_tensor(name, tmp_path):
    """The form that transformers 5 holds in memory; we read it, and write one matrix for each expert."""
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "theirs")
    weights = {key: value.contiguous() for key, value in theirs.state_dict().items()}
    assert any(key.endswith(".experts.gate_up_proj") for key in weights)
    save_file(weights, tmp_path / "theirs" / "model.safetensors")
    ours = load_model(tmp_path / "theirs")
    torch.testing.assert_close(our_logits(ours), their_logits(theirs), rtol=0, atol=TOLERANCE)
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours)
    names = load_file(tmp_path / "ours" / "model.safetensors")
    assert not any(re.search(r"experts\.(gate_up|down)_proj$", key) for key in names)
    assert any(".experts.0." in key for key in names)


def test_a_bias_that_chooses_experts_stays_exact_in_half_precision(tmp_path):
    theirs = make("dots1").to(torch.bfloat16)
    for key, buffer in theirs.named_buffers():
        if key.endswith("e_score_correction_bias"):
            buffer.data = buffer.float() + 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", dtype=torch.bfloat16)
    assert ours.embed.weight.dtype == torch.bfloat16
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours)
    assert_equal_tensors(tmp_path / "theirs", tmp_path / "ours")


COMMON = dict(
    vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=40, max_len=64
)  # fmt: skip
EXPERTS = Experts(4, 2, 24, score="softmax", balance="none")
BUILT = {
    "qwen3_moe": dict(qk_norm=True, experts=EXPERTS),
    "mixtral": dict(experts=EXPERTS),
    "olmoe": dict(qk_norm=True, qk_norm_over="projection", experts=EXPERTS),
    "dots1": dict(qk_norm=True, experts=Experts(4, 2, 24, n_shared=1, balance_rate=0.01)),
    "dots1 with a dense layer": dict(qk_norm=True, experts=Experts(4, 2, 24, n_shared=1, first_dense=1)),
    "dots1 without shared experts": dict(qk_norm=True, experts=Experts(4, 2, 24)),
    "qwen3_moe balanced by a loss": dict(
        qk_norm=True, experts=Experts(4, 2, 24, score="softmax", balance="loss", balance_rate=0.02)
    ),
    "transom: a bias beside softmax": dict(qk_norm=True, experts=Experts(4, 2, 24, score="softmax")),
    "transom: sigmoid without a bias": dict(qk_norm=True, experts=Experts(4, 2, 24, balance="none")),
    "transom: no gate": dict(gated=False, experts=EXPERTS),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # transformers, for what is hollow
@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_here_is_read_there(name, tmp_path):
    """The family by what a config says, and its weights after training moved the bias."""
    config = ModelConfig(**COMMON | BUILT[name])  # type: ignore[arg-type]
    found, expected = family_for(config), name.replace(":", " ").split()[0]
    assert (found.model_type if found else "transom") == expected
    model = build(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.state_dict().values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    save_model(tmp_path, model)
    ours = load_model(tmp_path)
    assert torch.equal(our_logits(ours), our_logits(model))
    assert ours.config.experts == config.experts
    if found is not None:
        theirs = read_by_transformers(tmp_path, AutoModelForCausalLM)
        torch.testing.assert_close(their_logits(theirs), our_logits(model), rtol=0, atol=TOLERANCE)


REFUSED = [
    ("mixtral", {"num_local_experts": 1}, "num_local_experts is '1'; a whole number from 2"),
    ("mixtral", {"num_local_experts": "8"}, "num_local_experts is '8'"),
    ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok is '6'; a whole number from 1 to num_local"),
    ("mixtral", {"num_local_experts": 10**6}, "more than the 50,000 tensors read"),
    ("olmoe", {"clip_qkv": 3.0}, "clip_qkv is '3.0'; only None"),
    ("olmoe", {"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'; true or false"),
    ("qwen3-moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is '2'; only 1"),
    ("qwen3-moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is '\[0\]'"),
    ("qwen3-moe", {"num_experts": 7}, "num_experts is|num_local_experts is"),
    ("dots1", {"n_group": 2}, "n_group is '2'; only 1"),
    ("dots1", {"topk_group": 2}, "topk_group is '2'; only 1"),
    ("dots1", {"n_routed_experts": None}, "n_routed_experts is 'None'; how many experts"),
    ("dots1", {"n_shared_experts": -1}, "n_shared_experts is '-1'"),
    ("dots1", {"routed_scaling_factor": -2.0}, "routed_scaling_factor is '-2.0'"),
    ("dots1", {"first_k_dense_replace": 1.5}, "first_k_dense_replace is '1.5'"),
]


@pytest.mark.parametrize(("name", "changes", "said"), REFUSED, ids=str)
def test_what_is_not_computed_is_refused_by_name(name, changes, said, tmp_path):
    make(name).config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(Refused, match=rf"config\.json: .*(?:{said})") as refusal:
        load_config(tmp_path)
    assert "\n" not in str(refusal.value)


def test_more_or_fewer_experts_than_said(tmp_path):
    make("mixtral").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {"num_local_experts": 4}))
    with pytest.raises(Refused, match=r"gate\.weight' has shape \(5, 32\); the config asks for \(4, 32\)"):
        load_model(tmp_path)
    path.write_text(json.dumps(written))
    weights = load_file(tmp_path / "model.safetensors")
    lost = weights.pop("model.layers.1.block_sparse_moe.experts.3.w2.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match=r"experts\.3\.w2\.weight' of shape \(32, 56\) is missing"):
        load_model(tmp_path)
    weights["model.layers.1.block_sparse_moe.experts.3.w2.weight"] = lost.t().contiguous()
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(Refused, match=r"experts\.3\.w2\.weight' has shape \(56, 32\)"):
        load_model(tmp_path)
