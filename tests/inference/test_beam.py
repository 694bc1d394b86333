"""Beam search: transformers and the exhaustive search as oracles, and the promises of every search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.checkpoint.generation import read_generation
from transom.checkpoint.huggingface import load_model
from transom.data.tokenizer import train_tokenizer
from transom.errors import Refused
from transom.inference.beam import Finished, best_next, search_plain, top
from transom.inference.engine import Engine
from transom.inference.native_runner import runner_for
from transom.inference.request import Request
from transom.inference.runner import Runner, TorchRunner
from transom.inference.sync_engine import SyncEngine, sync_settings
from transom.inference.token_rules import TokenRules
from transom.model.build import Model, build
from transom.model.config import ModelConfig
from transom.sampling_params import SamplingParams

END, START = 0, 1
BYTES = train_tokenizer("bytes", iter(["any text"]), 258)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are too small to share among cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(
    kind: str = "encoder-decoder",
    cell: str | None = None,
    vocab_size: int = 4,
    seed: int = 0,
    end: float = 0.5,
) -> Model:
    """A random model whose next tokens are neither certain nor all alike."""
    config = ModelConfig(
        vocab_size, 16, 2, 2, 2, head_dim=8, ffn_dim=24, max_len=64, kind=kind, cell=cell,  # type: ignore[arg-type]
        n_encoder_layers=1 if kind == "encoder-decoder" else None, tie_embeddings=False, head_bias=True,
    )  # fmt: skip
    model = build(config, seed).eval()
    with torch.no_grad():
        assert isinstance(model.head.weight, torch.nn.Parameter)
        model.head.weight.normal_(
            std=0.7 if cell is None else 3, generator=torch.Generator().manual_seed(seed)
        )
        assert isinstance(model.head.bias, torch.nn.Parameter)
        model.head.bias[END] = end
        model.embed.weight.mul_(40)
    return model


def sources(*lengths: int, vocab_size: int = 4) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Random sources of these lengths, padded, and their documents."""
    tokens = torch.randint(
        vocab_size, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1)
    )
    if min(lengths) == max(lengths):
        return tokens, None
    return tokens, -(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]).int()


def search(
    model: Model,
    starts: list[list[int]],
    most: list[int],
    texts: list[list[int]] | None = None,
    *,
    ends: tuple[int, ...] = (END,),
    beam: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    rules: TokenRules | None = None,
    by: Callable[..., Runner] = TorchRunner,
) -> list[list[Finished]]:
    """The best texts after each start, and after each source, by an engine; by: whose logits it asks for."""
    greedy = SamplingParams(temperature=0, logprobs=0)
    requests = [
        Request(
            start, greedy, max_tokens=longest, seed=0, sample=0, eos_ids=ends, decoder=BYTES.decoder(),
            source=source, beam=beam, length_penalty=length_penalty, early_stopping=early_stopping,
            rules=rules,
        )
        for start, longest, source in zip(starts, most, texts or [None] * len(starts), strict=True)
    ]  # fmt: skip
    rows = max(64, beam)
    runner = by(model, n_tokens=rows * 64)
    for _ in SyncEngine(lambda: Engine(runner, BYTES, settings=sync_settings(rows))).run(requests):
        pass
    return [request.found or [_greedy(request, length_penalty)] for request in requests]


def _greedy(request: Request, length_penalty: float) -> Finished:
    logprob = sum(one.logprob for one in request.logprobs)
    return Finished(logprob / len(request.tokens) ** length_penalty, logprob, request.tokens)


def run(model: Model, lengths: tuple[int, ...], most: list[int], **options) -> list[list[Finished]]:
    """A search over sources of these lengths, or from the start token alone."""
    texts = None
    if model.config.kind == "encoder-decoder":
        tokens, _ = sources(*lengths, vocab_size=model.config.vocab_size)
        texts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    return search(model, [[START]] * len(most), most, texts, **options)


MEMBERS = [
    ("encoder-decoder", None), ("decoder", None), ("encoder-decoder", "lstm"), ("encoder-decoder", "gru"),
    ("decoder", "rnn"), ("decoder", "lstm"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "cell"), MEMBERS)
@settings(max_examples=scaled(8))
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.6, 1.0, 2.0]), st.booleans())
def test_a_beam_as_wide_as_the_space_finds_what_trying_everything_finds(kind, cell, seed, penalty, exact):
    model, (tokens, _) = tiny(kind, cell, seed=seed), sources(5)
    with torch.inference_mode():
        memory = model.encode(tokens) if kind == "encoder-decoder" else None
    plain = search_plain(
        model, [START], memory=memory, ends=[END], max_tokens=4, length_penalty=penalty
    )  # fmt: skip
    found = run(
        model, (5,), [4], beam=len(plain), length_penalty=penalty, early_stopping="never" if exact else False
    )[0]
    assert found[0].tokens == plain[0].tokens
    assert len(found) == len(plain) == len({tuple(one.tokens) for one in found})
    for ours, oracle in zip(found, plain, strict=True):
        assert ours.score == pytest.approx(oracle.score, abs=1e-4)
        assert ours.logprob == pytest.approx(ours.score * len(ours.tokens) ** penalty, abs=1e-4)


def greedy(model: Model, most: int, length: int) -> tuple[list[int], float]:
    """The likeliest token, one after the other, with the whole text read anew each time."""
    written, total, memory = [START], 0.0, None
    with torch.inference_mode():
        if model.config.kind == "encoder-decoder":
            memory = model.encode(sources(length, vocab_size=model.config.vocab_size)[0])
        while len(written) <= most and written[-1] != END:
            hidden = model(torch.tensor([written]), memory=memory)
            scores = model.logits(hidden)[0, -1].log_softmax(-1)
            total += float(scores.max())
            written.append(int(scores.argmax()))
    return written[1:], total


@pytest.mark.parametrize(("kind", "cell"), MEMBERS)
def test_one_beam_is_greedy(kind, cell):
    lengths = set()
    for seed in range(6):
        model = tiny(kind, cell, vocab_size=23, seed=seed, end=seed / 3)
        for exact in (False, True):
            found = run(model, (6,), [12], beam=1, early_stopping="never" if exact else False)[0]
            tokens, logprob = greedy(model, 12, 6)
            assert len(found) == 1 and found[0].tokens == tokens
            assert found[0].logprob == pytest.approx(logprob, abs=1e-4)
            lengths.add(len(tokens))
    assert len(lengths) > 1, "every text had one length: the ends were not tested"


@pytest.mark.parametrize(("kind", "cell"), MEMBERS)
@pytest.mark.parametrize("beam", [1, 3])
def test_a_batch_gives_what_each_sentence_gives_alone(kind, cell, beam):
    model = tiny(kind, cell, vocab_size=11, seed=3)
    lengths, most = (7, 4, 6, 1), [9, 5, 9, 3]
    together = run(model, lengths, most, beam=beam)
    tokens, _ = sources(*lengths, vocab_size=11)
    for row, (length, longest) in enumerate(zip(lengths, most, strict=True)):
        texts = [tokens[row, :length].tolist()] if kind == "encoder-decoder" else None
        alone = search(model, [[START]], [longest], texts, beam=beam)[0]
        assert [one.tokens for one in together[row]] == [one.tokens for one in alone]
        for one, other in zip(together[row], alone, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-4)


def test_prompts_of_unequal_length_go_on_as_they_do_alone():
    model = tiny("decoder", vocab_size=11, seed=5)
    starts = [[1, 2, 3, 4, 5], [6], [7, 8]]
    together = search(model, starts, [6, 6, 6], beam=3)
    for start, found in zip(starts, together, strict=True):
        alone = search(model, [start], [6], beam=3)[0]
        assert [one.tokens for one in found] == [one.tokens for one in alone]


def test_a_larger_penalty_gives_longer_texts():
    models = [tiny(vocab_size=9, seed=seed) for seed in range(12)]
    mean = {
        penalty: sum(len(run(m, (5,), [15], beam=4, length_penalty=penalty)[0][0].tokens) for m in models)
        for penalty in (0.0, 1.0, 2.0)
    }
    assert mean[0.0] < mean[1.0] <= mean[2.0]


def test_the_exact_search_goes_on_and_never_ends_with_less():
    better = 0
    for seed in range(20):
        model = tiny(vocab_size=9, seed=seed)
        usual, exact = (
            run(model, (5,), [15], beam=3, length_penalty=2.0, early_stopping=rule)[0][0]
            for rule in (False, "never")
        )
        assert exact.score >= usual.score - 1e-6
        better += exact.score > usual.score + 1e-6
    assert better, "no text was found later: the rule was not tested"


def marian(folder: Path):
    """A random Marian of transformers in a folder, with an end token that is neither certain nor rare."""
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        activation_function="swish", scale_embedding=True, pad_token_id=59, eos_token_id=0,
        decoder_start_token_id=59,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MarianMTModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and "positions" not in name:
                weight.mul_(5)
        model.final_logits_bias[0, 0] = 2.0
        model.final_logits_bias[0, 59] = 3.0  # padding is likely, were it not forbidden
    model.generation_config.bad_words_ids, model.generation_config.forced_eos_token_id = [[59]], 0
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory):
    """transformers' Marian and ours with the folder's rules, of one folder as they are published."""
    folder = tmp_path_factory.mktemp("marian")
    theirs = marian(folder)
    return theirs, load_model(folder).eval(), TokenRules(read_generation(folder, 60, searches=True))


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("by", [TorchRunner, runner_for], ids=["PyTorch", "the best here"])
def test_beams_are_those_of_transformers(both, by, penalty, early_stopping):
    theirs, ours, rules = both
    lengths = (7, 5, 6, 2, 7)
    tokens, documents = sources(*lengths, vocab_size=58)
    assert documents is not None
    expected = theirs.generate(
        input_ids=tokens.masked_fill(documents < 0, 59), attention_mask=(documents == 0).long(), num_beams=4,
        length_penalty=penalty, early_stopping=early_stopping, max_new_tokens=14, do_sample=False,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    texts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    found = search(
        ours,
        [[59]] * 5,
        [14] * 5,
        texts,
        ends=(0,),
        length_penalty=penalty,
        early_stopping=early_stopping,
        rules=rules,
        by=by,
    )
    for row, score, best in zip(expected.sequences.tolist(), expected.sequences_scores, found, strict=True):
        text = [token for token in row[1:] if token != 59]
        assert best[0].tokens == text
        assert best[0].score == pytest.approx(float(score), abs=1e-4)


@given(st.integers(1, 9), st.integers(0, 100), st.sampled_from([50, 4096, 9000, 20_011]))
@settings(max_examples=scaled(25))
def test_the_largest_of_each_row_are_those_of_a_selection(n, seed, width):
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(seed))
    x[0, seed::97] = -torch.inf
    values, places = top(x, n)
    assert torch.equal(values, x.topk(n).values)
    assert torch.equal(x.gather(1, places), values)


def test_continuations_are_ranked_over_all_beams_of_a_sentence():
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([[-1.0, -2.0, -torch.inf], [0.0, -0.5, -0.1]])
    whole = (logits.log_softmax(-1) + scores.view(-1, 1)).view(2, -1).topk(4)
    values, choices = best_next(logits.clone(), scores, 4)
    torch.testing.assert_close(torch.tensor(values), whole.values)
    assert choices == whole.indices.tolist()


def test_scores_that_are_not_numbers_are_refused():
    model = tiny()
    with torch.no_grad():
        model.embed.weight[START] = torch.nan
    with pytest.raises(Refused, match="damaged weights"):
        run(model, (5,), [4], beam=2)
