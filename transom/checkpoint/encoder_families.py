"""The tables of encoders: BERT and RoBERTa, with a head for masked words, classes, tags, or none (MiniLM).

Source: `configuration_*.py` and `modeling_*.py` of transformers 5. Read next: sentence.
"""

from __future__ import annotations

from typing import Any

from transom.model.config import ModelConfig

from .config_keys import ConfigKeys
from .config_labels import ACTIVATION_LABELS, ACTIVATIONS, even_share
from .family import Family, named

PARTS = dict(
    kind="encoder", norm="layer", norm_position="after", gated=False, position="learned", embed_norm=True,
    qkv_bias=True, out_bias=True, ffn_bias=True, qk_norm=False, scale_embeddings=False,
)  # fmt: skip
HEAD_PARTS = {
    "tokens": dict(head_transform=True, head_bias=True, tie_embeddings=True),
    "classify": dict(pooling="first"),
    "embed": dict(pooling="mean"),  # as sentence-transformers takes a folder that does not say
}
DROPOUTS = ("attention_probs_dropout_prob", "classifier_dropout")


def _body(prefix: str) -> dict[str, str]:
    """Names of theirs and ours below the head."""
    theirs, layer = f"{prefix}.embeddings", f"{prefix}.encoder.layer.#"
    return {
        f"{theirs}.word_embeddings": "embed",
        f"{theirs}.position_embeddings": "position_embed",
        f"{theirs}.token_type_embeddings": "segment_embed",
        f"{theirs}.LayerNorm": "embed_norm",
        f"{layer}.attention.self.query": "layers.#.attn.q_proj",
        f"{layer}.attention.self.key": "layers.#.attn.k_proj",
        f"{layer}.attention.self.value": "layers.#.attn.v_proj",
        f"{layer}.attention.output.dense": "layers.#.attn.o_proj",
        f"{layer}.attention.output.LayerNorm": "layers.#.attn_norm",
        f"{layer}.intermediate.dense": "layers.#.ffn.up_proj",
        f"{layer}.output.dense": "layers.#.ffn.down_proj",
        f"{layer}.output.LayerNorm": "layers.#.ffn_norm",
    }


def _read(family: Family, keys: ConfigKeys) -> dict[str, Any]:
    values = {name: keys.count(key, default) for name, (key, default) in family.numbers.items()}
    values["n_kv_heads"] = values["n_heads"]
    values["head_dim"] = even_share(values, keys, "num_attention_heads")
    values["activation"] = keys.choice("hidden_act", "gelu", ACTIVATIONS)
    values["norm_eps"] = keys.real("layer_norm_eps", 1e-12)
    values["dropout"] = keys.real("hidden_dropout_prob", 0.1)
    for other in DROPOUTS:  # used in training only, and there we have one rate
        if keys.real(other, values["dropout"]) != values["dropout"]:
            keys.note(f"{other} differs from hidden_dropout_prob, whose {values['dropout']} is taken for all")
    return values


def _write(family: Family, config: ModelConfig) -> dict[str, Any]:
    return {key: getattr(config, name) for name, (key, _) in family.numbers.items()} | {
        "hidden_act": ACTIVATION_LABELS[config.activation],
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }


def _read_offset(family: Family, keys: ConfigKeys) -> dict[str, Any]:
    """RoBERTa counts positions from behind the id of the padding; the rows before are never asked for."""
    values = _read(family, keys)
    pad = keys.token_id("pad_token_id", family.ids["pad_token_id"], values["vocab_size"])
    if pad is None:
        raise keys.refuse("pad_token_id", "positions are counted from it, so it must be an id")
    if values["max_len"] <= pad + 1:
        raise keys.refuse(
            "max_position_embeddings", f"the first {pad + 1} are left free, so more must be there"
        )
    return values | {"position_offset": pad + 1, "max_len": values["max_len"] - pad - 1}


def _write_offset(family: Family, config: ModelConfig) -> dict[str, Any]:
    return _write(family, config) | {"max_position_embeddings": config.max_len + config.position_offset}


NUMBERS = {
    "vocab_size": ("vocab_size", 30522),
    "dim": ("hidden_size", 768),
    "ffn_dim": ("intermediate_size", 3072),
    "n_layers": ("num_hidden_layers", 12),
    "n_heads": ("num_attention_heads", 12),
    "max_len": ("max_position_embeddings", 512),
    "segments": ("type_vocab_size", 2),
}
ONLY = {
    "problem_type": (None, "single_label_classification"),
    "position_embedding_type": ("absolute", None),
    "tie_word_embeddings": (True, None),
}
BUFFERS = r"embeddings\.(?:position_ids|token_type_ids)"

BERT = Family(
    model_type="bert",
    architectures={
        "BertForMaskedLM": "tokens",
        "BertForPreTraining": "tokens",
        "BertForSequenceClassification": "classify",
        "BertForTokenClassification": "tag",
        "BertModel": "embed",
    },
    prefix="bert.",
    rules=named(_body("bert"))
    + named(
        {
            "cls.predictions.transform.dense": "head.dense",
            "cls.predictions.transform.LayerNorm": "head.norm",
            "cls.predictions.bias": "head.bias",
        },
        head="tokens",
    )
    + named({"bert.pooler.dense": "head.dense", "classifier": "head.out"}, head="classify")
    + named({"classifier": "head.out"}, head="tag"),
    numbers=NUMBERS,
    parts=PARTS | dict(position_offset=0),
    head_parts=HEAD_PARTS,
    read=_read,
    write=_write,
    ids={"pad_token_id": 0},
    only=ONLY,
    tied_copies={
        "cls.predictions.decoder.weight": "embed.weight",
        "cls.predictions.decoder.bias": "head.bias",
    },
    renames={r"\.gamma$": ".weight", r"\.beta$": ".bias"},
    ignored=rf"(?:bert\.)?(?:pooler\.dense\.(?:weight|bias)|{BUFFERS})|cls\.seq_relationship\.(?:weight|bias)",
)
ROBERTA = Family(
    model_type="roberta",
    architectures={
        "RobertaForMaskedLM": "tokens",
        "RobertaForSequenceClassification": "classify",
        "RobertaForTokenClassification": "tag",
        "RobertaModel": "embed",
    },
    prefix="roberta.",
    rules=named(_body("roberta"))
    + named(
        {
            "lm_head.dense": "head.dense",
            "lm_head.layer_norm": "head.norm",
            "lm_head.bias": "head.bias",
        },
        head="tokens",
    )
    + named({"classifier.dense": "head.dense", "classifier.out_proj": "head.out"}, head="classify")
    + named({"classifier": "head.out"}, head="tag"),
    numbers=NUMBERS | {"vocab_size": ("vocab_size", 50265)},
    parts=PARTS,
    head_parts=HEAD_PARTS,
    read=_read_offset,
    write=_write_offset,
    ids={"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    # Its head for masked words is always GELU, whatever the config says.
    only=ONLY | {"hidden_act": ("gelu",)},
    tied_copies={"lm_head.decoder.weight": "embed.weight", "lm_head.decoder.bias": "head.bias"},
    ignored=rf"(?:roberta\.)?(?:pooler\.dense\.(?:weight|bias)|{BUFFERS})",
)
