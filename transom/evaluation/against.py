"""Hold a model against another of its kind: the task's own measures of both, on the same examples.

Which measures those are is a table by what the models do. Each is paired example by example; where both gave
the very same answers the difference is nothing, exactly. Read next: before_after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint.hub import name_of
from ..data.labelled import Labelled
from ..data.pairs import Pair
from ..errors import Refused
from ..inference.classifier import Classifier
from ..inference.embedder import Embedder
from ..inference.fill_mask import FillMask
from ..inference.generator import Generator
from ..inference.request import Completion
from ..inference.translator import Translator
from ..intervals import Estimate, Rows, bootstrap, lead, paired_bootstrap, share, student
from .answers import WRITTEN, answerers, exchanges, within
from .classification import f1_rows, indices, macro_f1, telling
from .likelihood import Row, Watch, likelihoods
from .paired import Comparison, Example, Measure, wins_and_losses, worst_first
from .perplexity import (
    TextScore,
    bits_per_byte,
    by_unit,
    nats_per_token,
    passages,
    score_text,
    token_perplexity,
)
from .recall import Found, find_partners
from .test_set import Origin, asks, evenly, examples, origin_of, texts
from .translation import bleu_counts, bleu_of, chrf_counts, chrf_of, exactly, has_bleu

HAS_ONE_ANSWER = 0.5
"""From this share of exact translations on, a text has one right one, and those are what counts."""
SMALLEST = 1e-12
"""Probabilities are taken to be at least this before their logarithm."""
EXACT = Estimate(0.0, 0.0, 0.0)
REWARDS = (
    "a pair is rewarded where the lead of the chosen answer over the rejected one has grown; a model that "
    "did not change is at 50%"
)


@dataclass(frozen=True)
class Both:
    """The two models, the one in question first, and what they are to be asked."""

    pair: tuple[Any, Any]
    origins: tuple[Origin, Origin]
    names: tuple[str, str]
    test: str | None = None
    """None: what the run of the first, else of the other, held out."""
    test_target: str | None = None
    columns: Sequence[str] = ()
    """FIELD=COLUMN of the test, where they are not those of the first one's run."""
    beam: int = 4
    limit: int | None = None
    """About so many characters of running text, of conversations or of pairs to translate, spread evenly."""
    watch: Watch | None = None

    @classmethod
    def load(cls, model: str | Path, other: str | Path, **asked: Any) -> Both:
        """Load two models of one kind, each from a run's folder, a model folder or a hub id.

        asked: the fields above, from `test` on. Raises Refused.
        """
        from ..inference.load import load

        origins = (origin_of(model), origin_of(other))
        now, before = (load(origin.weights) for origin in origins)
        if type(now) is not type(before):
            kinds = f"{model} holds {_a(now)} and {other} {_a(before)}"
            raise Refused(f"{kinds}; two models of one kind can be compared")
        return cls((now, before), origins, (str(model), str(other)), **asked)

    def compare(self) -> Comparison:
        """Hold the first against the other on the same examples. Raises Refused."""
        found, sides = COMPARE[type(self.pair[0])](self), (name_of(self.names[1]), name_of(self.names[0]))
        return replace(found, sides=sides) if sides[0] != sides[1] else found


def answers_of_both(both: Both) -> Comparison:
    """Compare language models on the answers of conversations, given and written anew."""
    found, name = examples("chat", both.origins, both.test, None, both.columns)
    asked, pair = within(exchanges(found), both.limit), answerers(both.pair)
    others = [one.other for one in asked if one.other is not None]
    sides = [[one.talk for one in asked], *[others] * bool(others)]
    written = [[one.rows(talks) for talks in sides] for one in pair]
    kept = [i for i in range(len(asked)) if all(rows[i] is not None for own in written for rows in own)]
    if not kept:
        raise Refused(f"{name}: no conversation that both models read whole; their limit is max_len")
    left = len(asked) - len(kept)
    asked = [asked[i] for i in kept]
    (now, *others_now), (before, *others_before) = (
        [
            one.score(asked, [rows[i] or [] for i in kept], model=called, test=name, watch=both.watch)
            for rows in own
        ]
        for one, own, called in zip(pair, written, both.names, strict=True)
    )
    leads = [
        other.rows[:, 0] - chosen.rows[:, 0]
        for chosen, rejected in ((now, others_now), (before, others_before))
        for other in rejected
    ]
    n = min(WRITTEN, len(asked))
    sample = [i * len(asked) // n for i in range(n)]
    ours, theirs = (one.write([asked[i] for i in sample]) for one in pair)
    wanted, of = [asked[i].wanted for i in sample], "answers written"
    chrf, chrf_before = (chrf_counts([one.text for one in side], wanted) for side in (ours, theirs))
    nearer = chrf_gains(chrf, chrf_before)
    ends, ended = (np.array([one.finish_reason == "stop" for one in side]) for side in (ours, theirs))
    same = [one.tokens for one in ours] == [one.tokens for one in theirs]
    measures = (
        *(preference_measures(*leads) if leads else ()),
        *text_measures(now, before),
        replace(_score("chrF to the answer", chrf, chrf_before, chrf_of, nearer), of=of),
        replace(_more_often("ends by itself", ends, ended, same), of=of),
    )  # fmt: skip
    gain = leads[0] - leads[1] if leads else (before.rows[:, 0] - now.rows[:, 0]) / now.rows[:, 1]
    led = [[f"{lead[i]:+.1f} nats ahead of the rejected answer\n" for i in sample] for lead in leads]
    led = led or [[""] * n, [""] * n]
    compared = worst_first([
        Example(asked[i].where, asked[i].asked, asked[i].wanted, f"{led[1][n]}{_written(theirs[n])}",
                f"{led[0][n]}{_written(ours[n])}", float(gain[i]))
        for n, i in enumerate(sample)
    ])  # fmt: skip
    notes = _same_tokens(now, before)
    if leads:
        notes = (*notes, REWARDS)
    if left:
        whole = f"{left:,} of {len(kept) + left:,} conversations"
        notes = (*notes, f"{whole} are too long for one of the two, and left out")
    task = "preference" if leads else "sft"
    return Comparison(task, *both.names, name, measures, compared, notes)


def preference_measures(now: Rows, before: Rows) -> tuple[Measure, ...]:
    """Return what two models say of n pairs, by how many nats (n,) each finds the chosen answer likelier.

    A pair is rewarded where that lead has grown (DPO's implicit reward), so the other model, held against
    itself, rewards half of them.
    """
    gain, n = now - before, len(now)
    (wins, losses), same = wins_and_losses(gain), not gain.any()
    rewarded = Estimate(50.0, 50.0, 50.0) if same else share(wins, n).times(100)
    half = Estimate(50.0, 50.0, 50.0)
    return (
        Measure("rewards the chosen answer", "points", half, rewarded, rewarded.plus(-50), n, "pairs",
                wins=wins, losses=losses, suffix="%"),
        Measure("lead of the chosen answer", "nats", student(before), student(now), student(gain), n, "pairs",
                wins=wins, losses=losses, digits=2, repeats=True),
        replace(_more_often("finds the chosen likelier", now > 0, before > 0, same), of="pairs"),
    )  # fmt: skip


def _written(one: Completion) -> str:
    return one.text + ("" if one.finish_reason == "stop" else f" … [{len(one.tokens)} tokens, no end]")


def texts_of_both(both: Both) -> Comparison:
    """Compare language models on a text, or on conversations where those are what there is."""
    if isinstance(both.pair[0], Generator) and asks(both.origins, both.test, both.columns):
        return answers_of_both(both)
    documents, name = texts(both.origins, both.test, both.columns)
    found = passages(documents, both.limit)
    now, before = (score_text(loaded, found, watch=both.watch) for loaded in both.pair)
    bits = now.rows[:, 0] / now.rows[:, 2] / math.log(2)
    bits_before = before.rows[:, 0] / before.rows[:, 2] / math.log(2)
    compared = worst_first([
        Example(passage.where, passage.text, "", f"{b:.3f} bits per byte", f"{a:.3f} bits per byte", b - a)
        for passage, a, b in zip(found, bits.tolist(), bits_before.tolist(), strict=True)
    ])  # fmt: skip
    return Comparison("mlm" if now.pseudo else "lm", *both.names, name, text_measures(now, before), compared,
                      _same_tokens(now, before))  # fmt: skip


def text_measures(now: TextScore, before: TextScore, text: str = "") -> tuple[Measure, ...]:
    """Return the measures of two scores of the same passages; `text` says which text, if there are several.

    By the token where both cut the text into the same ones, and by the byte in any case.
    """
    one, other = (by_unit(score.rows, score.documents) for score in (now, before))
    wins, losses = wins_and_losses(other[:, 0] - one[:, 0])
    of = now.of if len(one) == len(now.rows) else "documents"

    def measure(
        name: str, unit: str, score: Callable[[Rows], float], digits: int, repeats: bool = False
    ) -> Measure:
        was, is_now = (bootstrap(rows, score, telling=len(rows)) for rows in (other, one))
        difference = paired_bootstrap(one, other, score, telling=len(one))
        return Measure(f"{text}{name}", unit, was, is_now, difference, len(one), of, more_is_better=False,
                       wins=wins, losses=losses, digits=digits, repeats=repeats)  # fmt: skip

    if _same_tokens(now, before):
        return (measure("bits per byte", "bits", bits_per_byte, 4),)
    pseudo = "pseudo-" * now.pseudo
    return (measure(f"nats per {now.unit}", "nats", nats_per_token, 4),
            measure(f"{pseudo}perplexity", "", token_perplexity, 2, repeats=True),
            measure("bits per byte", "bits", bits_per_byte, 4, repeats=True))  # fmt: skip


def _same_tokens(now: TextScore, before: TextScore) -> tuple[str, ...]:
    """What to say where two models cut a text into different tokens."""
    if np.array_equal(now.rows[:, 1], before.rows[:, 1]):
        return ()
    return ("their tokenizers differ, so they are compared by the byte",)


def classes_of_both(both: Both) -> Comparison:
    """Compare classifiers on labelled texts."""
    labelled, name = examples("classify", both.origins, both.test, None, both.columns)
    labels = list(both.pair[0].labels)
    for loaded, called in zip(both.pair, both.names, strict=True):
        if unknown := {item.label for item in labelled} - set(loaded.labels):
            raise Refused(f"{called} does not know the class '{min(unknown)}' of {name}; it knows "
                          f"{', '.join(loaded.labels[:8])}")  # fmt: skip
    labels += [label for label in both.pair[1].labels if label not in labels]
    asked, cut = [item.text for item in labelled], both.origins[0].settings.data.too_long == "cut"
    now, before = (
        np.array([[answer.probabilities.get(label, 0.0) for label in labels]
                  for answer in loaded.classify(asked, cut=cut)])
        for loaded in both.pair
    )  # fmt: skip
    return Comparison("classify", *both.names, name, *compare_classes(labelled, labels, now, before))


def compare_classes(
    labelled: Sequence[Labelled], labels: Sequence[str], now: Rows, before: Rows
) -> tuple[tuple[Measure, ...], tuple[Example, ...]]:
    """Compare the probabilities (N, C) that two classifiers give to labelled texts."""
    wanted = indices(labels, [item.label for item in labelled])
    guess, guess_before = now.argmax(axis=1), before.argmax(axis=1)
    one, other = (f1_rows(wanted, guesses, len(labels)) for guesses in (guess, guess_before))
    places = np.arange(len(wanted))
    loss, loss_before = (-np.log(np.maximum(rows[places, wanted], SMALLEST)) for rows in (now, before))
    n, same = len(wanted), np.array_equal(now, before)
    differ = int((guess != guess_before).sum())
    f1 = EXACT if same else paired_bootstrap(one, other, macro_f1, telling(one, differ)).times(100)
    f1_before, f1_now = (
        bootstrap(rows, macro_f1, telling(rows, int((guesses != wanted).sum()))).times(100)
        for rows, guesses in ((other, guess_before), (one, guess))
    )
    nats = student(loss - loss_before)
    measures = (
        _more_often("accuracy", guess == wanted, guess_before == wanted, same),
        Measure("macro-F1", "points", f1_before, f1_now, f1, n, suffix="%"),
        Measure("nats per text", "nats", student(loss_before), student(loss), nats, n, more_is_better=False,
                digits=4, wins=int((loss < loss_before).sum()), losses=int((loss > loss_before).sum())),
    )  # fmt: skip
    compared = worst_first([
        Example(item.where, item.text, item.label, _named(labels, before[i]), _named(labels, now[i]),
                float(loss_before[i] - loss[i]))
        for i, item in enumerate(labelled)
    ])  # fmt: skip
    return measures, compared


def translations_of_both(both: Both) -> Comparison:
    """Compare translators on pairs."""
    pairs, name = examples("translate", both.origins, both.test, both.test_target, both.columns)
    pairs = evenly(pairs, sum(len(pair.source) + len(pair.target) for pair in pairs), both.limit)
    sources, wanted = [item.source for item in pairs], [item.target for item in pairs]
    found = [loaded.translate(sources, beam=both.beam) for loaded in both.pair]
    now, before = ([answer.text for answer in answers] for answers in found)
    same = [answer.tokens for answer in found[0]] == [answer.tokens for answer in found[1]]
    right, right_before = exactly(now, wanted), exactly(before, wanted)
    exact = _more_often("exact", right, right_before, same)
    chrf, chrf_before = chrf_counts(now, wanted), chrf_counts(before, wanted)
    gains = chrf_gains(chrf, chrf_before)
    measures = [_score("chrF", chrf, chrf_before, chrf_of, gains), *_reference_loss(both.pair, pairs)]
    one, other = bleu_counts(now, wanted), bleu_counts(before, wanted)
    if has_bleu(one):
        measures.insert(0, _score("BLEU", one, other, bleu_of, gains))
    first = not has_bleu(one) or max(right.mean(), right_before.mean()) > HAS_ONE_ANSWER
    measures.insert(0 if first else 2, exact)
    compared = worst_first([
        Example(item.where, item.source, item.target, b, a, gain)
        for item, b, a, gain in zip(pairs, before, now, gains.tolist(), strict=True)
    ])  # fmt: skip
    return Comparison("translate", *both.names, name, tuple(measures), compared)


def chrf_gains(now: Rows, before: Rows) -> NDArray[np.float64]:
    """By how many points of chrF each text (N,) is nearer to its reference now, from counts (N, 18)."""
    return np.array([chrf_of(a) - chrf_of(b) for a, b in zip(now, before, strict=True)])


def _score(
    name: str, now: Rows, before: Rows, of: Callable[[Rows], float], gains: NDArray[np.float64]
) -> Measure:
    """A score that is made of counts which add up (N, F); gains (N,) tell who is ahead on each pair."""
    wins, losses = wins_and_losses(gains)
    difference = paired_bootstrap(now, before, of, telling=len(now))
    return Measure(name, "points", bootstrap(before, of), bootstrap(now, of), difference, len(now), "pairs",
                   wins=wins, losses=losses)  # fmt: skip


def _reference_loss(pair: Sequence[Translator], pairs: Sequence[Pair]) -> list[Measure]:
    """The nats of the references per token, where both spell them with the same tokens."""
    if any(loaded.tokenizer.config.get("sources_only") for loaded in pair):
        return []
    sums = []
    for loaded in pair:
        targets = loaded.tokenizer.framed_many([item.target for item in pairs])
        read = loaded.tokenizer.framed_many([item.source for item in pairs])
        longest = loaded.model.config.max_len
        rows = [Row([loaded.start_id, *target.tolist()], len(target), source.tolist())
                for target, source in zip(targets, read, strict=True)]  # fmt: skip
        if any(len(row.tokens) > longest + 1 or len(row.source) > longest for row in rows):
            return []
        judged = likelihoods(loaded.model, rows)
        sums.append(np.array([(one.nats, len(one.logprobs)) for one in judged]))
    now, before = sums
    if not np.array_equal(now[:, 1], before[:, 1]):
        return []
    wins, losses = wins_and_losses(before[:, 0] - now[:, 0])
    difference = paired_bootstrap(now, before, nats_per_token, telling=len(now))
    return [Measure("nats per target token", "nats", bootstrap(before, nats_per_token),
                    bootstrap(now, nats_per_token), difference, len(now), of="pairs", more_is_better=False,
                    wins=wins, losses=losses, digits=4)]  # fmt: skip


def partners_of_both(both: Both) -> Comparison:
    """Compare embedders on pairs of texts that belong together."""
    pairs, name = examples("embed", both.origins, both.test, both.test_target, both.columns)
    cut = both.origins[0].settings.data.too_long == "cut"
    now, before = (find_partners(loaded, pairs, cut=cut) for loaded in both.pair)
    same = np.array_equal(now.ranks, before.ranks)

    def nearest(found: Found, i: int) -> str:
        return f"rank {found.ranks[i]}; nearest: {pairs[int(found.nearest[i])].target}"

    one, other = 100 / now.ranks, 100 / before.ranks
    wins, losses = wins_and_losses(one - other)
    measures = (
        _more_often("recall@1", now.right, before.right, same),
        Measure("mean reciprocal rank", "points", student(other), student(one), student(one - other),
                len(one), wins=wins, losses=losses, suffix="%"),
    )  # fmt: skip
    compared = worst_first([
        Example(item.where, item.source, item.target, nearest(before, i), nearest(now, i),
                float(one[i] - other[i]))
        for i, item in enumerate(pairs)
    ])  # fmt: skip
    note = f"each text is looked for among the {len(pairs):,} second texts of the test set"
    return Comparison("embed", *both.names, name, measures, compared, (note,))


def _a(loaded: Any) -> str:
    """What a model is, with its article."""
    name = type(loaded).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _named(labels: Sequence[str], row: NDArray[np.float64]) -> str:
    """The likeliest of the classes by their probabilities (C,)."""
    return f"{labels[int(row.argmax())]} ({100 * row.max():.0f}%)"


def _more_often(name: str, now: NDArray[np.bool_], before: NDArray[np.bool_], same: bool) -> Measure:
    """How often both are right (N,); `same`: all their answers are equal, beyond what is right and wrong."""
    wins, losses = int((now & ~before).sum()), int((before & ~now).sum())
    n = len(now)
    difference = EXACT if same else lead(wins, losses, n).times(100)
    was, is_now = (share(int(hits.sum()), n).times(100) for hits in (before, now))
    return Measure(name, "points", was, is_now, difference, n, wins=wins, losses=losses, suffix="%")


COMPARE: dict[type, Callable[[Both], Comparison]] = {
    Generator: texts_of_both,
    FillMask: texts_of_both,
    Translator: translations_of_both,
    Classifier: classes_of_both,
    Embedder: partners_of_both,
}
"""What a model is -> how two of them are compared."""
