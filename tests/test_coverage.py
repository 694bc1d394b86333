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
from transom.evaluation.gate import MARGIN, competence
from transom.evaluation.perplexity import nats_per_token, token_perplexity
from transom.evaluation.translation import bleu_counts, bleu_of, chrf_counts, chrf_of
from transom.intervals import (
    Estimate,
    bootstrap,
    clustered,
    corrected,
    detectable,
    holm,
    lead,
    paired_bootstrap,
    rarity,
    share,
    spread,
    student,
)

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


# ------------------------------------------------------------------------------------------- clusters


def sizes_of(rng: np.random.Generator, n_clusters: int, items: int) -> np.ndarray:
    """The cluster of each item, of clusters of uneven sizes."""
    return np.repeat(np.arange(n_clusters), 1 + rng.poisson(items - 1, n_clusters))


@TIERS
@pytest.mark.parametrize(
    "n_clusters, items, p, alike",
    [(12, 7, 0.5, 0.2), (20, 8, 0.1, 0.1), (50, 5, 0.03, 0.1), (200, 5, 0.03, 0.2), (60, 11, 0.2, 0.3)],
)
def test_a_share_of_items_in_clusters_is_held(
    n_clusters: int, items: int, p: float, alike: float, sets: int
) -> None:
    rng, held = np.random.default_rng(0), 0
    more = (1 - alike) / alike
    for _ in range(sets):
        which = sizes_of(rng, n_clusters, items)
        shares = rng.beta(p * more, (1 - p) * more, n_clusters)
        held += holds(clustered((rng.random(len(which)) < shares[which]).astype(float), which.tolist()), p)
    assert within(held / sets, sets)


@TIERS
@pytest.mark.parametrize(
    "n_clusters, items, won, lost, alike", [(40, 5, 0.06, 0.02, 0.1), (20, 7, 0.2, 0.2, 0.2)]
)
def test_a_paired_lead_of_items_in_clusters_is_held(
    n_clusters: int, items: int, won: float, lost: float, alike: float, sets: int
) -> None:
    rng, held = np.random.default_rng(0), 0
    more = (1 - alike) / alike
    for _ in range(sets):
        which = sizes_of(rng, n_clusters, items)
        drawn = rng.dirichlet([won * more, lost * more, (1 - won - lost) * more], n_clusters)[which]
        at = rng.random(len(which))
        values = (at < drawn[:, 0]).astype(float) - ((at >= drawn[:, 0]) & (at < drawn[:, :2].sum(axis=1)))
        held += holds(clustered(values, which.tolist()), won - lost)
    assert within(held / sets, sets)


@TIERS
@pytest.mark.parametrize("n_clusters, items, alike", [(10, 7, 0.3), (20, 7, 0.3), (60, 5, 0.5)])
def test_a_mean_of_items_in_clusters_is_held(n_clusters: int, items: int, alike: float, sets: int) -> None:
    rng, held, alone = np.random.default_rng(0), 0, 0
    for _ in range(sets):
        which = sizes_of(rng, n_clusters, items)
        values = rng.normal(0, math.sqrt(alike), n_clusters)[which]
        values = values + rng.normal(0, math.sqrt(1 - alike), len(which))
        held += holds(clustered(values, which.tolist()), 0.0)
        alone += holds(student(values), 0.0)
    assert within(held / sets, sets)
    assert alone / sets < 0.85  # what calls every item its own would have said


@TIERS
@pytest.mark.parametrize(
    "true, sensitivity, specificity, n, checked",
    [(0.14, 0.78, 0.92, 400, 300), (0.05, 0.78, 0.92, 400, 300), (0.5, 0.7, 0.8, 300, 200),
     (0.3, 0.9, 0.9, 100, 100), (0.02, 0.8, 0.95, 1000, 500)],
)  # fmt: skip
def test_a_share_that_an_erring_detector_counted_is_held_once_corrected(
    true: float, sensitivity: float, specificity: float, n: int, checked: int, sets: int
) -> None:
    rng = np.random.default_rng(0)
    seen = rng.binomial(n, true * sensitivity + (1 - true) * (1 - specificity), sets) / n
    hits, passed = rng.binomial(checked, sensitivity, sets), rng.binomial(checked, specificity, sets)
    found = [
        corrected(flagged, n, (int(a), checked), (int(b), checked))
        for flagged, a, b in zip(seen, hits, passed, strict=True)
    ]
    assert within(float(np.mean([holds(one, true) for one in found])), sets)
    assert np.mean([holds(Estimate(v, share(v * n, n).low, share(v * n, n).high), true)
                    for v in seen[:300]]) < 0.9  # fmt: skip


@pytest.mark.parametrize("n_true", [6, 3])
def test_holm_invents_a_difference_between_groups_in_at_most_5_of_100_reports(n_true: int) -> None:
    """Six groups, of which three or none differ: how often one that does not is called different."""
    rng, invented, found = np.random.default_rng(0), 0, 0
    for _ in range(WHOLE):
        effects = np.where(np.arange(6) < n_true, 0.0, 1.0)
        spreads = [spread(rng.normal(effect, 1, 40), range(40)) for effect in effects]
        p = [rarity(one.estimate) for one in spreads]
        called = np.array([value <= level for value, level in zip(p, holm(p), strict=True)])
        invented += called[:n_true].any()
        found += called[n_true:].sum()
        for one, level, yes in zip(spreads, holm(p), called, strict=True):
            interval = one.estimate(level / 2)  # what is printed says the same as what is decided
            assert (interval.low > 0 or interval.high < 0) == yes
    assert invented / WHOLE < 0.06
    assert n_true == 6 or found / WHOLE > 2.99


@pytest.mark.parametrize("n", [40, 100, 300])
def test_the_gate_lets_pass_about_one_of_forty_that_are_no_better_than_its_margin(n: int) -> None:
    """Exactly: over all numbers of right answers."""
    passes = [competence([True] * k + [False] * (n - k), range(n), 0.5).passed for k in range(n + 1)]
    rate = {p: sum(binom.pmf(k, n, p) for k in range(n + 1) if passes[k]) for p in (0.5, 0.5 + MARGIN, 0.85)}
    print(rate)  # noqa: T201
    assert rate[0.5] < 0.01 and rate[0.5 + MARGIN] < 0.04 and rate[0.85] > 0.98


def test_the_gate_keeps_to_that_where_questions_come_in_clusters() -> None:
    rng, passed = np.random.default_rng(0), 0
    for _ in range(WHOLE):
        which = sizes_of(rng, 25, 6)
        shares = rng.beta(0.55 * 4, 0.45 * 4, 25)[which]
        passed += competence((rng.random(len(which)) < shares).tolist(), which.tolist(), 0.5).passed
    assert passed / WHOLE < 0.04


def test_the_smallest_detectable_effect_is_found_four_times_of_five() -> None:
    rng = np.random.default_rng(0)
    size = float(np.mean([detectable(student(rng.normal(0, 1, 100))) for _ in range(200)]))
    found = [student(rng.normal(size, 1, 100)).low > 0 for _ in range(WHOLE)]
    assert 0.77 < np.mean(found) < 0.83
