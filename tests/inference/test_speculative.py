"""Drafts: what the n-grams of a text suggest, and that a text written with them is the text without."""

from __future__ import annotations

import time

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scale import scaled
from transom.inference.sampling_rows import Place, SamplingRow, choose_rows
from transom.inference.speculative import NGrams, draft, n_kept
from transom.sampling_params import SamplingParams

TOKENS = st.lists(st.integers(0, 3), max_size=40)


def plain_draft(tokens: list[int], k: int, longest: int) -> list[int]:
    """The same by searching the text from its end."""
    end = len(tokens)
    for n in range(min(longest, end), 0, -1):
        for place in range(end - 1, n - 1, -1):
            if tokens[place - n : place] == tokens[end - n :]:
                text = list(tokens)
                for _ in range(k):  # a draft that reaches the end goes on with itself
                    text.append(text[place + len(text) - end])
                return text[end:]
    return []


@settings(max_examples=scaled(300))
@given(tokens=TOKENS, k=st.integers(0, 9), longest=st.integers(1, 5))
def test_drafts_are_what_followed_the_longest_known_ngram(tokens, k, longest):
    expected = plain_draft(tokens, k, longest)
    assert draft(tokens, k, longest) == expected
    grams = NGrams(tokens[: len(tokens) // 2], longest=longest)
    for token in tokens[len(tokens) // 2 :]:
        grams.draft(k)  # asking changes nothing
        grams.push(token)
    assert grams.draft(k) == expected


def test_examples():
    assert draft([1, 2, 3, 4, 1, 2], 3) == [3, 4, 1]
    assert draft([5, 6, 1, 7, 5, 6], 1) == [1], "the longest n-gram goes before the last one"
    assert draft([1, 2, 9, 1, 2, 8, 1, 2], 1) == [8], "the last time goes before earlier ones"
    assert draft([4, 4], 3) == [4, 4, 4]
    assert draft([1, 2, 3], 4) == [] and draft([], 4) == []


def test_how_many_are_right():
    assert n_kept([1, 2, 3], [1, 2, 3, 9]) == 3
    assert n_kept([1, 2, 3], [1, 5, 3, 9]) == 1
    assert n_kept([], [7]) == 0


def test_a_token_costs_the_same_however_long_the_text():
    grams = NGrams()
    spent = []
    for _ in range(4):
        started = time.process_time()
        for i in range(20_000):
            grams.push(i * i % 251)
            grams.draft(4)
        spent.append(time.process_time() - started)
    assert min(spent[2:]) < 4 * spent[0] + 0.1


class Toy:
    """A model whose logits follow from the last two tokens, so that its texts repeat themselves."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(vocab_size, vocab_size, vocab_size, generator=generator) * 4
        self.n_passes = 0

    def logits(self, tokens: list[int], wanted: int) -> torch.Tensor:
        """After each of the last `wanted` tokens: (wanted, V)."""
        self.n_passes += 1
        ends = range(len(tokens) - wanted + 1, len(tokens) + 1)
        return torch.stack([self.table[tokens[end - 2], tokens[end - 1]] for end in ends])


def write(model: Toy, params: SamplingParams, seed: int, n: int, k: int) -> list[int]:
    """n tokens with drafts of k."""
    tokens, start = [0, 1], 2
    row = SamplingRow(params, vocab_size=len(model.table), seed=seed, prompt=tokens)
    grams = NGrams(tokens)
    while len(tokens) - start < n:
        drafted = grams.draft(k)
        logits = model.logits([*tokens, *drafted], len(drafted) + 1)
        chosen = choose_rows(logits, [Place(row, tuple(drafted[:i])) for i in range(len(drafted) + 1)])
        for token in chosen[: n_kept(drafted, chosen) + 1]:
            tokens.append(token)
            row.push(token)
            grams.push(token)
    return tokens[start : start + n]


@settings(max_examples=scaled(40))
@given(
    seed=st.integers(0, 1000),
    k=st.integers(1, 6),
    params=st.builds(
        SamplingParams,
        temperature=st.sampled_from([0, 0.5, 1.2]),
        top_p=st.sampled_from([1.0, 0.9]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.4]),
        presence_penalty=st.sampled_from([0.0, -0.3]),
    ),
)
def test_a_text_written_with_drafts_is_the_text_without(seed, k, params):
    plain, speculative = Toy(seed, 6), Toy(seed, 6)
    expected = write(plain, params, seed, 60, 0)
    assert write(speculative, params, seed, 60, k) == expected
    assert speculative.n_passes <= plain.n_passes == 60


def test_repeating_text_takes_far_fewer_passes():
    model = Toy(1, 6)
    write(model, SamplingParams(temperature=0), 0, 200, 4)
    assert model.n_passes < 60
