"""Parity of encoder-decoders with `transformers`, both ways: Marian and T5, source padded and not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.checkpoint.oracle import (
    TOLERANCE,
    assert_equal_tensors,
    randomize,
    read_by_transformers,
    some_tokens,
    tensors_of,
)
from transom.checkpoint.families import family_for
from transom.checkpoint.generation import load_generation
from transom.checkpoint.huggingface import load_config, load_model, save_model
from transom.errors import Refused
from transom.model.build import build
from transom.model.config import ModelConfig

SMALL_MARIAN = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 56,
    "decoder_ffn_dim": 56,
    "max_position_embeddings": 64,
    "pad_token_id": 96,
    "decoder_start_token_id": 96,
    "scale_embedding": True,
    "activation_function": "swish",
}
SMALL_T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 56,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
CASES = {
    "marian": (MarianMTModel, MarianConfig, SMALL_MARIAN),
    "marian-unscaled": (
        MarianMTModel,
        MarianConfig,
        SMALL_MARIAN | {"scale_embedding": False, "activation_function": "relu", "decoder_start_token_id": 5},
    ),
    "t5": (T5ForConditionalGeneration, T5Config, SMALL_T5),
    "t5-gated": (
        T5ForConditionalGeneration,
        T5Config,
        SMALL_T5 | {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-3},
    ),
    "t5-unscaled": (
        T5ForConditionalGeneration,
        T5Config,
        SMALL_T5 | {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False},
    ),
}


def make(name: str):
    model, config, values = CASES[name]
    theirs = randomize(model(config(**values)))
    if name.startswith("marian"):
        with torch.no_grad():  # a buffer, which `randomize` leaves at zero
            theirs.final_logits_bias.copy_(torch.randn(1, 97, generator=torch.Generator().manual_seed(5)))
    return theirs


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two sources (2, 33), one of them shorter, their documents, and the targets (2, 21)."""
    source = some_tokens(90, least=5)
    documents = torch.zeros(2, 33, dtype=torch.int32)
    documents[1, 20:] = -1
    return source, documents, some_tokens(90, length=21, least=5)


def their_logits(model) -> torch.Tensor:
    source, documents, target = rows()
    with torch.no_grad():
        mask = (documents == 0).long()
        return model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits


def our_logits(model) -> torch.Tensor:
    source, documents, target = rows()
    model.eval()
    with torch.no_grad():
        return model.logits(model(target, memory=model.encode(source, documents=documents)))


@pytest.mark.parametrize("name", CASES)
def test_in_and_out(name, tmp_path):
    theirs = make(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    expected = their_logits(theirs)
    torch.testing.assert_close(our_logits(ours), expected, rtol=0, atol=TOLERANCE)

    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours)
    back = read_by_transformers(tmp_path / "ours", AutoModelForSeq2SeqLM)
    assert type(back) is type(theirs)
    torch.testing.assert_close(their_logits(back), expected, rtol=0, atol=TOLERANCE)
    assert_equal_tensors(tmp_path / "theirs", tmp_path / "ours")
    assert load_config(tmp_path / "theirs")[0] == load_config(tmp_path / "ours")[0] == ours.config
    assert back.generation_config.decoder_start_token_id == ours.config.start_id
    assert load_generation(tmp_path / "ours")["max_length"] == ours.config.max_len


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("marian", {"scale_embedding": False}),
        ("marian", {"activation_function": "relu"}),
        ("t5", {"layer_norm_epsilon": 0.5}),
        ("t5", {"relative_attention_max_distance": 6}),
        ("t5", {"scale_decoder_outputs": False}),
        ("t5-gated", {"feed_forward_proj": "gated-relu", "dense_act_fn": "relu"}),
    ],
)
def test_the_oracle_would_notice(name, changes, tmp_path):
    theirs = make(name)
    theirs.save_pretrained(tmp_path)
    before = their_logits(theirs)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    after = our_logits(load_model(tmp_path))
    assert (after - before).abs().max() > 100 * TOLERANCE
    expected = their_logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval())
    torch.testing.assert_close(after, expected, rtol=0, atol=TOLERANCE)


def restore(folder: Path, **more: torch.Tensor) -> None:
    """Write the weights of a folder again, with more of them."""
    old = {name: weight.clone() for name, weight in tensors_of(folder).items()}
    save_file(old | {name: weight.clone() for name, weight in more.items()}, folder / "model.safetensors")


def test_a_marian_folder_with_its_tables_and_its_copies(tmp_path):
    """Older folders store the sines, and the one matrix of embeddings under each of its names."""
    theirs = make("marian")
    theirs.save_pretrained(tmp_path)
    sines, shared = theirs.model.encoder.embed_positions.weight, theirs.model.shared.weight
    names = ["model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"]
    tied = ["lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"]
    restore(tmp_path, **dict.fromkeys(names, sines.detach()), **dict.fromkeys(tied, shared.detach()))
    torch.testing.assert_close(our_logits(load_model(tmp_path)), their_logits(theirs), rtol=0, atol=TOLERANCE)
    restore(tmp_path, **{tied[1]: shared.detach() + 1})
    with pytest.raises(
        Refused, match=r"model\.encoder\.embed_tokens\.weight differs from model\.shared\.weight"
    ):
        load_model(tmp_path)
    restore(tmp_path, **{tied[1]: shared.detach(), names[1]: sines.detach() + 1})
    with pytest.raises(Refused, match=r"decoder\.embed_positions\.weight is not what follows from"):
        load_model(tmp_path)


def test_t5_untied_as_its_version_1_1_is(tmp_path):
    """A head of its own, and no scale: what google/t5-v1_1 and flan-t5 hold."""
    theirs = make("t5-unscaled")
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    values = json.loads(path.read_text()) | {"tie_word_embeddings": False}
    values.pop("scale_decoder_outputs")
    path.write_text(json.dumps(values))
    head = torch.randn(97, 32, generator=torch.Generator().manual_seed(9))
    restore(tmp_path / "theirs", **{"lm_head.weight": head})
    ours = load_model(tmp_path / "theirs")
    assert not ours.config.tie_embeddings and ours.config.logit_scale == 1.0
    with torch.no_grad():
        theirs.lm_head.weight = torch.nn.Parameter(head)
    expected = their_logits(theirs)
    torch.testing.assert_close(our_logits(ours), expected, rtol=0, atol=TOLERANCE)
    (tmp_path / "ours").mkdir()
    save_model(tmp_path / "ours", ours)
    assert_equal_tensors(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize("family", ["marian", "t5"])
def test_what_is_built_here_is_read_there(family, tmp_path):
    common = dict(
        vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=8, ffn_dim=40, max_len=64,
        kind="encoder-decoder", n_encoder_layers=1, gated=False, activation="relu", pad_id=0, start_id=0,
    )  # fmt: skip
    parts = {
        "marian": dict(
            norm="layer", norm_position="after", norm_eps=1e-5, position="sinusoidal", scale_embeddings=True,
            qkv_bias=True, out_bias=True, ffn_bias=True, head_bias=True,
        ),
        "t5": dict(position="relative", attn_scale=1.0, logit_scale=32**-0.5),
    }  # fmt: skip
    config = ModelConfig(**common | parts[family])  # type: ignore[arg-type]
    found = family_for(config)
    assert found is not None and found.model_type == family
    model = build(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    save_model(tmp_path, model)
    theirs = read_by_transformers(tmp_path, AutoModelForSeq2SeqLM)
    torch.testing.assert_close(their_logits(theirs), our_logits(model), rtol=0, atol=TOLERANCE)


def test_greedy_translation_is_the_same_text(tmp_path):
    """What transformers generates from our folder is what our own steps give, one token after the other."""
    theirs = make("marian")
    theirs.save_pretrained(tmp_path)
    ours, (source, documents, _) = load_model(tmp_path).eval(), rows()
    wanted = theirs.generate(
        source, attention_mask=(documents == 0).long(), max_new_tokens=8, min_new_tokens=8, do_sample=False,
        num_beams=1, forced_eos_token_id=None,
    )  # fmt: skip
    target = torch.full((2, 1), 96)
    with torch.no_grad():
        memory = ours.encode(source, documents=documents)
        for _ in range(8):
            logits = ours.logits(ours(target, memory=memory))[:, -1]
            logits[:, 0] = -torch.inf  # the end, which min_new_tokens forbids there
            target = torch.cat((target, logits.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(target, wanted)


def test_everything_of_a_folder_is_used(tmp_path):
    """Not a name is passed over but for those that hold nothing: one tensor more is refused."""
    make("t5").save_pretrained(tmp_path)
    assert "shared.weight" in load_file(tmp_path / "model.safetensors")
    restore(tmp_path, **{"encoder.block.0.layer.7.extra.weight": torch.ones(2)})
    with pytest.raises(Refused, match=r"layer\.7\.extra\.weight' of shape \(2,\) has no place"):
        load_model(tmp_path)
