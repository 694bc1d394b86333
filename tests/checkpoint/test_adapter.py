"""Adapter folders both ways: PEFT reads ours, we read PEFT's, with the same logits; the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.checkpoint.oracle import TOLERANCE, randomize, some_tokens
from tests.checkpoint.test_parity import CLASSES, SMALL, SMALL_GPT2
from transom.checkpoint.adapter import save_adapter
from transom.checkpoint.huggingface import load_config, load_model
from transom.errors import Refused
from transom.model.build import Model
from transom.model.lora import Lora, adapted_layers, add_lora, linear_layers, named_by, only_adapters_learn

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
TINY: dict[str, Any] = {**SMALL, "num_hidden_layers": 2}
TINY_GPT2: dict[str, Any] = {**SMALL_GPT2, "n_layer": 2}
BERT = dict(vocab_size=97, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64)  # fmt: skip


def a_base(name: str, folder: Path, **changes: Any) -> PreTrainedModel:
    config, model = CLASSES[name]
    sizes = TINY_GPT2 if name == "gpt2" else TINY
    made = randomize(model(config(**{**sizes, **changes})))
    made.save_pretrained(folder)
    return made


def learn(model: Any) -> None:
    """Give every adapter of a model, ours or theirs, numbers as if it had learned."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
            elif "lora_magnitude" in name:
                weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator))


def ours(folder: Path, tokens: torch.Tensor, **how: Any) -> torch.Tensor:
    model = load_model(folder, merge=False, **how).eval()
    with torch.no_grad():
        return model.logits(model(tokens))


def theirs(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens).logits


def save(folder: Path, base: Path, targets: str, lora: Lora) -> Model:
    """An adapter to `base` as a run leaves it."""
    model = load_model(base).eval()
    names = [n for target in targets.split(",") for n in named_by(target, linear_layers(model))]
    add_lora(model, dict.fromkeys(names, lora), seed=5)
    only_adapters_learn(model)
    learn(model)
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    folder.mkdir()
    save_adapter(folder, model, base=str(base), family=load_config(base)[1], weights=learned, card="")
    return model


KINDS = {
    "plain": Lora(4, 8.0),
    "rslora": Lora(4, 8.0, rslora=True),
    "dora": Lora(4, 6.0, dora=True),
}
WRITTEN = {
    "llama-all": ("llama", "all", {}),
    "llama-qv": ("llama", "q_proj,v_proj", {}),
    "qwen2-bias": ("qwen2", "all", {}),
    "gpt2-all": ("gpt2", "all", {}),
    "gpt2-attention": ("gpt2", "q_proj,k_proj,v_proj,o_proj", {}),
    "gpt2-mixed-layers": ("gpt2", "0.attn.q_proj,0.attn.k_proj,0.attn.v_proj,down_proj", {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", WRITTEN)
def test_peft_reads_our_adapter_and_gives_the_same_logits(case: str, kind: str, tmp_path: Path) -> None:
    family, targets, changes = WRITTEN[case]
    a_base(family, tmp_path / "base", **changes)
    model = save(tmp_path / "adapter", tmp_path / "base", targets, KINDS[kind])
    tokens = some_tokens(97)
    with torch.no_grad():
        wanted = model.logits(model(tokens))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft = PeftModel.from_pretrained(base, tmp_path / "adapter")
    n_theirs = sum("lora_A" in name for name, _ in peft.named_parameters())
    assert n_theirs == sum(
        name.endswith("lora_A.weight") for name in load_file(tmp_path / "adapter/adapter_model.safetensors")
    )
    torch.testing.assert_close(theirs(peft, tokens), wanted, rtol=0, atol=TOLERANCE)
    # And back here, unmerged and merged.
    again = ours(tmp_path / "adapter", tokens)
    torch.testing.assert_close(again, wanted, rtol=0, atol=TOLERANCE)
    merged = load_model(tmp_path / "adapter").eval()
    assert not adapted_layers(merged)
    torch.testing.assert_close(merged.logits(merged(tokens)), wanted, rtol=0, atol=TOLERANCE)


def test_some_of_a_fused_tensor_is_adapted_and_read_back_as_it_was(tmp_path: Path) -> None:
    a_base("gpt2", tmp_path / "base")
    model = save(tmp_path / "adapter", tmp_path / "base", "q_proj,v_proj", Lora(3, 6.0, rslora=True))
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    tokens = some_tokens(97)
    with torch.no_grad():
        wanted = model.logits(model(tokens))
    torch.testing.assert_close(theirs(peft, tokens), wanted, rtol=0, atol=TOLERANCE)
    again = load_model(tmp_path / "adapter", merge=False)
    layers, before = adapted_layers(again), adapted_layers(model)
    assert {name: layer.lora.rank for name, layer in layers.items() if layer.lora_B.any()} == dict.fromkeys(
        before, 3
    )
    with pytest.raises(Refused, match="q_proj,k_proj,v_proj together"):
        save(tmp_path / "dora", tmp_path / "base", "q_proj", Lora(2, dora=True))


READ = {
    "llama": ("llama", dict(target_modules=["q_proj", "down_proj"], r=3, lora_alpha=5)),
    "rslora": ("llama", dict(target_modules="all-linear", r=4, use_rslora=True)),
    "dora": ("qwen2", dict(target_modules=["v_proj", "o_proj"], r=2, use_dora=True)),
    "patterns": (
        "llama",
        dict(target_modules=["q_proj", "v_proj", "up_proj"], r=4, lora_alpha=8,
             rank_pattern={"q_proj": 2, "^model.layers.1.mlp.up_proj": 6},
             alpha_pattern={"layers.0.self_attn.v_proj": 3}),
    ),
    "gpt2-fused": ("gpt2", dict(target_modules=["c_attn"], r=3, fan_in_fan_out=True)),
    "gpt2-dora": (
        "gpt2",
        dict(target_modules=["c_attn", "mlp.c_proj"], r=3, fan_in_fan_out=True, use_dora=True),
    ),
    "head": ("llama", dict(target_modules=["k_proj"], modules_to_save=["lm_head"])),
    "embeddings": ("llama", dict(target_modules=["k_proj"], modules_to_save=["embed_tokens", "norm"])),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_we_read_peft_adapters_with_the_same_logits(case: str, tmp_path: Path) -> None:
    family, asked = READ[case]
    base = a_base(family, tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **asked))
    learn(peft)
    with torch.no_grad():
        for name, weight in peft.named_parameters():
            if "modules_to_save" in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    peft.save_pretrained(tmp_path / "adapter")
    tokens = some_tokens(97)
    wanted = theirs(peft, tokens)
    torch.testing.assert_close(ours(tmp_path / "adapter", tokens), wanted, rtol=0, atol=TOLERANCE)
    merged = load_model(tmp_path / "adapter").eval()
    torch.testing.assert_close(merged.logits(merged(tokens)), wanted, rtol=0, atol=TOLERANCE)


def test_an_adapter_with_a_new_head_of_classes_goes_both_ways(tmp_path: Path) -> None:
    base = randomize(BertForMaskedLM(BertConfig(**BERT)))
    base.save_pretrained(tmp_path / "base")
    # Theirs: names of classes are not kept.
    sorts = BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    peft = get_peft_model(sorts, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"],
                                            modules_to_save=["classifier", "pooler"], r=2))  # fmt: skip
    learn(peft)
    peft.save_pretrained(tmp_path / "theirs")
    tokens = some_tokens(97, length=9)
    read = load_model(tmp_path / "theirs", merge=False).eval()
    assert read.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    with torch.no_grad():
        torch.testing.assert_close(
            read.label_logits(read(tokens)), theirs(peft, tokens), rtol=0, atol=TOLERANCE
        )
    # Ours.
    head = {"head": "classify", "labels": ("ham", "spam"), "pooling": "first"}
    model = load_model(tmp_path / "base", head=head, seed=1).eval()
    add_lora(model, dict.fromkeys(linear_layers(model), Lora(2)))
    only_adapters_learn(model, besides="head")
    learn(model)
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    (tmp_path / "ours").mkdir()
    family = load_config(tmp_path / "base")[1]
    save_adapter(
        tmp_path / "ours", model, base=str(tmp_path / "base"), family=family, weights=learned, card=""
    )
    with torch.no_grad():
        wanted = model.label_logits(model(tokens))
        back = load_model(tmp_path / "ours", merge=False).eval()
        assert back.config.labels == ("ham", "spam")
        assert torch.equal(back.label_logits(back(tokens)), wanted)
    bert = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
    peft = PeftModel.from_pretrained(bert, tmp_path / "ours")
    torch.testing.assert_close(theirs(peft, tokens), wanted, rtol=0, atol=TOLERANCE)


def test_an_encoder_decoder_is_adapted_too(tmp_path: Path) -> None:
    config = T5Config(vocab_size=97, d_model=32, d_ff=56, d_kv=8, num_layers=2, num_heads=4,
                      decoder_start_token_id=0)  # fmt: skip
    base = randomize(T5ForConditionalGeneration(config))
    base.save_pretrained(tmp_path / "base")
    model = save(tmp_path / "adapter", tmp_path / "base", "all", Lora(2, 4.0))
    peft = PeftModel.from_pretrained(
        T5ForConditionalGeneration.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    )
    source, target = some_tokens(97, length=9), some_tokens(97, length=5)
    with torch.no_grad():
        wanted = model.logits(model(target, memory=model.encode(source)))
        found = peft.eval()(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


# --- refused by name


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    a_base("llama", tmp_path / "base")
    save(tmp_path / "adapter", tmp_path / "base", "q_proj", Lora(2))
    return tmp_path / "adapter"


REFUSED = {
    "peft_type": ("LOHA", "peft_type"),
    "bias": ("all", "bias"),
    "lora_bias": (True, "lora_bias"),
    "target_parameters": (["mlp.experts.down_proj"], "target_parameters"),
    "layer_replication": ([[0, 1]], "layer_replication"),
    "init_lora_weights": ("pissa_niter_4", "init_lora_weights"),
    "trainable_token_indices": ([1], "trainable_token_indices"),
    "rank_pattern": ({"(a+)+$": 2}, "rank_pattern"),
    "r": (3, "ask for"),
    "use_dora": (True, "ask for"),
    "base_model_name_or_path": ("", "belongs there"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_computed_is_refused_by_name(adapter: Path, key: str) -> None:
    value, said = REFUSED[key]
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(Refused, match=said) as refused:
        load_model(adapter)
    assert "adapter" in str(refused.value)


def test_a_base_that_is_gone_or_another_one_is_said_in_a_line(adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match="its weights are not those that the adapter .* was trained on"):
        load_model(adapter)
    base.rename(tmp_path / "moved")
    with pytest.raises(Refused, match="base model of this adapter is not here .* base_model_name_or_path"):
        load_model(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(adapter)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Refused, match="an adapter itself"):
        load_model(adapter)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "base_model.model.model.layers.0.self_attn.z_proj.lora_A.weight",
            "no such linear layer; did you mean",
        ),
        ("base_model.model.model.embed_tokens.lora_embedding_A", "those of linear layers"),
        ("base_model.model.model.extra.weight", "no place in the base"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", "does not begin with"),
    ],
)
def test_tensors_without_a_place_are_refused_by_name(adapter: Path, name: str, said: str) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), name: torch.zeros(2, 32)}, path)
    with pytest.raises(Refused, match=said):
        load_model(adapter)


def test_an_adapter_loads_for_another_head(adapter: Path) -> None:
    """What learned text can be taught classes: its own head, the same body."""
    plain = load_model(adapter)
    assert torch.equal(load_model(adapter, seed=4).embed.weight, plain.embed.weight)
