"""What the cat experiment found: an arm for each model and set of sentences, and a verdict in words.

Read next: cat.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..intervals import Estimate

REFUTED_BY = (
    "a head that is not ahead of the best baseline in more pairs than behind it, or no causal effect beyond "
    "a random head's (95% intervals of differences within pairs)"
)


@dataclass(frozen=True)
class Arm:
    """What was found on one model and one set of sentences."""

    model: str
    sentences: str
    n_chosen_on: int
    n_judged_on: int
    head: tuple[int, int]
    chosen_with: float
    """The head's accuracy where it was chosen: what would have been reported without a second half."""
    accuracy: Estimate
    """Share of the other half in which the head looks more at the noun that is meant."""
    both: Estimate
    """Share of pairs in which it gets both right; 0 for anything blind to the word that differs."""
    baselines: dict[str, Estimate]
    beats: Estimate
    """Share of pairs in which it gets more right than the best baseline, less that in which fewer."""
    model_itself: Estimate
    """Share in which the model's own reading prefers the right noun."""
    says: str
    """What a preference is."""
    typical: float
    """The mean size of a preference, beside which an effect is large or small."""
    effect: Estimate
    """Mean change of that preference when the head's look at the right noun is cut, over pairs."""
    random_effect: Estimate
    """The same for heads drawn at random."""
    beyond: Estimate
    """The one less the other, pair by pair."""
    n_heads: int

    @property
    def best_baseline(self) -> str:
        return max(self.baselines, key=lambda name: self.baselines[name].value)

    @property
    def supported(self) -> bool:
        return self.beats_baselines and self.is_cause

    @property
    def beats_baselines(self) -> bool:
        return self.beats.low > 0

    @property
    def is_cause(self) -> bool:
        return self.effect.high < 0 and self.beyond.high < 0

    @property
    def verdict(self) -> str:
        """In words."""
        layer, head = self.head
        look = (
            f"head {head} of layer {layer}, the best of {self.n_heads}, looks at the noun that is meant in "
        )
        look += f"{self.accuracy.percent()} of unseen sentences; {self.best_baseline} is right in "
        look += self.baselines[self.best_baseline].percent()
        cause = f"cutting its look {'lowers' if self.is_cause else 'does not lower'} the preference for the "
        cause += "right noun" + ("" if self.is_cause else " more than cutting a random head's does")
        if self.supported:
            return f"The picture holds here: {look}; and {cause}."
        if self.beats_baselines:
            return f"The picture is half true here: {look}; but {cause}: it looks, and nothing comes of it."
        return f"The picture does not hold here: {look}; {cause}."

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "supported": self.supported, "verdict": self.verdict}

    def __str__(self) -> str:
        rows = [
            ("chosen on the other half with", f"{100 * self.chosen_with:.1f}% (inflated: the best of many)"),
            ("head, held out", self.accuracy.percent()),
            ("head, both of a pair", self.both.percent()),
            *((name, found.percent()) for name, found in self.baselines.items()),
            ("pairs ahead less pairs behind", f"{self.beats.percent()} of the best baseline"),
            ("the model's own reading", self.model_itself.percent()),
            ("effect of cutting the look", _signed(self.effect)),
            ("the same, random heads", _signed(self.random_effect)),
            ("the one less the other", _signed(self.beyond)),
        ]
        lines = [f"  {name:<31} {value}" for name, value in rows]
        title = f"{self.model} on {self.sentences} ({self.n_judged_on} held-out sentences)"
        return "\n".join(
            [title, *lines, f"  preference: {self.says}; {self.typical:.2g} on average", f"  {self.verdict}"]
        )


@dataclass(frozen=True)
class CatReport:
    """All arms, and what they say together."""

    arms: tuple[Arm, ...]
    notes: tuple[str, ...]
    caveat: str = (
        "a head that looks at the right noun is not shown to understand; one that is not found may be spread "
        "over several; English, two encoders, short sentences"
    )

    @property
    def verdict(self) -> str:
        held = sum(arm.supported for arm in self.arms)
        return (f"Which word does it look at? The picture held in {held} of {len(self.arms)} tests. It would "
                f"have been refuted by {REFUTED_BY}.")  # fmt: skip

    def __str__(self) -> str:
        shown = [str(arm) for arm in self.arms]
        notes = "\n".join(f"note: {note}" for note in self.notes)
        return "\n\n".join([*shown, *([notes] if notes else []), self.verdict, f"Not shown: {self.caveat}."])

    def to_dict(self) -> dict[str, Any]:
        return {"arms": [arm.to_dict() for arm in self.arms], "notes": list(self.notes),
                "refuted_by": REFUTED_BY, "verdict": self.verdict, "caveat": self.caveat}  # fmt: skip


def _signed(found: Estimate) -> str:
    return f"{found.value:+.2g} (95% interval {found.low:+.2g} to {found.high:+.2g})"
