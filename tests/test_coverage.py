"""How often every printed interval holds the truth, and how often a verdict is wrong: by simulation.

Each case draws test sets from a world whose true score is known. Bounds follow from the number of sets: 93 to
97% where the interval is meant to be exact, and of fewer sets three standard deviations of their share
besides. Intervals of counts cannot be exact; they may hold more. Errors of verdicts are bounded from above.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from transom.evaluation.classification import f1_rows, macro_f1, telling
from transom.evaluation.cost import speed
from transom.evaluation.perplexity import nats_per_token, token_perplexity
from transom.evaluation.translation import bleu_counts, bleu_of, chrf_counts, chrf_of
from transom.intervals import Estimate, bootstrap, lead, paired_bootstrap, share, student

WHOLE = 2000
slow = pytest.mark.slow
TIERS = pytest.mark.parametrize("sets", [300, pytest.param(WHOLE, marks=slow)])


def holds(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


def within(held: float, sets: int, low: float = 0.93, high: float = 0.97) -> bool:
    """Whether a share of `sets` is what shares between low and high may look like."""
    print(f"{100 * held:.1f}% of {sets:,}")  # noqa: T201
    slack = 0.0 if sets >= WHOLE else 3 * math.sqrt(0.05 * 0.95 / sets)
    return low - slack <= held <= high + slack


# ------------------------------------------------------------------------------- counts, without drawing


@pytest.mark.parametrize("n", [5, 30, 100, 300])
def test_a_share_is_held_in_95_of_100_on_average_and_seldom_much_less(n: int) -> None:
    """Exactly: over all numbers of hits, for shares up to 0.997."""
    intervals = [share(k, n) for k in range(n + 1)]
    shares = np.concatenate([np.linspace(0.5, 0.99, 50), [0.995, 0.997]])
    held = [sum(binom.pmf(k, n, p) for k in range(n + 1) if holds(intervals[k], p)) for p in shares]
    assert 0.945 < np.mean(held) < 0.98 and min(held) > 0.91


@pytest.mark.parametrize("n", [5, 30, 60])
@pytest.mark.parametrize("wins, losses", [(0.05, 0.05), (0.2, 0.2), (0.1, 0.02), (0.3, 0.1), (0.5, 0.0)])
def test_a_lead_is_held_at_least_as_often_as_it_says_and_none_is_invented(
    n: int, wins: float, losses: float
) -> None:
    """Exactly: over all numbers of wins and losses."""
    held = invented = 0.0
    outcomes = multinomial(n, [wins, losses, 1 - wins - losses])
    for a in range(n + 1):
        for b in range(n + 1 - a):
            chance = float(outcomes.pmf([a, b, n - a - b]))
            if chance > 1e-7:
                found = lead(a, b, n)
                held += chance * holds(found, wins - losses)
                invented += chance * (found.low > 0 or found.high < 0)
    print(f"{n}: {100 * held:.1f}% held, {100 * invented:.1f}% called different")  # noqa: T201
    assert held > 0.935
    assert wins != losses or invented < 0.055


# ------------------------------------------------------------------------------------------------- means

DRAWN: dict[str, tuple[int, Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "slopes of 2 drawings": (2, lambda rng, n: rng.normal(1, 2, n), 1.0),
    "slopes of 6 drawings": (6, lambda rng, n: rng.normal(1, 2, n), 1.0),
    "effects of 100 pairs, heavy tails": (100, lambda rng, n: rng.laplace(1, 2, n), 1.0),
    "effects of 200 pairs, skewed": (200, lambda rng, n: rng.exponential(1, n), 1.0),
}


@TIERS
@pytest.mark.parametrize("case", DRAWN)
def test_a_mean_is_held(case: str, sets: int) -> None:
    n, draw, truth = DRAWN[case]
    rng = np.random.default_rng(0)
    assert within(np.mean([holds(student(draw(rng, n)), truth) for _ in range(sets)]), sets)


@TIERS
@pytest.mark.parametrize("n", [100, 300, 1000])
def test_a_brier_score_is_held_where_it_has_an_interval(n: int, sets: int) -> None:
    """Two classes, a classifier that is too sure, right in three of four."""
    rng = np.random.default_rng(1)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        said = 1.5 + 1.3 * rng.normal(size=n)
        confidence = 0.5 + 0.5 / (1 + np.exp(-said))
        right = rng.random(n) < 1 / (1 + ((1 - confidence) / confidence) ** 0.5)
        return 2 * (confidence - right) ** 2, ~right

    truth = float(drawn(2_000_000)[0].mean())
    found = [student(squares, int(wrong.sum())) for squares, wrong in (drawn(n) for _ in range(sets))]
    assert within(np.mean([holds(one, truth) for one in found if one.known]), sets)


# ---------------------------------------------------------------------------------- macro-F1, of one and two

CLASSIFIERS: dict[str, tuple[list[float], float, float, int]] = {
    "2 classes": ([0.5, 0.5], 0.8, 0.8, 150),
    "6 classes, one better": ([1 / 6] * 6, 0.85, 0.75, 150),
    "uneven": ([0.3, 0.25, 0.2, 0.15, 0.1], 0.85, 0.85, 300),
    "12 classes": ([1 / 12] * 12, 0.7, 0.7, 600),
    "few mistakes": ([0.5, 0.5], 0.97, 0.97, 1000),
}


@pytest.mark.parametrize(
    "case, sets", [("2 classes", 40), *(pytest.param(case, WHOLE, marks=slow) for case in CLASSIFIERS)]
)
def test_macro_f1_and_its_difference_are_held(case: str, sets: int) -> None:
    prior, ours, theirs, n = CLASSIFIERS[case]
    n_classes, rng = len(prior), np.random.default_rng(2)

    def answers(truth: np.ndarray, accuracy: float, luck: np.ndarray) -> np.ndarray:
        other = (truth + rng.integers(1, n_classes, len(truth))) % n_classes
        return np.where(luck < accuracy, truth, other)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray, int]:
        truth, luck = rng.choice(n_classes, n, p=prior), rng.random(n)
        alike = rng.random(n) < 0.7  # mostly they find the same texts hard
        a = answers(truth, ours, luck)
        b = answers(truth, theirs, np.where(alike, luck, rng.random(n)))
        return f1_rows(truth, a, n_classes), f1_rows(truth, b, n_classes), int((a != b).sum())

    one, other, _ = drawn(400_000)
    f1, difference = macro_f1(one.sum(0)), macro_f1(one.sum(0)) - macro_f1(other.sum(0))
    difference = 0.0 if ours == theirs else difference
    held, apart, invented = [], [], []
    for seed in range(sets):
        one, other, differ = drawn(n)
        wrong = n - int(one[:, :n_classes].sum())
        single = bootstrap(one, macro_f1, telling(one, wrong), draws=400, seed=seed)
        paired = paired_bootstrap(one, other, macro_f1, telling(one, differ), draws=400, seed=seed)
        if single.known:
            held.append(holds(single, f1))
        if paired.known:
            apart.append(holds(paired, difference))
            invented.append(paired.low > 0 or paired.high < 0)
    assert len(held) > 0.9 * sets and within(np.mean(held), sets)
    assert len(apart) > 0.9 * sets and within(np.mean(apart), sets)
    assert ours != theirs or within(np.mean(invented), sets, 0.0, 0.07)


# -------------------------------------------------------------------------------------- BLEU, of one and two


@pytest.mark.parametrize(
    "n, sets", [(100, 40), *(pytest.param(n, WHOLE, marks=slow) for n in (30, 100, 300))]
)
def test_bleu_and_its_difference_are_held(shared_data: Path, n: int, sets: int) -> None:
    """Test sets drawn from 1,000 real sentences, of which one system drops more words than the other."""
    with gzip.open(shared_data / "multi30k" / "test_2016_flickr.de.gz", "rt", encoding="utf-8") as file:
        references = file.read().splitlines()
    rng = np.random.default_rng(n)

    def spoiled(share: np.ndarray) -> np.ndarray:
        texts = [" ".join(word for word in text.split() if rng.random() > lost)
                 for text, lost in zip(references, share, strict=True)]  # fmt: skip
        return bleu_counts(texts, references)

    hard = rng.beta(1, 4, len(references))
    one, other = spoiled(hard), spoiled(np.minimum(1, hard + 0.05))
    bleu = bleu_of(one.sum(0))
    difference = bleu - bleu_of(other.sum(0))
    held, apart = [], []
    for seed in range(sets):
        some = rng.integers(len(one), size=n)
        held.append(holds(bootstrap(one[some], bleu_of, draws=400, seed=seed), bleu))
        apart.append(
            holds(paired_bootstrap(one[some], other[some], bleu_of, draws=400, seed=seed), difference)
        )
    assert within(np.mean(held), sets)
    assert within(np.mean(apart), sets)


# ------------------------------------------------------------------- two language models on the same passages


@pytest.mark.parametrize(
    "n, sets", [(60, 150), *(pytest.param(n, WHOLE, marks=slow) for n in (12, 30, 100, 400))]
)
@pytest.mark.parametrize("apart", [0.0, 0.03])
def test_a_difference_of_losses_is_held_and_none_is_invented(n: int, sets: int, apart: float) -> None:
    """Passages of different lengths, some hard for both; what a model finds beside that is its own."""
    rng = np.random.default_rng(n)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = rng.integers(60, 180, n).astype(float)
        hard = rng.normal(3.0, 0.6, n)
        one, other = (tokens * (hard + by + rng.normal(0, 0.08, n)) for by in (apart, 0.0))
        return tuple(np.stack([nats, tokens, 4 * tokens], axis=1) for nats in (one, other))  # type: ignore[return-value]

    one, other = drawn(2_000_000)
    truth = {score: score(one.sum(0)) - score(other.sum(0)) for score in (nats_per_token, token_perplexity)}
    truth = {score: 0.0 if apart == 0 else value for score, value in truth.items()}
    held: dict[object, list[bool]] = {score: [] for score in truth}
    invented = []
    for seed in range(sets):
        one, other = drawn(n)
        for score, true in truth.items():
            found = paired_bootstrap(one, other, score, telling=n, draws=400, seed=seed)
            held[score].append(holds(found, true))
            if score is nats_per_token:
                invented.append(found.low > 0 or found.high < 0)
    assert all(within(np.mean(some), sets) for some in held.values())
    assert apart or within(np.mean(invented), sets, 0.0, 0.07)


@pytest.mark.parametrize("n, sets", [(32, 60), *(pytest.param(n, WHOLE, marks=slow) for n in (32, 100))])
def test_a_difference_of_chrf_is_held(shared_data: Path, n: int, sets: int) -> None:
    """Test sets drawn from 400 real sentences, of which one system drops more words than the other."""
    with gzip.open(shared_data / "multi30k" / "test_2016_flickr.de.gz", "rt", encoding="utf-8") as file:
        references = file.read().splitlines()[:400]
    rng = np.random.default_rng(n)
    hard = rng.beta(1, 4, len(references))

    def spoiled(share: np.ndarray) -> np.ndarray:
        texts = [" ".join(word for word in text.split() if rng.random() > lost)
                 for text, lost in zip(references, share, strict=True)]  # fmt: skip
        return chrf_counts(texts, references)

    one, other = spoiled(hard), spoiled(np.minimum(1, hard + 0.05))
    truth = chrf_of(one.sum(0)) - chrf_of(other.sum(0))
    some = [rng.integers(len(one), size=n) for _ in range(sets)]
    found = [paired_bootstrap(one[i], other[i], chrf_of, telling=n, draws=400, seed=seed)
             for seed, i in enumerate(some)]  # fmt: skip
    assert within(np.mean([holds(each, truth) for each in found]), sets)


@TIERS
@pytest.mark.parametrize("ratio", [1.0, 1.2])
def test_a_ratio_of_speeds_is_held(ratio: float, sets: int) -> None:
    """8 turns on a machine whose speed wanders and jumps, for both alike within a turn."""
    rng, held = np.random.default_rng(0), []
    for _ in range(sets):
        pace = np.exp(rng.normal(0, 0.5, 8))
        seconds = [
            (p * math.exp(a), p * ratio * math.exp(b))
            for p, a, b in zip(pace, *rng.normal(0, 0.1, (2, 8)), strict=True)
        ]
        found = speed([100] * 8, seconds, "tokens").difference
        held.append(holds(found, 100 * (ratio - 1)))
    assert within(np.mean(held), sets)
