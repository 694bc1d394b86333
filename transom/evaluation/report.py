"""What an examination found, in words and as plain values: the score, the baselines' beside it, the verdict.

Read next: examine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..intervals import LEAST, Estimate, verdict
from ..units import counted
from .classification import ClassScore
from .translation import TranslationScore

if TYPE_CHECKING:
    from .paired import Comparison

CUT = 100


@dataclass(frozen=True)
class Rival:
    """A baseline on the same test texts."""

    name: str
    """What it is: TF-IDF, the majority, a copy of the source."""
    said: str
    """Its scores in words."""


@dataclass(frozen=True)
class Difference:
    """The model's score less the strongest baseline's, on the same texts."""

    against: str
    """The name of that baseline."""
    unit: str
    """What the difference is counted in."""
    estimate: Estimate
    """Above 0 where the model is the better one."""

    @property
    def verdict(self) -> str:
        """One sentence: whether the model is better."""
        return verdict(self.estimate, self.against, self.unit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"against": self.against, "unit": self.unit, **self.estimate.to_dict()}


@dataclass(frozen=True)
class Report:
    """The outcome of an examination. It prints itself."""

    task: str
    """'translate' or 'classify'."""
    score: TranslationScore | ClassScore
    """Of the model."""
    rivals: tuple[Rival, ...]
    """The baselines."""
    differences: tuple[Difference, ...]
    """The one that decides first."""
    heading: str
    """What the samples are."""
    samples: tuple[str, ...]
    """A few answers, under `heading`."""
    seconds: float
    """What the model's answers took."""
    model: str = "the model"
    """The folder or name that was given."""
    test: str = "the test set"
    """What it was scored on."""
    needs: str = f"give at least {LEAST}"
    """What gives enough texts for a verdict."""
    remedy: str = ""
    """What would help where the model is not better."""
    beside: Comparison | None = None
    """Of a classifier: text by text, the baseline that is strongest in macro-F1."""
    unsure_below: float | None = None
    """Of a translator: the mean log-probability per token that all but the least sure twentieth reach."""

    @property
    def verdicts(self) -> list[str]:
        """Whether the model is worth its cost, a sentence for each difference; of too few texts, that."""
        if self.score.n < LEAST:
            texts = "1 held-out text" if self.score.n == 1 else f"{self.score.n} held-out texts"
            return [f"none: of {texts} nothing can be said; {self.needs}"]
        return [difference.verdict for difference in self.differences]

    @property
    def verdict(self) -> str:
        """Whether the model is worth its cost, in one sentence."""
        return self.verdicts[0]

    @property
    def texts_per_second(self) -> float:
        """Of the model's answers."""
        return self.score.n / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "task": self.task, "model": self.model, "test": self.test, "score": self.score.to_dict(),
            "baselines": [vars(rival) for rival in self.rivals],
            "differences": [difference.to_dict() for difference in self.differences],
            "verdict": self.verdict, "verdicts": self.verdicts, "remedy": self.remedy or None,
            self.heading: list(self.samples), "seconds": self.seconds,
            "texts_per_second": self.texts_per_second, "unsure_below": self.unsure_below,
        }  # fmt: skip

    def __str__(self) -> str:
        wide = max(len(rival.name) for rival in self.rivals)
        texts = f"{counted(self.score.n, 'text')}, {self.texts_per_second:,.0f} texts/s"
        title = f"{self.model} on {self.test}: {texts}"
        beside = [f"  {rival.name:<{wide}}   {rival.said}" for rival in self.rivals]
        lines = [title, "", str(self.score), "", "beside it, on the same texts", *beside, ""]
        if self.samples:
            lines += [self.heading, *self.samples, ""]
        also = [f"         {sentence}" for sentence in self.verdicts[1:]]
        return "\n".join([*lines, f"verdict: {self.verdict}", *also, *[self.remedy] * bool(self.remedy)])


def cut(text: str) -> str:
    """A text as one line of a report."""
    line = " ".join(text.split())
    return line if len(line) <= CUT else line[: CUT - 1] + "…"
