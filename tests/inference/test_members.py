"""Every member of the family that writes: recurrent nets and experts, through the same Generator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from transom.checkpoint.huggingface import save_model
from transom.data.tokenizer import Tokenizer, train_tokenizer
from transom.inference.generator import Generator
from transom.inference.load import load
from transom.model.build import build
from transom.model.config import Experts, ModelConfig

BYTES: Tokenizer = train_tokenizer("bytes", iter(["any text"]), 258)
EXPERTS = Experts(4, 2, 24)
MEMBERS = {
    "rnn": {"cell": "rnn"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
    "experts": {"experts": EXPERTS},
}


@pytest.fixture(scope="module", params=MEMBERS)
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    config = ModelConfig(
        BYTES.vocab_size, 32, 2, 4, 2, head_dim=8, ffn_dim=48, max_len=64, tie_embeddings=False,
        **MEMBERS[request.param],
    )  # fmt: skip
    model = build(config, 0).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)  # type: ignore[operator, union-attr]
        model.embed.weight.mul_(40)
    folder: Path = tmp_path_factory.mktemp(request.param)
    save_model(folder, model, BYTES)
    return load(folder)


def test_step_by_step_is_what_one_pass_over_the_text_says(generator: Generator):
    prompt = list(b"once upon")
    done = generator.generate(prompt, max_tokens=20, temperature=1.0, seed=3, logprobs=0, ignore_eos=True)
    scores = generator.logits([*prompt, *done.tokens]).log_softmax(-1)[len(prompt) - 1 : -1]
    assert done.logprobs is not None and len(set(done.tokens)) > 3
    expected = scores.gather(1, torch.tensor(done.tokens)[:, None])[:, 0]
    torch.testing.assert_close(
        torch.tensor([one.logprob for one in done.logprobs]), expected, atol=1e-4, rtol=1e-4
    )


def test_a_batch_gives_what_each_prompt_gives_alone(generator: Generator):
    prompts = ["a", "once upon a time", "the", "b c"]
    together = generator.generate(prompts, max_tokens=12, seed=4, n=2)
    alone = [one for prompt in prompts for one in generator.generate(prompt, max_tokens=12, seed=4, n=2)]
    assert [one.tokens for one in together] == [one.tokens for one in alone]


def test_a_stream_is_the_whole(generator: Generator):
    stream = generator.stream("abc", max_tokens=16, seed=1)
    assert "".join(stream) == generator.generate("abc", max_tokens=16, seed=1).text
