"""A served answer read again by the plain model has the probabilities that it had when it was written."""

from __future__ import annotations

import pytest
import torch

from transom.data.tokenizer import train_tokenizer
from transom.inference.generator import Generator
from transom.insight.token_probabilities import token_probabilities
from transom.model.build import build
from transom.model.config import ModelConfig

BYTES = train_tokenizer("bytes", iter(["any text"]), 258)
CONFIG = ModelConfig(BYTES.vocab_size, 32, 2, 4, 2, head_dim=8, ffn_dim=48, max_len=64)


@pytest.mark.parametrize("cell", [None, "lstm"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_read_again_with_the_probabilities_of_its_generation(
    cell: str | None, temperature: float
) -> None:
    gpt = Generator(build(CONFIG.with_(cell=cell)).eval(), BYTES)
    served = gpt.generate("The cat", max_tokens=12, temperature=temperature, logprobs=1, seed=3)
    prompt = gpt.tokenizer.encode("The cat")
    told = torch.tensor([token.logprob for token in served.logprobs], dtype=torch.float64)
    again = token_probabilities(gpt.model, [*prompt, *served.tokens]).logprob[len(prompt) - 1 :]
    torch.testing.assert_close(again, told, rtol=0, atol=1e-4)


def test_a_text_longer_than_the_scores_that_are_held_at_once_is_read_whole() -> None:
    net = build(CONFIG.with_(max_len=300)).eval()
    tokens = torch.randint(3, 200, (150,)).tolist()
    hidden = net(torch.tensor([tokens]))
    expected = net.logits(hidden)[0].double().log_softmax(-1)[:-1].gather(-1, torch.tensor(tokens)[1:, None])
    torch.testing.assert_close(token_probabilities(net, tokens).logprob, expected[:, 0], rtol=0, atol=1e-6)
