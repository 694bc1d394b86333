"""A prompt that ends in a space: the first token carries it, and it is written once."""

from __future__ import annotations

import pytest
import torch

from tests.data.test_chat_template import sentencepiece_like
from tests.inference.scripted import scripted
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer
from transom.training.sample import sample

TEXT = "def name(self): return other name of this thing\n" * 50


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer("bpe", iter([TEXT]), 300)


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer) -> Generator:
    config = ModelConfig(tokenizer.vocab_size, 16, 1, 2, 2, head_dim=8, ffn_dim=16, max_len=64)
    return Generator(Transformer(config).eval(), tokenizer)


def test_a_lone_last_space_is_taken_back(tokenizer: Tokenizer) -> None:
    ids, first = tokenizer.encode_prompt("def ")
    assert ids == tokenizer.encode("def")
    assert first == {i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i).startswith(b" ")}
    assert tokenizer.encode(" name")[0] in first and tokenizer.eos_id not in first


@pytest.mark.parametrize("text", ["def", "def name", "", "def\n", "x\n    "])
def test_any_other_end_stays_as_it_is(tokenizer: Tokenizer, text: str) -> None:
    ids, first = tokenizer.encode_prompt(text)
    assert tokenizer.decode(ids) == text if first is None else text.endswith(" ")


def test_the_space_is_not_written_twice(generator: Generator) -> None:
    for seed in range(8):
        done = generator.generate("def ", max_tokens=6, seed=seed)
        whole = generator.tokenizer.decode(done.tokens)
        assert whole == " " + done.text
        assert "".join(generator.stream("def ", max_tokens=6, seed=seed)) == done.text


def test_a_batch_gives_each_prompt_its_own_first_token(generator: Generator) -> None:
    prompts = ["def ", "def", "return "]
    together = generator.generate(prompts, max_tokens=5, seed=3)
    alone = [generator.generate(prompt, max_tokens=5, seed=3) for prompt in prompts]
    assert [done.tokens for done in together] == [done.tokens for done in alone]


def test_token_ids_are_taken_as_given(generator: Generator) -> None:
    ids = generator.tokenizer.encode("def ")
    assert generator.generate(ids, max_tokens=1, temperature=0).n_prompt_tokens == len(ids)
    assert torch.equal(generator.logits("def "), generator.logits(ids))


def test_the_samples_of_training_do_the_same(generator: Generator) -> None:
    tokenizer = generator.tokenizer
    spelled = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    texts = [
        sample(generator.model, tokenizer=tokenizer, prompt="def ", max_tokens=1, seed=seed, temperature=5.0)
        for seed in range(8)
    ]
    assert len(set(texts)) > 1
    assert all(b" " + text.encode() in spelled for text in texts)


def test_sentencepiece_takes_a_lone_space_back_too(tmp_path):
    tokenizer = sentencepiece_like(legacy=False)
    ids, first = tokenizer.encode_prompt("Once upon a ")
    assert ids == tokenizer.encode("Once upon a") and first is not None
    number = tokenizer.backend.get_vocab()
    assert {number["▁return"], number["▁"]} <= first and number["n"] not in first
    script = [number["▁return"], number["n"], number["▁return"]]
    model = load(scripted(tmp_path, tokenizer, len(ids), script))
    assert model.generate("Once upon a ", temperature=0).text == "returnn return"
    assert model.generate("Once upon a", temperature=0).text == " returnn return"
