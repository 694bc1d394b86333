"""Examine a trained translator or classifier: its scores, cheap baselines beside them, and a verdict.

All answer the same test texts, and the baselines learn from the same training texts, so a difference is the
network's own; it is called better only where the whole 95% interval of the difference is, and nothing is said
of too few texts. Read next: report.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from shlex import join
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.labelled import Labelled
from ..data.pairs import Pair
from ..errors import Refused
from ..intervals import LEAST, Estimate, lead, paired_bootstrap, share
from ..output import write_whole
from ..settings import TrainSettings
from ..training.run import Run, longer_command, task_of
from ..training.task_facts import TASK_FACTS
from .against import compare_classes
from .baselines import TfidfLogistic, TranslationMemory, copy_source, majority
from .classification import ClassScore, f1_rows, indices, macro_f1, score_classes, telling
from .paired import Comparison
from .report import Difference, Report, Rival, cut
from .test_set import examples_of, named_test, origin_of
from .translation import TranslationScore, bleu_counts, bleu_of, exactly, score_translations

EXAMINED = ("translate", "classify")
"""Verbs of the models that are scored at once, beside cheap baselines."""
SHOWN = 3
GIVEN = "sentence-transformers/all-MiniLM-L6-v2"
"""Weights that were clearly ahead of TF-IDF on two of four sets of classes, and behind it on none."""
LEAST_SURE = 0.05
"""The share of the examined translations that set the line: the model is called unsure below them."""
HAS_ONE_ANSWER = 0.5
"""From this share of exact translations on, a text has one right one, and those are what counts."""
UNEVEN = 2.0
"""From this ratio of the commonest to the rarest class on, a baseline that weighs rare ones up is tried."""


class Translates(Protocol):
    """What is asked of a translator: answers with a `text` and its `mean_logprob` each."""

    def translate(self, texts: list[str], *, beam: int) -> list[Any]: ...


class Classifies(Protocol):
    """What is asked of a classifier: answers with `probabilities` by label each."""

    def classify(self, texts: list[str], *, cut: bool) -> list[Any]: ...


def examine(
    folder: str | Path,
    *,
    train: str | None = None,
    train_target: str | None = None,
    test: str | None = None,
    test_target: str | None = None,
    columns: Sequence[str] = (),
    beam: int = 4,
) -> Report:
    """Examine the translator or classifier in a run's folder or a model folder.

    Without `test` it answers what its run held out. The baselines learn from what the run learned from, or
    from `train`, which a folder without a run needs. The report is also written as evaluation.json into the
    run's folder. Raises `Refused`.
    """
    from ..inference.load import load as load_model

    origin = origin_of(folder)
    settings, run, weights = origin.settings, origin.run, origin.weights
    if train is not None:
        settings = settings.with_({"data.source": train, "data.target": train_target})
        origin = dataclasses.replace(origin, settings=settings)
    elif run is None:
        raise Refused(
            f"{folder} lies in no run, so what it learned from is not known, and a baseline must learn from "
            "the same: name it with --train"
        )
    loaded: Any = load_model(str(weights))
    verb = next((verb for verb in EXAMINED if hasattr(loaded, verb)), None)
    if verb is None:
        raise Refused(
            f"{folder} holds neither a translator nor a classifier; transom evaluate scores a language "
            "model on a text, and an embedder --against another"
        )
    named = None if test is None else named_test(settings, test, test_target, columns)
    examples = examples_of(verb if run is None else settings.task, origin, named)
    if verb == "translate":
        report = examine_translator(loaded, *examples, beam=beam)
    else:
        report = examine_classifier(loaded, *examples, cut=settings.data.too_long == "cut")
    needs = f"give at least {LEAST} (--test FILE)"
    if not test and settings.data.validation is None:
        many = math.ceil(LEAST / settings.data.val_fraction)
        needs += f", name them while training (--data.validation FILE), or train on {many:,} and more"
    better = report.differences[0].estimate.low > 0
    name = test or f"{settings.data.source} (held out)"
    report = dataclasses.replace(
        report, model=str(weights), test=name, needs=needs,
        beside=report.beside and dataclasses.replace(report.beside, model=str(weights), test=name),
        remedy="" if run is None or report.score.n < LEAST or better else remedy(settings, run),
    )  # fmt: skip
    if run is not None:
        try:
            _write(run / "evaluation.json", report)
        except Refused as refused:  # what was found is shown all the same
            print(f"the scores are not written down: {refused}", file=sys.stderr)
    return report


@dataclasses.dataclass(frozen=True)
class ExaminedRun:
    """A run with the scores of its model on what it never learned from, beside cheap baselines."""

    run: Run
    """The run itself."""
    report: Report
    """The scores."""

    @property
    def outcome(self) -> str:
        """How it went, and what the model scores."""
        return f"{self.run.outcome}\n\n{self.report}"

    @property
    def ending(self) -> str:
        """What to do next."""
        return self.run.ending

    def __str__(self) -> str:
        return f"{self.outcome}\n\n{self.ending}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.run.to_dict(), "evaluation": self.report.to_dict()}


def examined(run: Run) -> Run | ExaminedRun:
    """Examine the model of a run that has ended, where its task has scores of its own and its texts are still
    there: standard input is not.
    """
    if run.interrupted or TASK_FACTS[run.task].verb not in EXAMINED:
        return run
    data = origin_of(run.folder).settings.data
    if "-" in (data.source, data.target, data.validation):
        return run
    try:
        return ExaminedRun(run, examine(run.folder))
    except Refused as refused:  # the run itself has ended well
        print(f"not scored beside something cheap: {refused}", file=sys.stderr)
        return run


def headline_scores(folder: Path) -> dict[str, float]:
    """The scores of a run's model in the task's own measure, where it has one."""
    verb = TASK_FACTS[task_of(folder)].verb
    return examine(folder).score.headline() if verb in EXAMINED else {}


def remedy(settings: TrainSettings, run: Path) -> str:
    """Say what may help the model of a run that is not better than something cheap, by what was measured."""
    data = settings.data
    if TASK_FACTS[settings.task].verb == "translate":
        more = longer_command(run, settings.budget) if settings.budget else "--budget"
        return f"what may help: more pairs, more time ({more})"
    if settings.model.weights:
        return "what may help: more texts of each class, more passes (--epochs)"
    flags = {"--data.field": data.field, "--data.label": data.label, "--data.validation": data.validation}
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    command = ["transom", "train", data.source, "--task", "classify", *words, "--model.weights", GIVEN]
    return (
        "what may help: pretrained weights; from nothing, TF-IDF was ahead on all four sets that were "
        f"tried: {join(command)} --epochs 3"
    )


def examine_classifier(
    classifier: Classifies, train: Sequence[Labelled], test: Sequence[Labelled], *, cut: bool = False
) -> Report:
    """Score a classifier on `test` beside TF-IDF with logistic regression trained on `train`.

    cut: the classifier leaves out the ends of texts that are too long for it; the baselines read them whole.
    """
    texts, truth = [item.text for item in test], [item.label for item in test]
    started = time.perf_counter()
    answers = classifier.classify(texts, cut=cut)
    seconds = time.perf_counter() - started
    labels = list(answers[0].probabilities)
    wanted = indices(labels, truth)
    ours = np.array([[answer.probabilities[label] for label in labels] for answer in answers])

    learned, known = [item.text for item in train], [item.label for item in train]
    counts = Counter(known)
    uneven = max(counts.values()) > UNEVEN * min(counts.values())
    cheap: dict[str, NDArray[Any]] = {}
    for baseline in [TfidfLogistic(), TfidfLogistic(balanced=True)][: 1 + uneven]:
        cheap[baseline.name] = baseline.fit(learned, known).probabilities(texts, labels)
    scores = {name: score_classes(labels, columns, truth) for name, columns in cheap.items()}
    common = majority(known)
    always = share(truth.count(common), len(truth))
    rivals = [Rival(name, _said(score)) for name, score in scores.items()]
    rivals.append(Rival(f"always '{common}'", f"accuracy {always.percent()}"))

    # Each difference is to the baseline that is strongest in that score.
    said = {name: columns.argmax(axis=1) for name, columns in cheap.items()}
    own = ours.argmax(axis=1)
    best = max(said, key=lambda name: scores[name].accuracy.value)
    points = more_often(own == wanted, said[best] == wanted)
    even = max(said, key=lambda name: scores[name].macro_f1.value)
    one, other = (f1_rows(wanted, guesses, len(labels)) for guesses in (own, said[even]))
    f1 = paired_bootstrap(one, other, macro_f1, telling(one, int((own != said[even]).sum())))
    differences = (Difference(best, "points of accuracy", points.times(100)),
                   Difference(even, "points of macro-F1", f1.times(100)))  # fmt: skip
    beside = Comparison("classify", "the model", even, "the test set",
                        *compare_classes(test, labels, ours, cheap[even]))  # fmt: skip
    return Report("classify", score_classes(labels, ours, truth), tuple(rivals), differences,
                  "surest mistakes", tuple(_mistakes(test, labels, ours, wanted)), seconds,
                  beside=beside)  # fmt: skip


def examine_translator(
    translator: Translates, train: Sequence[Pair], test: Sequence[Pair], beam: int = 4
) -> Report:
    """Score a translator on `test` beside the source itself and the most similar text of `train`."""
    sources, references = [pair.source for pair in test], [pair.target for pair in test]
    started = time.perf_counter()
    answers = translator.translate(sources, beam=beam)
    seconds = time.perf_counter() - started
    ours, sure = [answer.text for answer in answers], [answer.mean_logprob for answer in answers]

    memory = TranslationMemory([pair.source for pair in train], [pair.target for pair in train])
    cheap = {"the source, copied": copy_source(sources), memory.name: memory.translate(sources)}
    scores = {name: score_translations(texts, references) for name, texts in cheap.items()}
    score, right = score_translations(ours, references), exactly(ours, references)
    differences = []
    if score.bleu is not None:
        best = max(cheap, key=lambda name: found.value if (found := scores[name].bleu) else 0.0)
        one, other = (bleu_counts(texts, references) for texts in (ours, cheap[best]))
        differences.append(Difference(best, "BLEU", paired_bootstrap(one, other, bleu_of)))
    if score.bleu is None or score.exact.value > HAS_ONE_ANSWER:
        best = max(cheap, key=lambda name: (scores[name].exact.value, scores[name].chrf))
        points = more_often(right, exactly(cheap[best], references)).times(100)
        differences.insert(0, Difference(best, "points of exact answers", points))
    rivals = [Rival(name, _scored(rival)) for name, rival in scores.items()]
    unsure_below = float(np.quantile(sure, LEAST_SURE)) if len(test) >= LEAST else None
    return Report("translate", score, tuple(rivals), tuple(differences),
                  "the first translations", tuple(_translations(test, ours)), seconds,
                  unsure_below=unsure_below)  # fmt: skip


def more_often(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Estimate:
    """By what share of the items (N,) ours is right more often than theirs."""
    return lead(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours))


def _said(score: ClassScore) -> str:
    return f"accuracy {score.accuracy.percent()}, macro-F1 {100 * score.macro_f1.value:.1f}%"


def _scored(score: TranslationScore) -> str:
    bleu = "" if score.bleu is None else f"BLEU {score.bleu.value:.1f}, "
    return f"{bleu}chrF {score.chrf:.1f}, exact {100 * score.exact.value:.1f}%"


def _mistakes(
    test: Sequence[Labelled], labels: list[str], probabilities: NDArray[Any], wanted: NDArray[np.int64]
) -> list[str]:
    """The wrong answers that were given with the most confidence: often the label is the mistake."""
    sure, guessed = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong = np.flatnonzero(guessed != wanted)
    lines = []
    for i in wrong[np.argsort(-sure[wrong], kind="stable")][:SHOWN].tolist():
        item = test[i]
        called = f"called '{labels[guessed[i]]}' with {100 * sure[i]:.0f}%"
        lines += [f"  {item.where}: labelled '{item.label}', {called}", f"    {cut(item.text)}"]
    return lines


def _translations(test: Sequence[Pair], ours: Sequence[str]) -> list[str]:
    """The first few: source, reference, translation."""
    lines = []
    for pair, text in list(zip(test, ours, strict=True))[:SHOWN]:
        lines += [f"  {pair.where}", f"    source     {cut(pair.source)}",
                  f"    reference  {cut(pair.target)}", f"    model      {cut(text)}"]  # fmt: skip
    return lines


def _write(path: Path, report: Report) -> None:
    """Write the report, whole or not at all."""
    write_whole(path, json.dumps(report.to_dict(), indent=1) + "\n")
