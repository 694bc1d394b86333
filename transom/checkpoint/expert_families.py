"""The tables of decoders with experts: Mixtral, OLMoE, Qwen3-MoE, dots1.

All stand on Llama's skeleton. On disk every expert is a matrix of its own; transformers 5 can also hold all
experts of a layer in one tensor, with gate and up joined, and such folders are read as well.
Source: `configuration_*.py` and `modeling_*.py` of transformers 5. Read next: seq2seq_families.
"""

from __future__ import annotations

from collections.abc import Iterator

from transom.model.config import ModelConfig

from .decoder_families import LLAMA_PARTS, NO_BIAS, llama_like
from .experts import ExpertKeys
from .family import Rule, Window, named


def _expert_rules(block: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Where router and experts stand in a layer: the block's name, and those of an expert's matrices."""
    theirs, ours = f"model.layers.#.{block}", "layers.#.ffn"
    return named(
        {
            f"{theirs}.gate": f"{ours}.router",
            f"{theirs}.experts.@.{gate}.weight": f"{ours}.experts.gate_proj",
            f"{theirs}.experts.@.{up}.weight": f"{ours}.experts.up_proj",
            f"{theirs}.experts.@.{down}.weight": f"{ours}.experts.down_proj",
            f"{theirs}.gate.e_score_correction_bias": f"{ours}.router.correction",
            f"{theirs}.shared_experts.gate_proj": f"{ours}.shared.gate_proj",
            f"{theirs}.shared_experts.up_proj": f"{ours}.shared.up_proj",
            f"{theirs}.shared_experts.down_proj": f"{ours}.shared.down_proj",
        }
    )


def _fused(block: str) -> tuple[Rule, ...]:
    """The same where one tensor holds all experts: gate above up (E, 2F, D), and down (E, D, F)."""
    theirs, ours = f"model.layers.#.{block}.experts", "layers.#.ffn.experts"
    return (
        Rule(f"{theirs}.gate_up_proj", (f"{ours}.gate_proj", f"{ours}.up_proj")),
        Rule(f"{theirs}.down_proj", (f"{ours}.down_proj",)),
    )


def _shared_of_no_width(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Without shared experts transformers' dots1 still asks for their matrices, of width 0."""
    experts = config.experts
    if experts is None or experts.n_shared:
        return
    for layer in range(experts.first_dense, config.n_layers):
        shared = f"model.layers.{layer}.mlp.shared_experts"
        yield f"{shared}.gate_proj.weight", (0, config.dim)
        yield f"{shared}.up_proj.weight", (0, config.dim)
        yield f"{shared}.down_proj.weight", (config.dim, 0)


MLP_EXPERTS = _expert_rules("mlp", "gate_proj", "up_proj", "down_proj")
BIASES = {"attention_bias": ("qkv_bias", "out_bias")}

MIXTRAL = llama_like(
    "mixtral",
    "MixtralForCausalLM",
    dict(vocab_size=32000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, max_len=131072),
    without=("ffn_dim",),
    rules=_expert_rules("block_sparse_moe", "w1", "w3", "w2"),
    fused=_fused("block_sparse_moe"),
    renames={r"\.mlp\.": ".block_sparse_moe."},
    parts=LLAMA_PARTS | NO_BIAS | dict(qk_norm=False),
    window=Window(None),
    experts=ExpertKeys(("num_local_experts",), ("intermediate_size", 14336), (8, 2), loss=0.001),
    ids={"bos_token_id": 1, "eos_token_id": 2},
    norm_eps=1e-5,
    rope_theta=1e6,
)
OLMOE = llama_like(
    "olmoe",
    "OlmoeForCausalLM",
    dict(vocab_size=50304, dim=2048, n_layers=16, n_heads=16, max_len=4096),
    without=("ffn_dim", "head_dim"),
    rules=MLP_EXPERTS,
    fused=_fused("mlp"),
    parts=LLAMA_PARTS | dict(qk_norm=True, qk_norm_over="projection", ffn_bias=False),
    biases=BIASES,
    experts=ExpertKeys(
        ("num_experts",), ("intermediate_size", 2048), (64, 8), loss=0.01, normalize="norm_topk_prob"
    ),
    ids={"pad_token_id": 1, "eos_token_id": 50279},
    norm_eps=1e-5,
    only={"clip_qkv": (None,), "sliding_window": (None,), "head_dim": (None,)},
)
QWEN3_MOE = llama_like(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    dict(vocab_size=151936, dim=2048, ffn_dim=6144, n_layers=24, n_heads=32, n_kv_heads=4, max_len=32768),
    rules=MLP_EXPERTS,
    fused=_fused("mlp"),
    parts=LLAMA_PARTS | dict(qk_norm=True, ffn_bias=False),
    biases=BIASES,
    window=Window(4096, switched=True),
    experts=ExpertKeys(
        ("num_experts", "num_local_experts"),
        ("moe_intermediate_size", 768),
        (128, 8),
        loss=0.001,
        normalize="norm_topk_prob",
    ),
    only={"decoder_sparse_step": (1,), "mlp_only_layers": ([], None), "mlp_bias": (False, None)},
)
DOTS1 = llama_like(
    "dots1",
    "Dots1ForCausalLM",
    dict(vocab_size=152064, dim=4608, ffn_dim=10944, n_layers=62, n_heads=32, n_kv_heads=32, max_len=2048),
    rules=MLP_EXPERTS,
    fused=_fused("mlp"),
    parts=LLAMA_PARTS | dict(qk_norm=True, ffn_bias=False),
    biases=BIASES,
    window=Window(4096, first=62),
    experts=ExpertKeys(
        ("n_routed_experts",),
        ("moe_intermediate_size", 1408),
        (None, None),
        score="sigmoid",
        normalize="norm_topk_prob",
        n_shared="n_shared_experts",
        scale="routed_scaling_factor",
        first_dense="first_k_dense_replace",
        rate="router_bias_update_rate",
    ),
    empty_tensors=_shared_of_no_width,
    only={"n_group": (1, None), "topk_group": (1, None), "use_sliding_window": (False, None)},
)
