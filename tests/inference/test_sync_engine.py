"""Engines in this process: streams in turns, in threads, left behind, and over weights that change."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.errors import Refused
from transom.inference.generator import Generator
from transom.model.config import ModelConfig
from transom.model.transformer import Transformer

BYTES: Tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)


@pytest.fixture
def generator() -> Generator:
    config = ModelConfig(BYTES.vocab_size, 32, 2, 4, 2, head_dim=8, ffn_dim=48, max_len=96)
    model = Transformer(config.with_(tie_embeddings=False), 0).eval()
    with torch.no_grad():
        model.head.weight.mul_(12)
        model.embed.weight.mul_(40)
    return Generator(model.double(), BYTES)


def engine_of(generator: Generator):
    made = generator._local._made
    assert made is not None
    return made


def test_streams_read_in_turns_are_what_they_are_alone(generator: Generator):
    alone = [generator.generate(f"text {i}", max_tokens=9 + i, seed=i).text for i in range(3)]
    streams = [generator.stream(f"text {i}", max_tokens=9 + i, seed=i) for i in range(3)]
    texts = ["", "", ""]
    texts[2] += next(streams[2])
    assert generator.generate("text 1", max_tokens=10, seed=1).text == alone[1], "another call in between"
    while any(stream.completion is None for stream in streams):
        for i, stream in enumerate(streams):
            texts[i] += next(stream, "")
    assert texts == alone
    assert not engine_of(generator).busy and not generator._local._inboxes


def test_threads_may_share_a_generator(generator: Generator):
    prompts = [f"prompt {i}" for i in range(8)]
    alone = [generator.generate(prompt, max_tokens=12, seed=3).text for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda p: generator.generate(p, max_tokens=12, seed=3).text, prompts))
    assert together == alone


def test_a_stream_that_is_left_holds_nothing(generator: Generator):
    stream = generator.stream("abc", max_tokens=50)
    next(stream)
    engine = engine_of(generator)
    assert engine.load()["running"] == 1
    del stream
    gc.collect()
    engine.step()  # the abort is told
    assert not engine.busy and engine.load()["free_tokens"] == engine.load()["cache_tokens"]
    generator.stream("abc", max_tokens=50)  # never begun
    assert not engine.busy


def test_a_stream_that_is_closed_ends_at_once(generator: Generator):
    stream = generator.stream("abc", max_tokens=50)
    next(stream)
    stream.close()
    stream.close()
    engine = engine_of(generator)
    engine.step()  # the abort is told
    assert not engine.busy and list(stream) == [] and stream.completion is None


def test_an_error_of_one_leaves_the_others(generator: Generator):
    stream = generator.stream("abc", max_tokens=20, seed=1)
    whole = generator.generate("abc", max_tokens=20, seed=1).text
    first = next(stream)
    with pytest.raises(Refused, match="logit_bias names token 999"):
        generator.generate("abc", logit_bias={999: 1.0})
    assert first + "".join(stream) == whole


def test_what_was_read_is_not_read_again_until_weights_change(generator: Generator):
    text = "a rather long beginning, of which most is shared; "
    first = generator.generate(text, max_tokens=5, seed=1)
    engine = engine_of(generator)
    read = engine.load()["tokens_read"]
    again = generator.generate(text, max_tokens=5, seed=1)
    assert again == first and engine_of(generator) is engine
    assert (
        engine.load()["tokens_read"] - read < len(text) / 2 and engine.load()["prefix_hits"] > len(text) / 2
    )
    with torch.no_grad():
        generator.model.embed.weight.mul_(-1)
    changed = generator.generate(text, max_tokens=5, seed=1)
    fresh = Generator(generator.model, BYTES).generate(text, max_tokens=5, seed=1)
    assert changed == fresh and changed.tokens != first.tokens
    generator.model.float()
    assert generator.generate(text, max_tokens=5, seed=1) == Generator(generator.model, BYTES).generate(
        text, max_tokens=5, seed=1
    )
