"""The tables of families: which family a structure is written as, and what of a config is refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from transom.checkpoint.config_keys import ConfigKeys
from transom.checkpoint.families import FAMILIES, family_for
from transom.checkpoint.family import read_config, write_config
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.errors import Refused
from transom.model.config import SIZES, ModelConfig, RopeScaling
from transom.model.transformer import Transformer

LAYER = {"norm": "layer", "gated": False, "position": "learned", "n_kv_heads": 4, "head_dim": 4}
BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}

WRITTEN_AS = [
    ({}, "llama"),
    ({"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16)}, "llama"),
    ({"rope_scaling": RopeScaling("linear", 8.0, original_max_len=5)}, "llama"),
    ({"dropout": 0.1, "tie_embeddings": False}, "llama"),
    (BIASES, "llama"),
    ({"qkv_bias": True, "out_bias": True}, "llama"),
    ({"head_dim": 6}, "llama"),
    ({"dim": 18}, "mistral"),
    ({"window": 4}, "mistral"),
    ({"window": 4, "window_layers": (True, True)}, "mistral"),
    ({"window": 4, "window_layers": (False, False)}, "llama"),
    ({"window_layers": (False, True)}, "llama"),
    ({"window": 4, "window_layers": (True, False)}, None),
    ({"window": 4, "window_layers": (True, False), "qkv_bias": True}, "qwen2"),
    ({"qkv_bias": True}, "qwen2"),
    ({"qk_norm": True}, "qwen3"),
    ({"qk_norm": True, "qkv_bias": True, "out_bias": True, "window": 3}, "qwen3"),
    ({"qk_norm": True, "qkv_bias": True}, None),
    ({"qk_norm": True, "ffn_bias": True}, None),
    (LAYER | BIASES, "gpt2"),
    (LAYER | BIASES | {"ffn_dim": 64, "activation": "gelu_tanh", "dropout": 0.1}, "gpt2"),
    (LAYER, None),
    (LAYER | BIASES | {"head_dim": 6}, None),
    (LAYER | BIASES | {"window": 4}, None),
    ({"norm_position": "after"}, None),
    ({"position": "sinusoidal"}, None),
    ({"position": "none"}, None),
    ({"logit_softcap": 30.0}, None),
    ({"attn_softcap": 50.0}, None),
    ({"scale_embeddings": True}, None),
    ({"norm": "layer"}, None),
    ({"gated": False}, None),
]


@pytest.mark.parametrize(("changes", "expected"), WRITTEN_AS, ids=lambda value: str(value)[:60])
def test_structure_alone_decides_the_family(changes, expected, config):
    family = family_for(config.with_(**changes))
    assert (family and family.model_type) == expected


@pytest.mark.parametrize("size", SIZES)
def test_what_is_trained_here_is_written_for_everyone(size):
    family = family_for(ModelConfig(vocab_size=4096, **SIZES[size]))
    assert family is not None and family.architecture == "LlamaForCausalLM"
    family = family_for(ModelConfig(vocab_size=4096, qk_norm=True, **SIZES[size]))
    assert family is not None and family.architecture == "Qwen3ForCausalLM"


@pytest.mark.parametrize(
    "changes",
    [changes for changes, family in WRITTEN_AS if family is None],
    ids=lambda value: str(value)[:60],
)
def test_our_own_format_comes_back_whole(changes, config, tmp_path):
    config = config.with_(**changes, eos_id=3, rope_scaling=RopeScaling("llama3", 4.0))
    model = Transformer(config).eval()
    save_model(tmp_path, model)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "transom"
    back = load_model(tmp_path).eval()
    tokens = torch.arange(30)[None]
    assert torch.equal(back(tokens), model(tokens))
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_empty_config_means_the_defaults_of_the_family(model_type):
    """transformers writes only what differs from its defaults, so its defaults are ours."""
    from transformers import AutoConfig

    family = FAMILIES[model_type]
    config = read_config(family, ConfigKeys({"model_type": model_type}, "config.json"))
    theirs = AutoConfig.for_model(model_type)
    for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"):
        ours = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings}
        ours |= {f"{kind}_token_id": getattr(config, f"{kind}_id") for kind in ("bos", "eos", "pad")}
        assert ours[name] == getattr(theirs, name), name
    assert config.dim == theirs.hidden_size
    assert config.n_layers == theirs.num_hidden_layers
    assert config.n_heads == theirs.num_attention_heads
    assert config.n_kv_heads == getattr(theirs, "num_key_value_heads", config.n_heads)
    assert config.head_dim == getattr(theirs, "head_dim", config.dim // config.n_heads)
    assert config.max_len == theirs.max_position_embeddings
    assert config.ffn_dim == getattr(theirs, "intermediate_size", 4 * config.dim)
    if model_type != "gpt2":
        assert config.rope_theta == theirs.rope_parameters["rope_theta"]
        assert config.window == (
            theirs.sliding_window if model_type in ("mistral", "qwen2", "qwen3") else None
        )
    assert config.norm_eps == getattr(theirs, "rms_norm_eps", 1e-5)


ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
REFUSED = [
    (
        "llama",
        {"model_type": "gemma2"},
        "model_type is 'gemma2'; read are gpt2, llama, mistral, qwen2, qwen3",
    ),
    ("llama", {"model_type": "lama"}, "did you mean 'llama'"),
    ("llama", {"model_type": ["llama"]}, "model_type is"),
    (
        "llama",
        {"architectures": ["LlamaForSequenceClassification"]},
        "architectures is .*only LlamaForCausalLM",
    ),
    ("llama", {"architectures": "Llama"}, "architectures is"),
    ("llama", {"hidden_act": "mish"}, "hidden_act is 'mish'; supported are silu"),
    ("llama", {"hidden_act": ["silu"]}, "hidden_act is"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling: rope_type is 'yarn'"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope_scaling: type is 'dynamic'"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters: rope_type is 'longrope'"),
    (
        "llama",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "rope_parameters: full_attention",
    ),
    ("llama", {"rope_parameters": [1]}, "rope_parameters is"),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor is not there"),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor is '4'"),
    ("llama", {"rope_scaling": ROPE | {"high_freq_factor": 1.0}}, "high_freq_factor is '1.0'"),
    ("llama", {"rope_scaling": ROPE | {"attention_factor": 2.0}}, "attention_factor is '2.0'"),
    (
        "llama",
        {"rope_scaling": ROPE, "rope_parameters": ROPE | {"factor": 2.0}},
        "factor is '8.0'; rope_parameters",
    ),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is '0.5'"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved is 'True'"),
    ("qwen2", {"use_mrope": True}, "use_mrope is 'True'"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is"),
    ("llama", {"num_local_experts": 8}, "num_local_experts is '8'"),
    ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is"),
    ("llama", {"sliding_window": 4}, "sliding_window is '4'"),
    ("llama", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is"),
    ("llama", {"attention_bias": "yes"}, "attention_bias is 'yes'; true or false"),
    ("llama", {"hidden_size": 0}, "hidden_size is '0'; a whole number from 1"),
    ("llama", {"hidden_size": -16}, "hidden_size is '-16'"),
    ("llama", {"hidden_size": True}, "hidden_size is 'True'"),
    ("llama", {"hidden_size": 16.0}, "hidden_size is '16.0'"),
    ("llama", {"hidden_size": 2**40}, "hidden_size is"),
    ("llama", {"num_hidden_layers": 10**6}, "num_hidden_layers is '1000000'; a whole number from 1 to 4,096"),
    ("llama", {"head_dim": None, "hidden_size": 18}, "num_attention_heads is '4'; the width 18"),
    ("llama", {"num_key_value_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
    ("llama", {"head_dim": 5}, "head_dim 5 is odd"),
    ("llama", {"rms_norm_eps": -1}, "rms_norm_eps is '-1'"),
    ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
    ("llama", {"attention_dropout": 1.0}, "dropout is 1.0"),
    ("llama", {"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ("mistral", {"attention_bias": True}, "attention_bias is 'True'"),
    ("mistral", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
    ("qwen2", {"attention_bias": False}, "attention_bias is 'False'"),
    ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "layer_types is"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types is .*a list of 2 words"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": False}, "layer_types is"),
    ("qwen3", {"mlp_bias": True}, "mlp_bias is 'True'"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is 'True'"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is 'False'"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention is 'True'"),
    ("gpt2", {"activation_function": "quick_gelu"}, "activation_function is 'quick_gelu'"),
    ("gpt2", {"n_embd": 18}, "n_head is '4'; the width 18 is not a multiple"),
]
STRUCTURES = {
    "llama": {},
    "mistral": {"window": 4},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gpt2": LAYER | BIASES,
}


@pytest.mark.parametrize(("model_type", "changes", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_is_not_computed_is_refused_by_name(model_type, changes, said, config, tmp_path):
    written = write_config(FAMILIES[model_type], config.with_(**STRUCTURES[model_type]))
    for spelling in ("rope_scaling", "rope_parameters"):
        if spelling in changes:  # one spelling, unless the case gives both
            written = {k: v for k, v in written.items() if k not in ("rope_scaling", "rope_parameters")}
    (tmp_path / "config.json").write_text(json.dumps(written | changes))
    with pytest.raises(Refused, match=r"config\.json: .*" + said):
        load_config(tmp_path)


def test_keys_that_change_nothing_are_told_not_refused(llama, caplog):
    path = llama / "config.json"
    extra = {"unsloth_version": "2026.1", "auto_map": {"AutoModel": "m.M"}, "eos_token_id": 1000}
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    with caplog.at_level("INFO", logger="transom"):
        config, _ = load_config(llama)
    assert config.eos_id is None
    told = caplog.text
    assert "unsloth_version" in told and "auto_map names code to run; it is ignored" in told
    assert "eos_token_id 1000 is outside of the vocabulary of 61" in told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layer": 3}, "unknown key 'n_layer'; did you mean 'n_layers'"),
        ({"dim": "16"}, "dim is '16'; a whole number"),
        ({"n_layers": 10**9}, "n_layers is '1000000000'; a whole number from 1 to 4,096"),
        ({"rope_scaling": {"kind": "linear", "fac": 1}}, r"rope_scaling\.factor: Field required"),
        ({"dropout": 2}, "dropout is 2"),
        ({"norm": "batch"}, "norm: Input should be 'rms' or 'layer'"),
        ({"window_layers": [True]}, "window_layers names 1 layers of 2"),
        ({"window": "all"}, "window: Input should be a valid integer"),
        ({"gated": "no"}, "gated: Input should be a valid boolean"),
    ],
)
def test_our_own_format_is_read_strictly(changes, said, config, tmp_path):
    values = {"model_type": "transom", **dataclasses.asdict(config)} | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(Refused, match=rf"config\.json: .*{said}"):
        load_config(tmp_path)
