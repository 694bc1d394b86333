"""The tables of decoders: GPT-2, and the families that descend from Llama.

Source: `configuration_*.py` and `modeling_*.py` of transformers, 4.5x and 5. Read next: expert_families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transom.model.config import ModelConfig

from .config_keys import ConfigKeys
from .config_labels import ACTIVATION_LABELS, ACTIVATIONS, even_share
from .experts import read_experts, write_experts
from .family import Family, Rule, Window, named
from .rope import read_rope, write_rope

# --- the families that descend from Llama -------------------------------------------------------------------

LLAMA_RULES = named(
    {
        "model.embed_tokens": "embed",
        "model.layers.#.input_layernorm": "layers.#.attn_norm",
        "model.layers.#.self_attn.q_proj": "layers.#.attn.q_proj",
        "model.layers.#.self_attn.k_proj": "layers.#.attn.k_proj",
        "model.layers.#.self_attn.v_proj": "layers.#.attn.v_proj",
        "model.layers.#.self_attn.o_proj": "layers.#.attn.o_proj",
        "model.layers.#.self_attn.q_norm": "layers.#.attn.q_norm",
        "model.layers.#.self_attn.k_norm": "layers.#.attn.k_norm",
        "model.layers.#.post_attention_layernorm": "layers.#.ffn_norm",
        "model.layers.#.mlp.gate_proj": "layers.#.ffn.gate_proj",
        "model.layers.#.mlp.up_proj": "layers.#.ffn.up_proj",
        "model.layers.#.mlp.down_proj": "layers.#.ffn.down_proj",
        "model.norm": "final_norm",
        "lm_head": "head",
    }
)
LLAMA_PARTS = dict(norm="rms", norm_position="before", gated=True, position="rotary", scale_embeddings=False)


def _read_llama_like(family: Family, keys: ConfigKeys) -> dict[str, Any]:
    values = {name: keys.count(key, default) for name, (key, default) in family.numbers.items()}
    values["n_kv_heads"] = values["n_kv_heads"] or values["n_heads"]
    if values.get("head_dim") is None or family.even_width:
        share = even_share(values, keys, "num_attention_heads")
        values["head_dim"] = values.get("head_dim") or share
    for switch, names in family.biases.items():
        values |= dict.fromkeys(names, keys.flag(switch, False))
    values["activation"] = keys.choice("hidden_act", family.activation, ACTIVATIONS)
    values["norm_eps"] = keys.real("rms_norm_eps", family.norm_eps)
    values["tie_embeddings"] = keys.flag("tie_word_embeddings", False)
    values["dropout"] = keys.real("attention_dropout", family.dropout)
    values |= read_rope(keys, values["max_len"], family.rope_theta)
    if family.experts is not None:
        values["experts"] = read_experts(family.experts, keys, values["n_layers"])
        values.setdefault("ffn_dim", values["experts"].ffn_dim)
    return values | _read_window(family, keys, values["n_layers"])


def _write_llama_like(family: Family, config: ModelConfig) -> dict[str, Any]:
    return (
        {key: getattr(config, name) for name, (key, _) in family.numbers.items()}
        | {switch: getattr(config, names[0]) for switch, names in family.biases.items()}
        | {
            "hidden_act": ACTIVATION_LABELS[config.activation],
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "attention_dropout": config.dropout,
        }
        | write_rope(config)
        | (write_experts(family.experts, config) if family.experts else {})
        | (_write_window(family.window, config) if family.window else {})
    )


def _read_window(family: Family, keys: ConfigKeys, n_layers: int) -> dict[str, Any]:
    """The sliding window, and the layers that have it; full attention is spelled in three ways."""
    types = keys.words("layer_types", ("full_attention", "sliding_attention"), n_layers)
    spelled, window, first = family.window, None, 0
    if spelled is not None and (not spelled.switched or keys.flag("use_sliding_window", False)):
        window = keys.count("sliding_window", spelled.default if keys.absent("sliding_window") else None)
    if spelled is not None and spelled.first is not None:
        first = keys.count("max_window_layers", spelled.first, least=0) or 0
    slides = [window is not None and i >= first for i in range(n_layers)]
    if types is not None:
        chosen = [word == "sliding_attention" for word in types]
        by_layer = spelled is not None and spelled.first is not None
        if not by_layer and chosen != slides or window is None and any(chosen):
            raise keys.refuse("layer_types", f"the sliding window of this {family.model_type} says otherwise")
        slides = chosen
    if not any(slides):
        return {"window": None, "window_layers": None}
    return {"window": window, "window_layers": None if all(slides) else tuple(slides)}


def _write_window(spelled: Window, config: ModelConfig) -> dict[str, Any]:
    if spelled.first is None:
        switch = {"use_sliding_window": config.window is not None} if spelled.switched else {}
        return switch | {"sliding_window": config.window}
    slides = [config.window_of(i) is not None for i in range(config.n_layers)]
    return {
        **({"use_sliding_window": any(slides)} if spelled.switched else {}),
        "sliding_window": config.window,
        # Readers from before `layer_types` slide every layer from this one on.
        "max_window_layers": slides.index(True) if any(slides) else config.n_layers,
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
    }


def llama_like(
    model_type: str,
    architecture: str,
    sizes: Mapping[str, int | None],
    *,
    without: tuple[str, ...] = (),
    rules: tuple[Rule, ...] = (),
    **table: Any,
) -> Family:
    """A family that has Llama's keys but for those of the fields in `without`, and Llama's names.

    sizes: the family's defaults. rules: besides those that all have. table: the other fields of Family.
    """
    keys = {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "ffn_dim": "intermediate_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "max_len": "max_position_embeddings",
    }
    return Family(
        model_type=model_type,
        architectures={architecture: "tokens", architecture.replace("ForCausalLM", "Model"): "tokens"},
        prefix="model.",
        rules=LLAMA_RULES + rules,
        numbers={name: (key, sizes.get(name)) for name, key in keys.items() if name not in without},
        read=_read_llama_like,
        write=_write_llama_like,
        tied_copies={"lm_head.weight": "embed.weight"},
        ignored=r"(?:model\.)?(?:layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
        **table,
    )


NO_BIAS = dict(qkv_bias=False, out_bias=False, ffn_bias=False)
LLAMA = llama_like(
    "llama",
    "LlamaForCausalLM",
    dict(vocab_size=32000, dim=4096, ffn_dim=11008, n_layers=32, n_heads=32, max_len=2048),
    parts=LLAMA_PARTS | dict(qk_norm=False),
    even_width=True,
    biases={"attention_bias": ("qkv_bias", "out_bias"), "mlp_bias": ("ffn_bias",)},
    ids={"bos_token_id": 1, "eos_token_id": 2},
    only={"sliding_window": (None,), "use_sliding_window": (False,)},
)
MISTRAL = llama_like(
    "mistral",
    "MistralForCausalLM",
    dict(vocab_size=32000, dim=4096, ffn_dim=14336, n_layers=32, n_heads=32, n_kv_heads=8, max_len=131072),
    parts=LLAMA_PARTS | NO_BIAS | dict(qk_norm=False),
    window=Window(4096),
    ids={"bos_token_id": 1, "eos_token_id": 2},
    only={"attention_bias": (False, None), "mlp_bias": (False, None)},
)
QWEN2 = llama_like(
    "qwen2",
    "Qwen2ForCausalLM",
    dict(vocab_size=151936, dim=4096, ffn_dim=22016, n_layers=32, n_heads=32, n_kv_heads=32, max_len=32768),
    parts=LLAMA_PARTS | NO_BIAS | dict(qk_norm=False, qkv_bias=True),
    window=Window(4096, switched=True, first=28),
    only={"attention_bias": (True, None), "mlp_bias": (False, None)},
)
QWEN3 = llama_like(
    "qwen3",
    "Qwen3ForCausalLM",
    dict(vocab_size=151936, dim=4096, ffn_dim=22016, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128)
    | dict(max_len=32768),
    parts=LLAMA_PARTS | dict(qk_norm=True, ffn_bias=False),
    biases={"attention_bias": ("qkv_bias", "out_bias")},
    window=Window(4096, switched=True, first=28),
    only={"mlp_bias": (False, None)},
)
SEED_OSS = llama_like(
    "seed_oss",
    "SeedOssForCausalLM",
    dict(vocab_size=155136, dim=4096, ffn_dim=27648, n_layers=64, n_heads=80, n_kv_heads=8, head_dim=128)
    | dict(max_len=524288),
    parts=LLAMA_PARTS | NO_BIAS | dict(qk_norm=False, qkv_bias=True),
    dropout=0.1,
    ids={"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
    only={"attention_bias": (True, None), "attention_out_bias": (False, None), "mlp_bias": (False, None)},
)

# --- GPT-2 --------------------------------------------------------------------------------------------------


def _read_gpt2(family: Family, keys: ConfigKeys) -> dict[str, Any]:
    values = {name: keys.count(key, default) for name, (key, default) in family.numbers.items()}
    values["ffn_dim"] = values["ffn_dim"] or 4 * values["dim"]
    values["n_kv_heads"] = values["n_heads"]
    values["head_dim"] = even_share(values, keys, "n_head")
    values["activation"] = keys.choice("activation_function", "gelu_new", ACTIVATIONS)
    values["norm_eps"] = keys.real("layer_norm_epsilon", 1e-5)
    values["tie_embeddings"] = keys.flag("tie_word_embeddings", True)
    values["dropout"] = keys.real("resid_pdrop", 0.1)
    for other in ("embd_pdrop", "attn_pdrop"):  # used in training only, and there we have one rate
        if keys.real(other, 0.1) != values["dropout"]:
            keys.note(f"{other} differs from resid_pdrop, whose {values['dropout']} is taken for all")
    return values


def _write_gpt2(family: Family, config: ModelConfig) -> dict[str, Any]:
    values = {key: getattr(config, name) for name, (key, _) in family.numbers.items()}
    return values | {
        "n_inner": None if config.ffn_dim == 4 * config.dim else config.ffn_dim,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(
            config.activation, ACTIVATION_LABELS[config.activation]
        ),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
    }


GPT2 = Family(
    model_type="gpt2",
    architectures={"GPT2LMHeadModel": "tokens", "GPT2Model": "tokens"},
    prefix="transformer.",
    rules=(
        Rule("transformer.wte", ("embed",)),
        Rule("transformer.wpe", ("position_embed",)),
        Rule("transformer.h.#.ln_1", ("layers.#.attn_norm",)),
        Rule("transformer.h.#.attn.c_attn", tuple(f"layers.#.attn.{x}_proj" for x in "qkv"), transposed=True),
        Rule("transformer.h.#.attn.c_proj", ("layers.#.attn.o_proj",), transposed=True),
        Rule("transformer.h.#.ln_2", ("layers.#.ffn_norm",)),
        Rule("transformer.h.#.mlp.c_fc", ("layers.#.ffn.up_proj",), transposed=True),
        Rule("transformer.h.#.mlp.c_proj", ("layers.#.ffn.down_proj",), transposed=True),
        Rule("transformer.ln_f", ("final_norm",)),
        Rule("lm_head", ("head",)),
    ),
    numbers={
        "vocab_size": ("vocab_size", 50257),
        "max_len": ("n_positions", 1024),
        "dim": ("n_embd", 768),
        "n_layers": ("n_layer", 12),
        "n_heads": ("n_head", 12),
        "ffn_dim": ("n_inner", None),
    },
    parts=dict(norm="layer", norm_position="before", gated=False, position="learned", qk_norm=False)
    | dict(qkv_bias=True, out_bias=True, ffn_bias=True, scale_embeddings=False),
    read=_read_gpt2,
    write=_write_gpt2,
    ids={"bos_token_id": 50256, "eos_token_id": 50256},
    only={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
    tied_copies={"lm_head.weight": "embed.weight"},
    ignored=r"(?:transformer\.)?h\.\d+\.attn\.(?:bias|masked_bias)",
)
