"""What the kernels find in rows of logits: against float64, and against the plain twin."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading

import pytest
import torch
from torch import Tensor

from tests.native.kernels import levels, library
from transom.inference import beam, sampling, sampling_rows
from transom.inference.sampling_rows import SamplingRow
from transom.inference.token_rules import Ruling
from transom.native.abi import Draw
from transom.native.sampling import choose, likeliest
from transom.sampling_params import SamplingParams

WIDTHS = [1, 2, 15, 16, 17, 33, 511, 512, 513, 5_000, 49_152]
SETTINGS = [
    {},
    {"temperature": 0.3},
    {"top_k": 1},
    {"top_k": 40, "temperature": 1.7},
    {"top_p": 0.9},
    {"top_p": 0.999, "temperature": 2.0},
    {"top_p": 0.2},
    {"min_p": 0.05},
    {"top_k": 20, "top_p": 0.8, "min_p": 0.02, "temperature": 0.8},
    {"temperature": 0.0},
]


def rows_of(width: int, spread: float, n: int = 5) -> Tensor:
    """Logits (n, width) that lie in a wider matrix."""
    return torch.randn(n, width + 3, generator=torch.Generator().manual_seed(width)).mul(spread)[:, :width]


def draws_of(settings: dict[str, float], uniforms: list[float]) -> list[Draw]:
    how = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "top_k": 0, **settings}
    return [
        Draw(uniform, how["top_p"], how["temperature"], how["min_p"], int(how["top_k"]))
        for uniform in uniforms
    ]


def interval(row: Tensor, settings: dict[str, float], token: int) -> tuple[float, float]:
    """Between which uniforms a token is drawn: by float64, with a sort of all."""
    x = (row.double() - row.max()) / settings.get("temperature", 1.0)
    kept = row >= row.sort(descending=True).values[min(int(settings.get("top_k", len(row))), len(row)) - 1]
    weights = torch.where(kept, x.exp(), 0.0)
    shares = weights / weights.sum()
    ranked = shares.sort(descending=True).values
    n_kept = int((ranked.cumsum(0) - ranked < settings.get("top_p", math.inf)).sum())
    floor = max(float(ranked[n_kept - 1]), settings.get("min_p", 0.0) * float(ranked[0]))
    shares = torch.where(shares >= floor, shares, 0.0)
    ends = shares.cumsum(0) / shares.sum()
    assert shares[token] > 0, "a token that the filters take away"
    return float(ends[token] - shares[token] / shares.sum()), float(ends[token])


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("settings", SETTINGS[:-1], ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_token_is_drawn_where_its_share_lies(level: str, settings: dict[str, float], width: int):
    uniforms = [0.0, 0.25, 0.5, 0.9, 1 - 2**-53]
    for spread in (0.01, 1.0, 6.0):
        logits = rows_of(width, spread)
        tokens = choose(library(level), logits, draws_of(settings, uniforms))
        for row, token, uniform in zip(logits, tokens, uniforms, strict=True):
            begin, end = interval(row, settings, token)
            # float32 weights: a share is right to six digits, an end of 5,000 of them a little less.
            assert begin - 2e-6 <= uniform <= end + 2e-6


@pytest.mark.parametrize("level", levels())
def test_the_largest_is_the_first_of_equal_ones(level: str):
    for width in WIDTHS:
        logits = torch.zeros(3, width)
        logits[1, width // 2 :] = 1.0
        logits[2, -1] = 1.0
        assert choose(library(level), logits, draws_of({"temperature": 0.0}, [0, 0, 0])) == [
            0, width // 2, width - 1,
        ]  # fmt: skip


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rows_that_are_no_numbers_are_told(level: str, settings: dict[str, float]):
    logits = torch.zeros(6, 700)
    logits[0, 699] = math.nan
    logits[1, 3] = math.inf
    logits[2] = -math.inf
    logits[3], logits[3, 5] = -math.inf, -3e38
    logits[4, :650], logits[4, 650:] = -math.inf, -1.0
    logits[5, 1] = -math.nan
    found = choose(library(level), logits, draws_of(settings, [0.5] * 6))
    assert found[:4] == [-1, -1, -1, 5]
    assert found[4] >= 650
    assert found[5] == -1


@pytest.mark.parametrize("level", levels())
def test_tokens_tied_with_the_last_one_that_is_kept_are_kept(level: str):
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0] * 8])
    uniforms = [i / 400 for i in range(400)]
    tokens = choose(library(level), logits.expand(400, -1), draws_of({"top_k": 9}, uniforms))
    assert {token % 5 for token in tokens} == {1, 2, 3}
    assert len(set(tokens)) == 24


@pytest.mark.parametrize("level", levels())
def test_a_row_is_chosen_from_alike_alone_and_by_any_number_of_threads(level: str):
    logits, uniforms = rows_of(5_000, 3.0, n=37), [(i + 0.5) / 37 for i in range(37)]
    draws = [draws_of(SETTINGS[i % len(SETTINGS)], [uniform])[0] for i, uniform in enumerate(uniforms)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(choose(library(level), logits, draws))
        alone = [choose(library(level), logits[i : i + 1], draws[i : i + 1])[0] for i in range(37)]
    finally:
        torch.set_num_threads(before)
    assert found == [alone] * 3


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("width", WIDTHS)
def test_the_likeliest_are_those_of_float64(level: str, width: int):
    logits = rows_of(width, 4.0)
    logits[1, : width // 2] = -math.inf
    for n in {0, 1, min(5, width), width // 2, width}:
        normalizers, values, tokens = likeliest(library(level), logits, n)
        torch.testing.assert_close(normalizers, logits.double().logsumexp(-1), atol=1e-6, rtol=1e-6)
        assert torch.equal(values, logits.sort(dim=-1, descending=True).values[:, :n])
        assert torch.equal(logits.gather(1, tokens), values)
        assert all(len(set(row)) == n for row in tokens.tolist())


@pytest.mark.parametrize("level", levels())
def test_of_equal_ones_the_first_are_the_likeliest(level: str):
    logits = torch.tensor([[0.0, 1.0] * 500])
    assert likeliest(library(level), logits, 40)[2].tolist() == [list(range(1, 81, 2))]


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_log_probabilities_of_what_is_no_number_are_none(level: str, odd: float):
    logits = torch.zeros(2, 300)
    logits[0, 120] = odd
    normalizers, values, _ = likeliest(library(level), logits, 3)
    assert normalizers.isnan().tolist() == values.isnan().any(1).tolist() == [True, False]


def both(monkeypatch: pytest.MonkeyPatch, level: str, work):
    """What `work` gives with the kernels of a level and without."""
    with_kernels = library(level)
    monkeypatch.setattr(sampling.by_kernels, "kernels_for", lambda logits: with_kernels)
    found = work()
    monkeypatch.setattr(sampling.by_kernels, "kernels_for", lambda logits: None)
    return found, work()


@pytest.mark.parametrize("level", levels())
def test_rows_with_settings_of_their_own_choose_what_pytorch_chooses(level: str, monkeypatch):
    logits = rows_of(3_000, 3.0, n=40)
    logits[7, 3] = math.nan
    params = [SamplingParams(**settings) for settings in SETTINGS]
    params += [SamplingParams(repetition_penalty=1.3), SamplingParams(logit_bias={5: 9.0}, top_p=0.5)]
    rows = [
        SamplingRow(params[i % len(params)], vocab_size=3_000, seed=i, prompt=range(50)) for i in range(40)
    ]
    ours, theirs = both(monkeypatch, level, lambda: sampling_rows.choose_rows(logits, rows))
    assert ours == theirs
    assert ours[7] == sampling_rows.FAILED
    told, as_told = both(
        monkeypatch, level, lambda: sampling_rows.logprobs_rows(logits, ours, [3, None] * 20)
    )
    for one, other in zip(told, as_told, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None and not math.isnan(other.logprob):
            assert one.logprob == pytest.approx(other.logprob, abs=2e-5)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize(
    "rulings",
    [
        [],
        [Ruling()] * 8,
        [Ruling((1, 2, 3)), *[Ruling((77,))] * 7],
        [*[Ruling()] * 7, Ruling((), (5,))],
        [Ruling((4,), None, (5, 6), 1.2)] * 8,
        [Ruling(tuple(range(150)))] * 8,
    ],
    ids=["none", "empty", "forbidden", "only", "repeated", "many"],
)
def test_beams_go_on_as_by_pytorch(level: str, rulings: list[Ruling], monkeypatch):
    logits = rows_of(200, 2.0, n=8)
    scores = -torch.rand(2, 4, generator=torch.Generator().manual_seed(0))
    (values, choices), (plain_values, plain_choices) = both(
        monkeypatch, level, lambda: beam.best_next(logits.clone(), scores, 8, rulings)
    )
    assert choices == plain_choices
    torch.testing.assert_close(torch.tensor(values), torch.tensor(plain_values), atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_goes_on_where_another_thread_was_at_work():
    kernels, logits = library(levels()[-1]), torch.randn(64, 20_000)
    draws, ended = draws_of({"top_p": 0.9}, [0.5] * 64), threading.Event()

    def work() -> None:
        while not ended.is_set():
            choose(kernels, logits, draws)

    at_work = threading.Thread(target=work)
    at_work.start()
    try:
        for _ in range(3):
            child = multiprocessing.get_context("fork").Process(target=choose, args=(kernels, logits, draws))
            child.start()
            child.join(60)
            hangs = child.is_alive()
            child.kill()
            assert not hangs
            assert child.exitcode == 0
    finally:
        ended.set()
        at_work.join()
