"""Sampling against oracles: a plain numpy twin, transformers' own processors, and the chi-square test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.scale import scaled
from transom.errors import Refused
from transom.inference.sampling import (
    SamplingParams,
    choose,
    draw,
    nucleus_floor,
    probabilities,
    top_logprobs,
    uniform,
)
from transom.inference.sampling_rows import FAILED, Place, SamplingRow, choose_rows, logprobs_rows


def uniforms(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor([uniform(seed, 0, step) for step in range(n)], dtype=torch.float64)


def plain_probabilities(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """The same filters written one token at a time, for one row (V,)."""
    kept = set(range(len(logits)))
    if params.top_k is not None:
        smallest = sorted(logits, reverse=True)[min(params.top_k, len(logits)) - 1]
        kept = {i for i in kept if logits[i] >= smallest}
    weights = {i: math.exp((float(logits[i]) - float(logits.max())) / params.temperature) for i in kept}
    share = {i: w / sum(weights.values()) for i, w in weights.items()}
    if params.top_p < 1:
        kept = {i for i in kept if sum(p for p in share.values() if p > share[i]) < params.top_p}
    kept = {i for i in kept if share[i] >= params.min_p * max(share.values())}
    total = sum(share[i] for i in kept)
    return np.array([share[i] / total if i in kept else 0.0 for i in range(len(logits))])


@settings(max_examples=scaled(150))
@given(
    # Steps of 1/8 are exact in float32 and far from ties by rounding, yet equal logits do occur.
    rows=st.integers(2, 12).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(-60, 60), min_size=width, max_size=width), min_size=1, max_size=4
        )
    ),
    temperature=st.sampled_from([0.25, 0.8, 1.0, 2.0]),
    top_k=st.one_of(st.none(), st.integers(1, 14)),
    top_p=st.sampled_from([1.0, 0.9137, 0.5011, 0.1003, 0.0007]),
    min_p=st.sampled_from([0.0, 0.0507, 0.3011, 1.0]),
)
def test_filters_equal_their_plain_twin(rows, temperature, top_k, top_p, min_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.tensor(rows, dtype=torch.float32) / 8
    weights = probabilities(logits, params)
    shares = (weights / weights.sum(-1, keepdim=True)).numpy()
    for row, share in zip(logits.numpy(), shares, strict=True):
        np.testing.assert_allclose(share, plain_probabilities(row, params), atol=1e-5)
    # A row is filtered alike in company and alone.
    alone = torch.cat([probabilities(row[None], params) for row in logits])
    assert torch.equal(alone > 0, weights > 0)


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999, 0.9999999])
def test_the_nucleus_of_a_wide_vocabulary_is_that_of_a_full_sort(top_p: float):
    draw = torch.Generator().manual_seed(1)
    flat, some = torch.full((1, 5000), 1 / 5000), torch.randn(6, 5000, generator=draw)
    weights = torch.cat((flat, some.softmax(-1), some.mul(4).softmax(-1), some.mul(40).softmax(-1)))
    floors = nucleus_floor(weights, top_p)
    ranked = weights.sort(dim=-1, descending=True).values
    kept = (ranked.cumsum(-1, dtype=torch.float64) - ranked < top_p).sum(-1, keepdim=True)
    assert torch.equal(weights >= floors, weights >= ranked.gather(-1, kept - 1))
    for row, floor in zip(weights, floors, strict=True):
        assert torch.equal(nucleus_floor(row[None], top_p)[0], floor)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"temperature": 1.0, "top_k": 7}, {"top_k": 7}),
        ({"temperature": 1.3, "top_k": 20, "top_p": 0.6}, {"temperature": 1.3, "top_k": 20, "top_p": 0.6}),
        ({"temperature": 1.0, "top_p": 0.8, "min_p": 0.1}, {"top_p": 0.8, "min_p": 0.1}),
    ],
)
def test_filters_equal_transformers(ours, theirs):
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    warpers = {
        "temperature": TemperatureLogitsWarper, "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper,
    }  # fmt: skip
    logits = torch.randn(16, 100, generator=torch.Generator().manual_seed(1)) * 2
    chain = LogitsProcessorList([warpers[name](value) for name, value in theirs.items()])
    expected = chain(torch.zeros(16, 1, dtype=torch.long), logits.clone()).softmax(-1)
    weights = probabilities(logits, SamplingParams(**ours))
    torch.testing.assert_close(weights / weights.sum(-1, keepdim=True), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(5, 40)
    tokens = torch.randint(0, 40, (5, 12))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits.clone())
    for scores, (*prompt, made, drafted), wanted in zip(logits, tokens.tolist(), expected, strict=True):
        row = SamplingRow(SamplingParams(repetition_penalty=penalty), vocab_size=40, seed=0, prompt=prompt)
        row.push(made)
        torch.testing.assert_close(adjusted(row, scores, [drafted]), wanted, rtol=0, atol=0)


def test_only_some_tokens_may_come_first():
    scores, row = (
        torch.randn(40),
        SamplingRow(SamplingParams(), vocab_size=40, seed=0, first=frozenset({3, 8})),
    )
    left = adjusted(row, scores, [])
    assert left.isfinite().nonzero()[:, 0].tolist() == [3, 8] and torch.equal(left[[3, 8]], scores[[3, 8]])
    row.push(8)
    assert not row.changes([]) and torch.equal(adjusted(row, scores, []), scores)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    ("params", "limit"),  # the limit is exceeded by chance once in 1,000 seeds; this one is fixed
    [(SamplingParams(temperature=0.9), 24.32), (SamplingParams(temperature=1.5, top_k=5), 18.47)],
)
def test_draws_follow_the_distribution(params, limit):
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, 1.1, -0.4, 0.9, -6.0]])
    n = 20_000
    expected = plain_probabilities(logits[0].numpy(), params)
    tokens = choose(logits.expand(n, -1), params, uniforms(n))
    counts = np.bincount(tokens.numpy(), minlength=8)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert chi_square(counts[possible], expected[possible] * n) < limit


def test_the_uniform_numbers_are_uniform_and_do_not_repeat():
    for axis in range(3):  # along seeds, samples and steps alike
        numbers = [uniform(*np.roll([i, 3, 7], axis).tolist()) for i in range(5000)]
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        assert chi_square(counts, np.full(100, 50.0)) < 148.2  # once in 1,000 seeds by chance
        assert len(set(numbers)) == 5000
    assert uniform(-(2**63), 0, 0) != uniform(2**63 - 1, 0, 0)


def test_the_numbers_of_a_seed_never_change():
    assert [uniform(0, 0, 0), uniform(1234, 1, 99)] == [0.156742553465558, 0.4413179903232871]


@given(st.integers(1, 3000), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 0.99]))
@settings(max_examples=scaled(30))
def test_a_draw_is_that_of_the_whole_cumulative_row(width, seed, zeros):
    source = torch.Generator().manual_seed(seed)
    weights = torch.rand(4, width, generator=source) * (torch.rand(4, width, generator=source) >= zeros)
    weights[:, width // 2] = 1.0
    at = torch.rand(4, generator=source, dtype=torch.float64)
    at[0], at[1] = 0.0, 1 - 2.0**-53
    total = weights.cumsum(-1, dtype=torch.float64)
    expected = torch.searchsorted(total, at[:, None] * total[:, -1:], right=True)[:, 0]
    picked = draw(weights, at)
    assert bool((weights.gather(-1, picked[:, None]) > 0).all())
    assert torch.equal(picked, expected)


def test_draw_meets_the_ends_of_the_distribution():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.0]])
    last = math.nextafter(1.0, 0.0)
    ends = torch.tensor([0.0, last, 2 / 3 - 1e-9, 2 / 3 + 1e-9], dtype=torch.float64)
    picked = draw(weights.expand(4, -1), ends)
    assert picked.tolist() == [1, 3, 1, 3]


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-6, 1e-40, 5e-324])
def test_temperature_zero_takes_the_likeliest(temperature):
    logits = torch.randn(32, 50)
    tokens = choose(logits, SamplingParams(temperature=temperature, top_p=0.5), uniforms(32))
    assert torch.equal(tokens, logits.argmax(-1))


def test_extreme_logits_and_temperatures_stay_finite():
    logits = torch.tensor([[-math.inf, 3e38, -3e38, 0.0], [0.0, -math.inf, -math.inf, -math.inf]])
    for temperature in (1e-5, 1.0, 100.0):
        weights = probabilities(
            logits, SamplingParams(temperature=temperature, top_k=3, top_p=0.9, min_p=0.01)
        )
        assert weights.isfinite().all() and (weights.sum(-1) > 0).all()
        assert weights[1].argmax() == 0 and weights[0, 0] == 0


def test_logprobs_are_of_the_raw_distribution_and_best_first():
    logits = torch.randn(3, 10)
    chosen, values, ids = top_logprobs(logits, torch.tensor([4, 0, 9]), 4)
    whole = logits.log_softmax(-1)
    torch.testing.assert_close(chosen, whole[torch.arange(3), torch.tensor([4, 0, 9])])
    torch.testing.assert_close(values, whole.sort(descending=True).values[:, :4])
    torch.testing.assert_close(whole.gather(-1, ids), values)
    assert top_logprobs(logits, torch.tensor([0, 0, 0]), 20)[1].shape == (3, 10)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": -1}, "temperature is -1; it must be between 0 (the likeliest token) and 100"),
        ({"temperature": 1e39}, "temperature is 1e+39; it must be between 0 (the likeliest token) and 100"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"top_p": -1}, "top_p is -1; it must be between 0 (the likeliest token) and 1 (no limit)"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 0}, "top_k is 0; it must be a whole number, at least 1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"n": 0}, "n is 0; it must be a whole number from 1 to 128"),
        ({"n": 129}, "n is 129"),
        ({"n": True}, "n is True"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"logprobs": 21}, "logprobs is 21; it must be a whole number from 0 to 20"),
        ({"seed": 2**63}, "seed is"),
        ({"ignore_eos": 1}, "ignore_eos is 1"),
        ({"stop": ["x"] * 17}, "stop has 17 strings; the limit is 16"),
        ({"stop": "é" * 129}, "longer than 256 bytes"),
        ({"stop": ""}, "not empty"),
        ({"stop": [3]}, "stop holds 3"),
        ({"temprature": 1}, "did you mean 'temperature'?"),
        ({"stop": "x" * 100_000}, "longer than 256 bytes"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; it must be a number from -2 to 2"),
        ({"frequency_penalty": math.nan}, "frequency_penalty is nan"),
        ({"logit_bias": {5: 101}}, "logit_bias of token 5 is 101; it must be a number from -100 to 100"),
        ({"logit_bias": {5: math.nan}}, "logit_bias of token 5 is nan"),
        ({"logit_bias": {5: True}}, "logit_bias of token 5 is True"),
        ({"logit_bias": {-1: 1}}, "logit_bias names -1"),
        ({"logit_bias": {"a": 1}}, "logit_bias names 'a'"),
        ({"logit_bias": {str(10**30): 1}}, "logit_bias names '1000"),
        ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "names 1025 tokens; the limit is 1024"),
        ({"logit_bias": [5, 6]}, "logit_bias is"),
        ({"logit_bias": 3}, "logit_bias is 3"),
    ],
)
def test_settings_out_of_their_limits_are_refused(settings, says):
    with pytest.raises(Refused) as refused:
        SamplingParams.of(settings)
    assert says in str(refused.value) and len(str(refused.value)) < 300


def test_settings_within_their_limits_are_taken():
    params = SamplingParams.of(
        {"stop": "\n\n", "top_k": 1, "top_p": 1, "temperature": 0, "logprobs": 0, "seed": -5}
    )
    assert params.stop == ("\n\n",) and params.greedy
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


def row(params: SamplingParams, prompt: list[int], made: list[int], seed: int = 0, **more) -> SamplingRow:
    """A row that has made these tokens."""
    row = SamplingRow(params, vocab_size=12, seed=seed, prompt=prompt, **more)
    for token in made:
        row.push(token)
    return row


def adjusted(row: SamplingRow, logits: Tensor, drafted: Sequence[int]) -> Tensor:
    """What `adjust` makes of logits (V,), which stay."""
    logits = logits.clone()
    row.adjust(logits, drafted)
    return logits


def plain_logits(
    logits: np.ndarray, params: SamplingParams, prompt: list[int], made: list[int]
) -> np.ndarray:
    """Penalties and bias one token at a time, for one row (V,)."""
    changed = logits.astype(np.float32).copy()
    for token in range(len(logits)):
        if token in prompt or token in made:
            penalty = np.float32(params.repetition_penalty)
            changed[token] = changed[token] * penalty if changed[token] < 0 else changed[token] / penalty
        count = made.count(token)
        changed[token] -= count * params.frequency_penalty + (count > 0) * params.presence_penalty
        changed[token] += dict(params.logit_bias).get(token, 0)
    return changed


TOKENS = st.lists(st.integers(0, 11), max_size=8)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 0.7, 1.5]),
    top_k=st.sampled_from([None, 3]),
    top_p=st.sampled_from([1.0, 0.8013]),
    repetition_penalty=st.sampled_from([1.0, 1.25]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.75]),
    logit_bias=st.dictionaries(st.integers(0, 11), st.sampled_from([-100, 2.5]), max_size=3),
)
LOGITS = st.lists(st.integers(-40, 40).map(lambda x: x / 8), min_size=12, max_size=12)
ROWS = st.lists(st.tuples(PARAMS, LOGITS, TOKENS, TOKENS, TOKENS, st.integers(0, 99)), min_size=1, max_size=6)


@settings(max_examples=scaled(100))
@given(rows=ROWS)
def test_rows_with_different_settings_choose_as_each_alone(rows):
    logits = torch.tensor([each[1] for each in rows])
    alone = []
    for i, (params, own, prompt, made, drafted, seed) in enumerate(rows):
        history = made + drafted
        changed = torch.from_numpy(plain_logits(np.array(own), params, prompt, history))[None]
        draws = torch.tensor([uniform(seed, 0, len(history))], dtype=torch.float64)
        alone.append(choose(changed, params, draws).item())
        assert choose_rows(logits[i : i + 1], [row(params, prompt, history, seed)]) == alone[-1:]
    # As if the drafted tokens had been made, without making them.
    places = [Place(row(p, prompt, made, seed), tuple(d)) for p, _, prompt, made, d, seed in rows]
    assert choose_rows(logits, places) == alone
    assert choose_rows(logits, places) == alone, "nothing was changed by asking"


def test_the_penalties_are_as_openai_defines_them():
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over the answer and not the prompt."""
    params = SamplingParams(temperature=0, frequency_penalty=0.5, presence_penalty=0.25)
    logits = torch.zeros(12)
    changed = adjusted(row(params, [1, 1, 2], [3, 3, 4]), logits, (4, 5))
    assert changed.tolist() == [0, 0, 0, -1.25, -1.25, -0.75, 0, 0, 0, 0, 0, 0]
    assert logits.eq(0).all()


def test_bias_and_first_tokens_decide():
    logits = torch.arange(12.0)[None]
    greedy = {"temperature": 0}
    assert choose_rows(logits, [row(SamplingParams(**greedy, logit_bias={"3": 100}), [], [])]) == [3]
    assert choose_rows(logits, [row(SamplingParams(**greedy, logit_bias={11: -100}), [], [])]) == [10]
    opening = row(SamplingParams(**greedy), [], [], first=frozenset([2, 5]))
    assert choose_rows(logits, [opening]) == [5]
    opening.push(5)
    assert choose_rows(logits, [opening]) == [11]
    with pytest.raises(Refused, match="logit_bias names token 12; this model's tokens are 0 to 11"):
        row(SamplingParams(logit_bias={12: 1}), [], [])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_broken_row_fails_alone(broken):
    logits = torch.randn(4, 12)
    params = [SamplingParams(temperature=t) for t in (0, 1.0, 0.5, 0)]
    rows = [row(p, [], [], seed) for seed, p in enumerate(params)]
    sound = choose_rows(logits, rows)
    for i in range(4):
        damaged = logits.clone()
        damaged[i, 7] = broken
        assert choose_rows(damaged, rows) == [*sound[:i], FAILED, *sound[i + 1 :]]
    assert choose_rows(torch.full((1, 12), -math.inf), rows[:1]) == [FAILED]


def test_a_long_history_is_counted_right():
    params = SamplingParams(frequency_penalty=1.0, repetition_penalty=2.0)
    one = SamplingRow(params, vocab_size=500, seed=0, prompt=[7, 499])
    made = [i * i % 499 for i in range(3000)]
    for token in made:
        one.push(token)
    changed = adjusted(one, torch.ones(500), ())
    seen = {7, 499, *made}
    expected = [(0.5 if token in seen else 1.0) - made.count(token) for token in range(500)]
    assert changed.tolist() == expected


def test_log_probabilities_of_the_rows_that_want_them():
    logits, tokens = torch.randn(4, 12), [3, FAILED, 0, 11]
    found = logprobs_rows(logits, tokens, [2, 5, None, 0])
    assert found[1] is None and found[2] is None
    for i, n in ((0, 2), (3, 0)):
        chosen, values, ids = top_logprobs(logits[i : i + 1], torch.tensor([tokens[i]]), n)
        assert found[i] == (chosen.item(), list(zip(ids[0].tolist(), values[0].tolist(), strict=True)))
    assert logprobs_rows(logits, tokens, [None] * 4) == [None] * 4
