"""The tables of families: which family a structure is written as, and what of a config is refused by name."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from transom.checkpoint.config_keys import ConfigKeys
from transom.checkpoint.families import FAMILIES, family_for
from transom.checkpoint.family import canonical, read_config, write_config
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.errors import Refused
from transom.model.build import build
from transom.model.config import SIZES, Experts, ModelConfig, RopeScaling

LAYER = {"norm": "layer", "gated": False, "position": "learned", "n_kv_heads": 4, "head_dim": 4}
BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}

ENCODER = LAYER | BIASES | {"kind": "encoder", "norm_position": "after", "embed_norm": True, "segments": 2}
ENCODER |= {"activation": "gelu", "head_transform": True, "head_bias": True}
TWO = {"kind": "encoder-decoder", "n_encoder_layers": 1, "gated": False, "n_kv_heads": 4, "start_id": 0}
CLASSES = {"head": "classify", "labels": ("no", "yes")}

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
    (ENCODER, "bert"),
    (ENCODER | {"position_offset": 2, "pad_id": 1}, "roberta"),
    (ENCODER | {"position_offset": 2, "pad_id": 0}, None),
    (ENCODER | {"head_bias": False}, None),
    (ENCODER | {"tie_embeddings": False}, None),
    (ENCODER | CLASSES, "bert"),
    (ENCODER | CLASSES | {"pooling": "mean"}, None),
    (ENCODER | CLASSES | {"pooling": "mean", "position_offset": 2, "pad_id": 1}, None),
    (ENCODER | CLASSES | {"head": "tag"}, "bert"),
    (ENCODER | {"head": "embed", "pooling": "mean", "normalize": True}, "bert"),
    (ENCODER | {"segments": 0}, None),
    (ENCODER | {"norm_position": "before"}, None),
    ({"kind": "encoder"}, None),
    (TWO | BIASES | {"norm": "layer", "norm_position": "after", "position": "sinusoidal"}, None),
    (TWO | {"position": "relative", "attn_scale": 1.0}, "t5"),
    (TWO | {"position": "relative", "attn_scale": 1.0, "activation": "gelu_tanh", "gated": True}, "t5"),
    (TWO | {"position": "relative", "attn_scale": 1.0, "start_id": None}, None),
    (TWO | {"position": "relative"}, None),
    (TWO, None),
    ({"cell": "lstm"}, None),
    ({"cell": "gru", "kind": "encoder-decoder", "n_encoder_layers": 2}, None),
    ({"experts": Experts(4, 2, 8, score="softmax")}, None),
    ({"experts": Experts(4, 2, 8, n_shared=2, balance="loss")}, None),
    (ENCODER | {"experts": Experts(4, 2, 8)}, None),
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
    model = build(config).eval()
    save_model(tmp_path, model)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "transom"
    back = load_model(tmp_path).eval()
    assert type(back) is type(model) and back.config == canonical(config)
    assert back.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], weight)
    tokens = torch.arange(30)[None]
    memories = [one.encode(tokens) if config.n_encoder_layers else None for one in (back, model)]
    hidden = [one(tokens, memory=memory) for one, memory in zip((back, model), memories, strict=True)]
    assert torch.equal(*hidden)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_empty_config_means_the_defaults_of_the_family(model_type):
    """transformers writes only what differs from its defaults, so its defaults are ours."""
    from transformers import AutoConfig

    family, needed = FAMILIES[model_type], NEEDED.get(model_type, {})
    config = read_config(family, ConfigKeys({"model_type": model_type, **needed}, "config.json"))
    theirs = AutoConfig.for_model(model_type, **needed)
    ours = {f"{kind}_token_id": getattr(config, f"{kind}_id") for kind in ("bos", "eos", "pad")}
    ours |= {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_encoder_layers or config.n_layers,
        "num_attention_heads": config.n_heads,
    }
    for name, value in ours.items():
        assert value == getattr(theirs, name, None), name
    for value, names in (
        (config.n_kv_heads, ("num_key_value_heads", "num_attention_heads")),
        (config.max_len + config.position_offset, ("max_position_embeddings", "n_positions")),
        (config.ffn_dim, ("intermediate_size", "encoder_ffn_dim", "d_ff")),
        (config.norm_eps, ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")),
        (config.dropout, ("attention_dropout", "hidden_dropout_prob", "dropout_rate", "resid_pdrop")),
        (config.window, ("sliding_window",)),
        (config.start_id, ("decoder_start_token_id",)),
        (config.n_layers, ("num_decoder_layers", "decoder_layers", "num_hidden_layers")),
    ):
        said = next(
            (getattr(theirs, name) for name in names if getattr(theirs, name, None) is not None), None
        )
        if config.experts is not None and names[0] == "intermediate_size":
            continue  # where every layer has experts it has no meaning
        if (model_type, names[0]) in OTHERWISE:
            said = OTHERWISE[model_type, names[0]]
        assert said is None or value == said, names
    assert config.head_dim == (getattr(theirs, "head_dim", None) or config.dim // config.n_heads)
    if config.position == "rotary":
        assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    experts = config.experts
    if experts is not None:
        assert experts.n_experts == theirs.num_local_experts
        assert experts.n_active == theirs.num_experts_per_tok
        assert experts.ffn_dim == getattr(theirs, "moe_intermediate_size", theirs.intermediate_size)
        assert experts.normalize == getattr(theirs, "norm_topk_prob", True)


NEEDED = {"dots1": {"n_routed_experts": 16, "num_experts_per_tok": 4}}
"""Keys without a default."""
OTHERWISE = {
    ("marian", "attention_dropout"): 0.1,  # their `dropout`, which is the one we have
    ("gpt2", "attention_dropout"): 0.1,
    ("dots1", "sliding_window"): None,  # from layer 62 of 62 on: never
    ("gpt2", "intermediate_size"): 4 * 768,
}

EXPERTS = {"n_experts": 4, "n_active": 2, "ffn_dim": 8}
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
REFUSED = [
    (
        "llama",
        {"model_type": "gemma2"},
        "model_type is 'gemma2'; read are bert, dots1, gpt2, llama, marian, mistral, mixtral, olmoe, qwen2",
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
    ("llama", {"n_routed_experts": 8}, "n_routed_experts is '8'; only None"),
    ("bert", {"architectures": ["BertForQuestionAnswering"]}, "of bert, only BertForMaskedLM, BertFor"),
    ("bert", {"architectures": ["BertModel", "BertForMaskedLM"]}, "architectures is"),
    ("bert", {"architectures": [["BertModel"]]}, "architectures is .*a list of names"),
    ("bert", {"is_decoder": True}, "is_decoder is 'True'"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ("bert", {"tie_word_embeddings": False}, "tie_word_embeddings is 'False'"),
    ("bert", {"problem_type": "regression"}, "problem_type is 'regression'"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size is '0'; a whole number from 1"),
    ("bert", {"hidden_size": 18}, "num_attention_heads is '4'; the width 18"),
    ("bert", {"id2label": {"0": "no", "2": "yes"}}, "id2label is .*the numbers of 2 classes are 0 to 1"),
    ("bert", {"id2label": {"0": "no", "one": "yes"}}, "id2label is .*the numbers of 2 classes are 0 to 1"),
    ("bert", {"id2label": {"0": "no", "1": "no"}}, "id2label is .*every class has a name of its own"),
    ("bert", {"id2label": {"0": "no", "1": 7}}, "id2label is .*every class has a name of its own"),
    ("bert", {"id2label": ["no", "yes"]}, "id2label is .*a table belongs there"),
    ("bert", {"label2id": {"no": 1, "yes": 0}}, "label2id is .*id2label says otherwise"),
    ("bert", {"label2id": {"no": 0, "maybe": 1}}, "label2id is .*id2label says otherwise"),
    ("bert", {"num_labels": 3}, "num_labels is '3'; id2label names 2 classes"),
    ("bert", {"id2label": None, "label2id": None, "num_labels": 2**30}, "at most 100,000 classes"),
    ("roberta", {"hidden_act": "relu"}, "hidden_act is 'relu'; only 'gelu'"),
    ("roberta", {"pad_token_id": None}, "pad_token_id is 'None'; positions are counted from it"),
    ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings is '2'; the first 2 are left free"),
    ("marian", {"is_encoder_decoder": False}, "is_encoder_decoder is 'False'; only True"),
    ("marian", {"decoder_ffn_dim": 8}, "decoder_ffn_dim is '8'; encoder_ffn_dim is 24"),
    (
        "marian",
        {"decoder_attention_heads": 2},
        "decoder_attention_heads is '2'; encoder_attention_heads is 4",
    ),
    ("marian", {"decoder_vocab_size": 8}, "decoder_vocab_size is '8'; vocab_size is 61"),
    ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is 'False'"),
    ("marian", {"static_position_embeddings": False}, "static_position_embeddings is 'False'"),
    ("marian", {"normalize_before": True}, "normalize_before is 'True'"),
    ("marian", {"decoder_start_token_id": 61}, "decoder_start_token_id is '61'; a target must begin"),
    ("marian", {"decoder_start_token_id": None}, "decoder_start_token_id is 'None'; a target must begin"),
    ("marian", {"decoder_layers": 10**6}, "decoder_layers is '1000000'; a whole number from 1 to 4,096"),
    ("t5", {"feed_forward_proj": "gated-mish"}, "feed_forward_proj is 'gated-mish'; supported are relu|silu"),
    ("t5", {"dense_act_fn": "silu"}, "dense_act_fn is 'silu'; feed_forward_proj is 'relu'"),
    ("t5", {"relative_attention_num_buckets": 3}, "relative_attention_num_buckets is '3'; an even number"),
    (
        "t5",
        {"relative_attention_max_distance": 16},
        "relative_attention_max_distance is '16'; more than half",
    ),
    ("t5", {"num_layers": 10**6}, "num_layers is '1000000'"),
    ("t5", {"architectures": ["T5EncoderModel"]}, "of t5, only T5ForConditionalGeneration is read"),
]
STRUCTURES = {
    "llama": {},
    "mistral": {"window": 4},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gpt2": LAYER | BIASES,
    "bert": ENCODER | {"head": "classify", "labels": ("no", "yes")},
    "roberta": ENCODER | {"position_offset": 2, "pad_id": 1},
    "marian": TWO | BIASES | {"norm": "layer", "norm_eps": 1e-5, "position": "sinusoidal", "head_bias": True},
    "t5": TWO | {"position": "relative", "activation": "relu"},
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
        ({"experts": {"n_experts": 4}}, "experts.*Field required"),
        ({"experts": EXPERTS | {"n_activ": 2}}, "experts: unknown key 'n_activ'; did you mean 'n_active'"),
        ({"experts": EXPERTS | {"n_active": 9}}, "n_active is 9; it must be 1 to n_experts, 4"),
        ({"experts": EXPERTS | {"n_experts": 0}}, "experts: n_experts is '0'; a whole number from 1"),
        ({"experts": EXPERTS | {"ffn_dim": -8}}, "experts: ffn_dim is '-8'"),
        ({"experts": EXPERTS | {"n_shared": -1}}, "experts: n_shared is '-1'"),
        ({"experts": EXPERTS | {"balance": "luck"}}, "balance: Input should be 'bias', 'loss' or 'none'"),
        ({"experts": [4, 2, 8]}, "experts is .*a table belongs there"),
        ({"labels": ["no", 7]}, r"labels\.1: Input should be a valid string"),
        ({"labels": "no"}, "labels: Input should be a valid"),
        ({"kind": "encoder", "head": "classify"}, "0 labels; this head needs at least 1"),
        ({"head": "classify", "labels": ["no", "yes"]}, "a head that can classify stands on an encoder"),
        ({"cell": "qrnn"}, "cell: Input should be 'rnn', 'lstm' or 'gru'"),
        ({"segments": -1}, "segments is '-1'"),
        ({"n_encoder_layers": 10**6}, "n_encoder_layers is '1000000'; a whole number from 1 to 4,096"),
        ({"relative_buckets": 2}, "relative_buckets is '2'"),
    ],
)
def test_our_own_format_is_read_strictly(changes, said, config, tmp_path):
    values = {"model_type": "transom", **dataclasses.asdict(config)} | changes
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(Refused, match=rf"config\.json: .*{said}"):
        load_config(tmp_path)


def test_sizes_that_cannot_be_counted_cost_nothing(config, tmp_path):
    save_model(tmp_path, build(config.with_(experts=Experts(4, 2, 8), gated=False)))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    values |= {
        "dim": 2**31 - 1,
        "experts": values["experts"] | {"n_experts": 2**31 - 1, "ffn_dim": 2**31 - 1},
    }
    path.write_text(json.dumps(values))
    with pytest.raises(Refused, match=r"config\.json: no machine holds a model of these sizes"):
        load_model(tmp_path)
