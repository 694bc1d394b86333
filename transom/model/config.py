"""What a model is, as plain data: one flat record from which every layer is built.

A field says what is *there* (`norm="rms"`), never whose model it is; the names of families live in
`checkpoint/`. Shapes in this room: B batch, L query length, M key or source length, D width (`dim`), H query
heads (`n_heads`), G key-value heads (`n_kv_heads`), K head width (`head_dim`), F feed-forward width
(`ffn_dim`), V vocabulary (`vocab_size`), E experts, C classes, N flattened tokens. Read next: build.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to reach past the length a model was first trained on.

    `linear` divides every position by `factor`. `llama3` divides only the slow frequencies, with a smooth
    passage between `low_freq_factor` and `high_freq_factor` wavelengths per `original_max_len` (Llama 3.1).
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192


@dataclass(frozen=True)
class Experts:
    """A feed-forward made of many, of which each token uses a few (Shazeer et al. 2017)."""

    n_experts: int
    n_active: int
    """How many of them a token goes through."""
    ffn_dim: int
    """The width F inside one expert."""
    n_shared: int = 0
    """Experts that every token goes through besides, as one of width n_shared * F."""
    score: Literal["softmax", "sigmoid"] = "sigmoid"
    normalize: bool = True
    """Divide the weights of the chosen experts by their sum."""
    scale: float = 1.0
    """Factor of the weights after that."""
    balance: Literal["bias", "loss", "none"] = "bias"
    """What keeps the load even: a bias moved after every step (Wang et al. 2024), a loss, or nothing."""
    balance_rate: float = 1e-3
    """How far the bias moves in a step, or the weight of the loss."""
    first_dense: int = 0
    """So many layers at the bottom keep a plain feed-forward."""


@dataclass(frozen=True)
class ModelConfig:
    """The shape and parts of one model; every number that its weights depend on."""

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    max_len: int
    """The longest sequence, in tokens; with learned positions also the size of their table."""

    kind: Literal["decoder", "encoder", "encoder-decoder"] = "decoder"
    """One stack that sees what came before (GPT), one that sees all (BERT), or one that reads the source and
    one that writes the target (the 2017 Transformer)."""
    cell: Literal["rnn", "lstm", "gru"] | None = None
    """What mixes positions: None is attention, else this recurrence."""
    n_encoder_layers: int | None = None
    """Layers that read the source; `n_layers` then are those that write the target."""
    experts: Experts | None = None
    activation: Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"] = "silu"
    gated: bool = True
    """Gated feed-forward: down(act(gate(x)) * up(x)); otherwise down(act(up(x)))."""
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["before", "after"] = "before"
    """Norm before each branch (pre-norm), or after the sum as in the 2017 paper (post-norm)."""
    norm_eps: float = 1e-6
    qk_norm: bool = False
    """RMS norm of queries and keys, before the rotation (Qwen3)."""
    qk_norm_over: Literal["head", "projection"] = "head"
    """Normalise each head alone, or all heads of a position together (OLMoE)."""
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    attn_scale: float | None = None
    """Factor of the dot products; None is 1 / sqrt(K)."""
    position: Literal["rotary", "learned", "sinusoidal", "relative", "none"] = "rotary"
    position_offset: int = 0
    """Rows left free at the beginning of the table of learned positions (RoBERTa: 2)."""
    relative_buckets: int = 32
    relative_max_distance: int = 128
    """Relative positions: distances share this many learned biases; past this distance all share one (T5)."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window: int | None = None
    """Sliding window: a query sees itself and the `window - 1` positions before it."""
    window_layers: tuple[bool, ...] | None = None
    """Which layers slide; None: all of them when `window` is set."""
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(D), as the 2017 paper does."""
    segments: int = 0
    """Kinds of segment that have an embedding of their own (BERT: 2)."""
    embed_norm: bool = False
    """Norm of the summed embeddings, before the first layer."""
    dropout: float = 0.0
    attn_softcap: float | None = None
    logit_softcap: float | None = None
    """Squash logits to cap * tanh(logits / cap) (Gemma 2)."""
    logit_scale: float = 1.0
    """Factor of the last hidden states before the vocabulary (T5, tied: 1 / sqrt(D))."""
    head: Literal["tokens", "classify", "tag", "embed"] = "tokens"
    """What hidden states are turned into: scores of tokens, of classes (of a text, of each token), or one
    vector of a text."""
    head_transform: bool = False
    """Tokens: a linear layer, the activation and a norm before the vocabulary (BERT)."""
    head_bias: bool = False
    """Tokens: a bias of every vocabulary entry."""
    labels: tuple[str, ...] = ()
    """The classes, by name."""
    pooling: Literal["first", "mean"] = "first"
    """What stands for a whole text: its first position, or the mean of all."""
    normalize: bool = False
    """Scale the vector of a text to length 1."""
    pad_id: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    start_id: int | None = None
    """The token that a target begins with, where source and target are two texts."""

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_len")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of channels")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window is {self.window}; it must be at least 1")
        if self.window_layers is not None and len(self.window_layers) != self.n_layers:
            raise ValueError(f"window_layers names {len(self.window_layers)} layers of {self.n_layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        self._check_kind()

    def _check_kind(self) -> None:
        """Parts that must come together, or cannot."""
        if (self.n_encoder_layers is None) != (self.kind != "encoder-decoder"):
            raise ValueError(
                "an encoder-decoder needs n_encoder_layers"
                if self.n_encoder_layers is None
                else f"n_encoder_layers is {self.n_encoder_layers}; {self.kind} has one stack only"
            )
        if self.n_encoder_layers is not None and self.n_encoder_layers < 1:
            raise ValueError(f"n_encoder_layers is {self.n_encoder_layers}; it must be at least 1")
        if self.head != "tokens" and self.kind != "encoder":
            raise ValueError(f"a head that can {self.head} stands on an encoder, not on a {self.kind}")
        least = {"classify": 1, "tag": 2}.get(self.head, 0)  # one: a cross-encoder's score
        if len(self.labels) < least:
            raise ValueError(f"{len(self.labels)} labels; this head needs at least {least}")
        if self.cell is not None and self.kind == "encoder":
            raise ValueError(f"an {self.cell} is a decoder or an encoder-decoder here, not an encoder")
        if self.cell is not None and self.experts is not None:
            raise ValueError(f"an {self.cell} has no feed-forward that experts could replace")
        if self.cell is not None and self.kind == "encoder-decoder" and self.dim % 2:
            raise ValueError(f"dim {self.dim} is odd; the source is read in two directions of half of it")
        experts = self.experts
        if experts is not None and not 1 <= experts.n_active <= experts.n_experts:
            raise ValueError(
                f"n_active is {experts.n_active}; it must be 1 to n_experts, {experts.n_experts}"
            )

    def experts_of(self, layer: int) -> Experts | None:
        """The experts of one layer, or None where the feed-forward is a plain one."""
        return self.experts if self.experts is not None and layer >= self.experts.first_dense else None

    def window_of(self, layer: int) -> int | None:
        """The sliding window of one layer, or None where it sees everything before it."""
        slides = self.window_layers is None or self.window_layers[layer]
        return self.window if slides else None

    def with_(self, **changes: Any) -> ModelConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)


# The dial: the sizes a person chooses by name. GPT shapes as their family writes them: rotary positions,
# grouped queries, RMS norm, gated feed-forward of 8/3 D. Parameters without embeddings: 1.8M, 10.6M, 85M.
_SIZE_FIELDS = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "max_len")
SIZES: dict[str, dict[str, int]] = {
    "nano": dict(zip(_SIZE_FIELDS, (192, 4, 3, 3, 64, 512, 256), strict=True)),
    "mini": dict(zip(_SIZE_FIELDS, (384, 6, 6, 6, 64, 1024, 256), strict=True)),
    "small": dict(zip(_SIZE_FIELDS, (768, 12, 12, 12, 64, 2048, 1024), strict=True)),
}
