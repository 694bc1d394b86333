"""Parity of decoders with `transformers`, both ways: equal logits, and equal tensors when a folder is back.

Small random models of every family are the oracle. Every weight, bias and norm is drawn anew, so that one
left out would show; `test_the_oracle_would_notice` asserts that for the settings.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
)

from tests.checkpoint.oracle import (
    TOLERANCE,
    assert_equal_tensors,
    randomize,
    read_by_transformers,
    some_tokens,
)
from tests.scale import scaled
from transom.checkpoint.families import family_for
from transom.checkpoint.family import canonical
from transom.checkpoint.generation import load_generation
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.errors import Refused
from transom.model.config import ModelConfig, RopeScaling
from transom.model.transformer import Transformer

CLASSES = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "seed_oss": (SeedOssConfig, SeedOssForCausalLM),
}
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SMALL_GPT2 = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500_000.0,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}

# name -> (family, what differs from the small config)
CASES: dict[str, tuple[str, dict]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-untied-wide": (
        "gpt2",
        {"tie_word_embeddings": False, "n_inner": 72, "activation_function": "gelu"},
    ),
    "llama-grouped": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-llama3-rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear-rope": ("llama", {"rope_parameters": LINEAR, "head_dim": 10}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu_pytorch_tanh"}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-whole": ("mistral", {"sliding_window": None, "head_dim": 12}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "seed-oss": ("seed_oss", {"head_dim": 16}),
    "qwen3-biases-tied": ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": (
        "qwen3",
        {
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def build(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model of one case; every weight, bias and norm differs from its first value."""
    family, changes = CASES[name]
    config_class, model_class = CLASSES[family]
    small = SMALL_GPT2 if family == "gpt2" else SMALL
    return randomize(model_class(config_class(**(small | changes))), seed)


def their_logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def our_logits(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().logits(model(tokens))


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
@pytest.mark.parametrize("name", CASES)
def test_in_and_out(name, shards, tmp_path):
    theirs, tokens = build(name), some_tokens(97)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB" if shards else "1GB")
    ours = load_model(tmp_path / "theirs")
    expected = their_logits(theirs, tokens)
    torch.testing.assert_close(our_logits(ours, tokens), expected, rtol=0, atol=TOLERANCE)

    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours, max_shard_bytes=20_000 if shards else 10**9)
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists() == shards
    back = read_by_transformers(tmp_path / "ours", AutoModelForCausalLM)
    torch.testing.assert_close(their_logits(back, tokens), expected, rtol=0, atol=TOLERANCE)
    assert_equal_tensors(tmp_path / "theirs", tmp_path / "ours")
    assert load_config(tmp_path / "theirs")[0] == load_config(tmp_path / "ours")[0] == ours.config


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gpt2", {"layer_norm_epsilon": 0.5}),
        ("gpt2", {"activation_function": "relu"}),
        ("llama-grouped", {"rms_norm_eps": 0.5}),
        ("llama-grouped", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("llama-llama3-rope", {"rope_parameters": LLAMA3 | {"low_freq_factor": 3.0}}),
        ("llama-llama3-rope", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 32}}),
        ("llama-linear-rope", {"rope_parameters": LINEAR | {"factor": 2.0}}),
        ("mistral-window", {"sliding_window": 6}),
        ("qwen2-window", {"layer_types": ["full_attention", "full_attention", "sliding_attention"]}),
        ("qwen3-window", {"sliding_window": 7}),
    ],
)
def test_the_oracle_would_notice(name, changes, tmp_path):
    """Each setting moves the logits by far more than the tolerance, on their side and on ours alike."""
    theirs, tokens = build(name), some_tokens(97)
    theirs.save_pretrained(tmp_path)
    before = their_logits(theirs, tokens)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    after = our_logits(load_model(tmp_path), tokens)
    assert (after - before).abs().max() > 100 * TOLERANCE
    expected = their_logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), tokens)
    torch.testing.assert_close(after, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_names_without_the_prefix_and_stored_buffers(name, tmp_path):
    """As the first GPT-2 files on the hub are: no `transformer.`, the causal mask among the weights."""
    theirs, tokens = build(name), some_tokens(97)
    theirs.base_model.save_pretrained(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    assert not any(key.startswith(("transformer.", "model.")) for key in before)
    from safetensors.torch import save_file

    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(3)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    rotary = {f"layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(3)}
    save_file(before | (masks if name == "gpt2" else rotary), tmp_path / "model.safetensors")
    ours = our_logits(load_model(tmp_path), tokens)
    torch.testing.assert_close(ours, their_logits(theirs, tokens), rtol=0, atol=TOLERANCE)


def test_an_older_spelling_of_rotary_positions(tmp_path):
    """`rope_theta` and `rope_scaling` of 4.5x, with `type` for `rope_type`."""
    theirs, tokens = build("llama-llama3-rope"), some_tokens(97)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    table = values.pop("rope_parameters")
    values["rope_theta"] = table.pop("rope_theta")
    values["rope_scaling"] = {"type": table.pop("rope_type"), **table}
    values["torch_dtype"] = values.pop("dtype")
    path.write_text(json.dumps(values))
    ours = our_logits(load_model(tmp_path), tokens)
    torch.testing.assert_close(ours, their_logits(theirs, tokens), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_bits(dtype, tmp_path):
    theirs = build("qwen2-tied").to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", load_model(tmp_path / "theirs", dtype=dtype))
    assert_equal_tensors(tmp_path / "theirs", tmp_path / "ours")
    values = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert values["dtype"] == values["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert load_model(tmp_path / "ours").embed.weight.dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "ours").dtype == dtype


def test_generation_settings_keep_every_end(tmp_path):
    theirs = build("llama-grouped")
    theirs.config.eos_token_id = [5, 7]
    theirs.generation_config = GenerationConfig(eos_token_id=[5, 7, 9], temperature=0.7, do_sample=True)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.eos_id == 5
    generation = load_generation(tmp_path / "theirs")
    assert generation["eos_token_id"] == [5, 7, 9]
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours, generation=generation)
    read = read_by_transformers(tmp_path / "ours", AutoModelForCausalLM).generation_config
    assert (read.eos_token_id, read.temperature, read.bos_token_id) == ([5, 7, 9], 0.7, 1)
    (tmp_path / "ours" / "generation_config.json").unlink()
    assert load_generation(tmp_path / "ours")["eos_token_id"] == [5]


@st.composite
def structures(draw) -> ModelConfig:
    """Any decoder that one of the families may be able to express, or not quite."""
    flag = st.booleans()
    heads, groups, head_dim = (
        draw(st.sampled_from([1, 2, 4])),
        draw(st.integers(1, 3)),
        draw(st.sampled_from([2, 8])),
    )
    n_layers = draw(st.integers(1, 3))
    gpt2 = draw(st.integers(0, 4)) == 0
    n_heads = heads if gpt2 else heads * groups
    biases = st.sampled_from([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1), (0, 1, 0)])
    slides = st.none() | st.tuples(*[flag] * n_layers)
    scaling = st.one_of(
        st.none(),
        st.builds(RopeScaling, st.just("linear"), st.sampled_from([2.0, 3.5])),
        st.builds(
            RopeScaling,
            st.just("llama3"),
            st.just(8.0),
            st.just(1.0),
            st.sampled_from([2.0, 4.0]),
            st.just(16),
        ),
    )
    common = {
        "vocab_size": draw(st.integers(5, 40)),
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": heads,
        "ffn_dim": draw(st.sampled_from([8, 20])),
        "max_len": 40,
        "activation": draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu", "relu2"])),
        "norm_eps": draw(st.sampled_from([1e-6, 1e-3])),
        "tie_embeddings": draw(flag),
        "eos_id": draw(st.none() | st.integers(0, 4)),
        "pad_id": draw(st.none() | st.integers(0, 4)),
    }
    if gpt2:
        parts = {"norm": "layer", "gated": False, "position": "learned", "qkv_bias": True, "out_bias": True}
        return ModelConfig(**common, **parts, ffn_bias=True, head_dim=head_dim, dim=n_heads * head_dim)
    return ModelConfig(
        **common,
        head_dim=head_dim,
        dim=draw(st.sampled_from([n_heads * head_dim, 12])),
        qk_norm=draw(flag),
        **dict(zip(("qkv_bias", "out_bias", "ffn_bias"), map(bool, draw(biases)), strict=True)),
        window=draw(st.none() | st.integers(1, 6)),
        window_layers=draw(slides),
        rope_theta=draw(st.sampled_from([10_000.0, 500.0])),
        rope_scaling=draw(scaling),
    )


@given(config=structures(), seed=st.integers(0, 9))
@settings(
    max_examples=scaled(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)
def test_any_structure_comes_back_and_transformers_agrees(config, seed, tmp_path):
    """Whatever family a random structure is written as, `transformers` computes what we compute."""
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    save_model(folder, model)
    family = family_for(config)
    assert load_config(folder) == (canonical(config), family)
    tokens = some_tokens(config.vocab_size, batch=1, length=17)
    ours = our_logits(load_model(folder), tokens)
    assert torch.equal(ours, our_logits(model, tokens))
    if family is not None:
        theirs = read_by_transformers(folder, AutoModelForCausalLM)
        assert type(theirs).__name__ == family.architecture
        torch.testing.assert_close(their_logits(theirs, tokens), ours, rtol=1e-5, atol=1e-4)


class Letters:
    """A tokenizer as `save_model` sees one."""

    vocab_size, eos_id, pad_id = 30, 27, 28

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_the_tokenizer_goes_along_and_its_ids_are_written(tmp_path, model):
    weights = {name: weight + 1 for name, weight in model.state_dict().items()}
    save_model(tmp_path, model, Letters(), {"top_k": 5}, "# My card\n", weights=weights)
    assert (tmp_path / "tokenizer.json").exists()
    assert (tmp_path / "README.md").read_text() == "# My card\n"
    config, _ = load_config(tmp_path)
    assert (config.eos_id, config.pad_id, config.bos_id) == (27, 28, None)
    assert load_generation(tmp_path) == {"eos_token_id": [27], "pad_token_id": 28, "top_k": 5}
    assert torch.equal(load_model(tmp_path).embed.weight, model.embed.weight + 1)


def test_a_tokenizer_that_knows_more_than_the_model(tmp_path, config):
    small = Transformer(config.with_(vocab_size=20))
    with pytest.raises(Refused, match="the tokenizer has 30 tokens, the model only 20"):
        save_model(tmp_path, small, Letters())
    assert list(tmp_path.iterdir()) == []
