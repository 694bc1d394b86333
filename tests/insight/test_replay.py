"""A served answer read again: its log-probabilities are those at generation, and where not, that is said."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused
from transom.inference.generator import Generator
from transom.insight.replay import replay
from transom.model.build import build
from transom.model.config import ModelConfig

BYTES = train_tokenizer("bytes", iter(["any text"]), 258)
CONFIG = ModelConfig(BYTES.vocab_size, 32, 2, 4, 2, head_dim=8, ffn_dim=48, max_len=64)


@pytest.mark.parametrize("cell", [None, "lstm"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_replay_agrees_with_the_generation(cell: str | None, temperature: float) -> None:
    gpt = Generator(build(CONFIG.with_(cell=cell)).eval(), BYTES)
    served = gpt.generate("The cat", max_tokens=12, temperature=temperature, logprobs=1, seed=3)
    prompt = gpt.tokenizer.encode("The cat")
    told = [token.logprob for token in served.logprobs]
    again = replay(gpt, [*prompt, *served.tokens], n_prompt=len(prompt), generated=told)
    assert again.agrees and again.difference < 1e-4
    torch.testing.assert_close(
        again.logprobs[len(prompt) :], torch.tensor(told, dtype=torch.float64), rtol=0, atol=1e-4
    )
    assert again.logprobs[0].isnan() and again.to_dict()["logprobs"][0] is None
    if cell is None:
        assert again.seen.attention(1).weights.shape == (4, len(again.tokens), len(again.tokens))
    drifted = replay(gpt, again.tokens, n_prompt=len(prompt), generated=[told[0] + 0.03, *told[1:]])
    assert not drifted.agrees and "DIFFERS" in str(drifted)


def test_a_replay_reads_as_many_logits_as_it_has_rows_for() -> None:
    net = build(CONFIG.with_(max_len=300)).eval()
    tokens = torch.randint(3, 200, (150,)).tolist()
    hidden = net(torch.tensor([tokens]))
    expected = net.logits(hidden)[0].double().log_softmax(-1)[:-1].gather(-1, torch.tensor(tokens)[1:, None])
    torch.testing.assert_close(replay(net, tokens).logprobs[1:], expected[:, 0], rtol=0, atol=1e-6)


def test_encoder_decoders_ours_and_theirs_are_replayed() -> None:
    net = build(CONFIG.with_(kind="encoder-decoder", n_encoder_layers=2)).eval()
    again = replay(net, [1, 5, 6, 7], source=[4, 5, 6])
    assert again.seen.attention(1, kind="cross").weights.shape == (4, 4, 3)
    marian = hf.MarianMTModel(hf.MarianConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )).eval()  # fmt: skip
    theirs = replay(marian, [0, 5, 6, 7], source=[4, 5, 6])
    assert theirs.seen.attention(1, kind="cross").weights.shape == (4, 4, 3)
    assert theirs.difference is None and not theirs.agrees and "no log-probabilities" in str(theirs)


def test_what_does_not_fit_is_refused() -> None:
    net = build(CONFIG)
    for named, reason in (
        ({"n_prompt": 0}, "n_prompt is 0 of 4"),
        ({"n_prompt": 2, "generated": [0.0]}, "1 log-probabilities for an answer of 2"),
    ):
        with pytest.raises(Refused, match=reason):
            replay(net, [1, 2, 3, 4], **named)
    with pytest.raises(Refused, match="reads at most 64"):
        replay(net, [5] * 65)
    assert net.training  # and the model is as it was
