"""Maps from the fused kernels equal the maps that `transformers` writes out in eager mode."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import transom

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 60}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODELS = {
    "gpt2": (
        hf.GPT2LMHeadModel,
        hf.GPT2Config(n_embd=32, n_layer=3, n_head=4, vocab_size=60, n_positions=64),
    ),
    "llama with grouped queries": (hf.LlamaForCausalLM, hf.LlamaConfig(**LLAMA)),
    "mistral with a window": (hf.MistralForCausalLM, hf.MistralConfig(**LLAMA, sliding_window=5)),
    "bert": (hf.BertModel, hf.BertConfig(**SMALL, intermediate_size=48, max_position_embeddings=64)),
}


def loaded(of: type, config: hf.PretrainedConfig, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The same weights with the fused kernels and in eager mode, sharp enough to have a pattern."""
    torch.manual_seed(seed)
    fused = of._from_config(copy.deepcopy(config), attn_implementation="sdpa").eval()
    for name, weight in fused.named_parameters():
        if weight.dim() == 2 and "embed" not in name and "wte" not in name:
            weight.data.mul_(8)
    plain = of._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    plain.load_state_dict(fused.state_dict())
    return fused, plain


def ids(batch: int = 2, length: int = 17) -> Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_maps_equal_eager_maps(name: str, padded: bool) -> None:
    fused, plain = loaded(*MODELS[name])
    tokens, mask = ids(), torch.ones(2, 17, dtype=torch.int64)
    if padded:
        mask[1, 12:] = 0
    expected = plain(tokens, attention_mask=mask, output_attentions=True).attentions
    bare = fused(tokens, attention_mask=mask)[0]
    with transom.look(fused) as seen:
        assert torch.equal(fused(tokens, attention_mask=mask)[0], bare)  # what is looked at is what runs
    assert len(seen.calls) == len(expected) == 3
    for layer, weights in enumerate(expected):
        for batch, real in enumerate(mask.sum(1)):
            found = seen.attention(layer, batch=batch)
            assert found.error < 1e-5
            torch.testing.assert_close(found.weights[:, :real], weights[batch, :, :real], rtol=0, atol=1e-5)
            row = seen.attention(layer, head=1, row=5, batch=batch)
            torch.testing.assert_close(row.weights, weights[batch, 1, 5], rtol=0, atol=1e-5)


@torch.no_grad()
def test_all_three_attentions_of_marian_equal_eager_maps() -> None:
    config = hf.MarianConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    fused, plain = loaded(hf.MarianMTModel, config)
    source, target = ids(length=13), ids(length=9)
    mask = torch.ones_like(source)
    mask[1, 8:] = 0
    given = {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}
    expected = plain(**given, output_attentions=True)
    with transom.look(fused) as seen:
        fused(**given)
    for kind, maps in {
        "encoder": expected.encoder_attentions,
        "self": expected.decoder_attentions,
        "cross": expected.cross_attentions,
    }.items():
        for layer, weights in enumerate(maps):
            for batch in range(2):
                rows = int(mask[batch].sum()) if kind == "encoder" else None
                found = seen.attention(layer, kind=kind, batch=batch).weights
                torch.testing.assert_close(found[:, :rows], weights[batch, :, :rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama with grouped queries", "mistral with a window"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_step_of_decoding_equals_its_eager_row(name: str, padded: bool) -> None:
    fused, plain = loaded(*MODELS[name])
    tokens, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.int64)
    if padded:
        mask[1, :3] = 0  # on the left, as for generation
    whole = plain(tokens, attention_mask=mask, output_attentions=True).attentions
    cache = fused(tokens[:, :-1], attention_mask=mask[:, :-1], use_cache=True).past_key_values
    named = inspect.signature(fused.forward).parameters
    before = {
        "cache" if "cache" in named else "past_key_values": cache
    }  # transformers before and from 5.24 on
    with transom.look(fused) as seen:
        fused(tokens[:, -1:], attention_mask=mask, **before)
    for layer, weights in enumerate(whole):
        for batch in range(2):
            found = seen.attention(layer, batch=batch).weights
            assert found.shape[:2] == (4, 1)
            expected = weights[batch, :, -1, -found.shape[-1] :]
            torch.testing.assert_close(found[:, 0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_model_that_writes_its_attention_out_shows_the_map_it_held() -> None:
    config = hf.Gemma2Config(**LLAMA, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0)
    net = hf.Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()
    with transom.look(net) as seen:
        expected = net(ids(), output_attentions=True).attentions
    for layer, weights in enumerate(expected):
        assert seen.attention(layer, batch=1).error < 1e-5
        torch.testing.assert_close(seen.attention(layer, batch=1).weights, weights[1], rtol=0, atol=0)
