"""Samples while a model learns: by the engine, and without a trace in the training."""

from __future__ import annotations

import math

import pytest
import torch

from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.inference.generator import Generator
from transom.inference.translator import Translator
from transom.model.build import Model, build
from transom.model.config import ModelConfig
from transom.training.sample import classified, ends, fill, sample, translated

TEXT = "def name(self): return other name of this thing\n" * 50
NOT_A_NUMBER = float("nan")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("bpe", iter([TEXT]), 300)


def small(tokenizer: Tokenizer, kind: str = "decoder", **more) -> Model:
    torch.manual_seed(0)
    if kind == "encoder-decoder":
        more |= dict(n_encoder_layers=1, start_id=tokenizer.pad_id)
    config = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, head_dim=8, ffn_dim=16, max_len=64, kind=kind,
                         dropout=0.5, pad_id=tokenizer.pad_id, **more)  # fmt: skip
    return build(config).train()


def answers(tokenizer: Tokenizer):
    """Every way of asking, with a model for it."""
    return {
        "sample": lambda: sample(small(tokenizer), tokenizer=tokenizer, prompt="def "),
        "translate": lambda: translated(
            small(tokenizer, "encoder-decoder"), tokenizer=tokenizer, source="other"
        ),
        "fill": lambda: fill(small(tokenizer, "encoder"), tokenizer=tokenizer, prompt="def name"),
        "classify": lambda: classified(
            small(tokenizer, "encoder", head="classify", labels=("a", "b")), tokenizer=tokenizer, text="other"
        ),
    }


@pytest.mark.parametrize("kind", ["sample", "translate", "fill", "classify"])
def test_an_answer_is_the_same_again_whatever_the_dropout(tokenizer, kind):
    ask = answers(tokenizer)[kind]
    assert ask() == ask()


def test_a_sample_moves_nothing_of_the_training(tokenizer):
    model = small(tokenizer)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    sample(model, tokenizer=tokenizer, prompt="def ")
    assert torch.equal(torch.rand(3), wanted), "no random number was drawn that training would miss"
    assert model.training
    model.logits(model(torch.tensor([[1, 2, 3]]))).sum().backward()  # nothing of inference is left in it
    assert sample(model, tokenizer=tokenizer, prompt="def ", seed=1) != sample(
        model, tokenizer=tokenizer, prompt="def ", seed=2
    )


def test_a_sample_is_what_the_generator_writes(tokenizer):
    model = small(tokenizer)
    said = sample(model, tokenizer=tokenizer, prompt="def ", max_tokens=9, seed=3)
    generator = Generator(model.eval(), tokenizer, eos_ids=ends(tokenizer))
    drawn = generator.generate("def ", max_tokens=9, temperature=0.8, top_p=0.95, seed=3)
    assert said == drawn.text


def test_an_empty_prompt_opens_a_document_and_a_full_one_has_no_room(tokenizer):
    model = small(tokenizer)
    opened = Generator(model.eval(), tokenizer, eos_ids=ends(tokenizer))
    said = opened.generate([tokenizer.eos_id], max_tokens=5, temperature=0.8, top_p=0.95, seed=0)
    assert sample(model, tokenizer=tokenizer, prompt="", max_tokens=5) == said.text
    assert sample(model, tokenizer=tokenizer, prompt="name " * 64) == ""


def test_a_translation_is_as_likely_as_its_tokens_and_its_end_together(tokenizer):
    model = small(tokenizer, "encoder-decoder")
    with torch.no_grad():  # it ends at once
        model.head.bias = torch.nn.Parameter(torch.zeros(tokenizer.vocab_size))
        model.head.bias[tokenizer.eos_id] = 50.0
    text, probability = translated(model, tokenizer=tokenizer, source="other name")
    assert text == "" and probability == pytest.approx(1.0)
    translator = Translator(small(tokenizer, "encoder-decoder").eval(), tokenizer, eos_ids=ends(tokenizer))
    text, probability = translated(translator.model, tokenizer=tokenizer, source="other name")
    alone = translator.translate("other name", beam=1)
    assert (text, probability) == (alone.text, pytest.approx(math.exp(alone.logprob)))


def test_a_broken_model_is_silent(tokenizer):
    model, translator = small(tokenizer), small(tokenizer, "encoder-decoder")
    with torch.no_grad():
        model.embed.weight.fill_(NOT_A_NUMBER)
        translator.embed.weight.fill_(NOT_A_NUMBER)
    assert sample(model, tokenizer=tokenizer, prompt="def ") == ""
    assert translated(translator, tokenizer=tokenizer, source="other")[0] == ""


def test_it_ends_quietly_at_padding(tokenizer):
    model = small(tokenizer)
    with torch.no_grad():
        model.head.bias = torch.nn.Parameter(torch.zeros(tokenizer.vocab_size))
        model.head.bias[tokenizer.pad_id] = 50.0
    assert sample(model, tokenizer=tokenizer, prompt="def") == ""
